"""Table `seed-spread`: the noise of seeds, and the difference between two losses that can be detected."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results import stats
from pobench.results.arms import Arm, arms_of, by_main_judge, of_arm
from pobench.results.contrast import all_pairs


@register_table("seed-spread", title="How large a difference must be", chapter="results", order=25)
def seed_spread(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None = None,
    comparisons: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """For losses with two or more seeds, in points of the mean score. Spread: standard deviation of one run's score over
    seeds, with its interval (normal theory). Luck alone: the largest difference between two seeds of the same loss.
    Needed: the difference from another loss that four of five repetitions would detect (5 % two-sided; noncentral t with
    the variance of prompts and seeds that these runs show), the median over the other losses. Rank kept: in how many of 100
    draws of one seed of every loss this loss has its rank by the means over seeds."""
    arms = [arm for arm in arms_of(runs) if not arm.is_start and len(arm.runs) > 1]
    rates = {arm: _by_run(verdicts, arm) for arm in arms}
    rates = {arm: values for arm, values in rates.items() if len(values) > 1}
    if not rates:
        raise NothingToDraw("No loss was judged with two seeds or more.")
    kept = stats.rank_stability(list(rates.values()))
    needed: dict[Arm, list[float]] = {arm: [] for arm in rates}
    for pair in all_pairs(runs, verdicts, answers, list(rates), comparisons):
        for arm in (pair.ours, pair.theirs) if pair.gap.crossed is not None else ():
            needed[arm].append(pair.gap.crossed.detectable())
    rows = [
        {
            "Loss": arm.label,
            "Seeds": len(values),
            "Mean": float(values.mean()),
            "Spread": stats.deviation(values),
            "Luck alone": float(np.ptp(values)),
            "Needed": float(np.nanmedian(needed[arm])) if needed[arm] else math.nan,
            "Rank kept": 100 * stays if len(rates) > 1 else math.nan,
        }
        for (arm, values), stays in zip(rates.items(), kept, strict=True)
    ]
    return pd.DataFrame(rows)


def _by_run(verdicts: pd.DataFrame, arm: Arm) -> np.ndarray:
    """(runs,) the main judge's mean score in points, over the prompts that every run has."""
    judged = of_arm(by_main_judge(verdicts, verdicts), arm)
    table = judged.groupby(["prompt", "run"])["score"].mean().unstack().dropna()
    return 100 * table.mean().to_numpy()
