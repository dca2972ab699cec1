"""Table `seed-spread`: the noise of seeds, and the difference between two losses that can be detected."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results import stats
from pobench.results.arms import Arm, arms_of, judges_of, of_arm


@register_table("seed-spread", title="How large a difference must be", chapter="results", order=25)
def seed_spread(runs: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """For losses with two or more seeds, in points of the pass rate. Spread: standard deviation of one run's rate over
    seeds, with its interval (normal theory). Luck alone: the largest difference between two seeds of the same loss.
    Needed, one run and needed, all seeds: the difference between two losses that four of five comparisons would
    detect (5 % two-sided), with one run of each and with all; it includes the noise of training and of prompts,
    paired by prompt. Rank kept: in how many of 100 draws of one seed of every loss this loss has its rank by the means
    over seeds."""
    tables = {}
    for arm in arms_of(runs):
        if not arm.is_start and len(arm.runs) > 1:
            table = _by_run(verdicts, arm)
            if table.shape[1] > 1:
                tables[arm] = table
    if not tables:
        raise NothingToDraw("No loss was judged with two seeds or more.")
    kept = stats.rank_stability([table.mean().to_numpy() for table in tables.values()])
    noise = _difference_noise(list(tables.values()))
    rows = []
    for (arm, table), stays in zip(tables.items(), kept, strict=True):
        rates = 100 * table.mean().to_numpy()
        rows.append(
            {
                "Loss": arm.label,
                "Seeds": len(rates),
                "Mean": float(rates.mean()),
                "Spread": stats.deviation(rates),
                "Luck alone": float(np.ptp(rates)),
                "Needed, one run": 100 * stats.detectable(*noise, seeds=1),
                "Needed, all seeds": 100 * stats.detectable(*noise, seeds=len(rates)),
                "Rank kept": 100 * stays if len(tables) > 1 else math.nan,
            }
        )
    return pd.DataFrame(rows)


def _by_run(verdicts: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    """(prompts × runs) the main judge's mean score of the prompts that every run has."""
    judged = of_arm(verdicts[verdicts["judge"].isin(judges_of(verdicts)[:1])], arm)
    return judged.groupby(["prompt", "run"])["score"].mean().unstack().dropna()


def _difference_noise(tables: list[pd.DataFrame]) -> tuple[float, float, int]:
    """(deviation of a run's rate over seeds, deviation over prompts of a paired difference, prompts): medians over losses."""
    seeds = [float(table.mean().std(ddof=1)) for table in tables]
    columns = pd.concat([table.mean(axis=1).rename(i) for i, table in enumerate(tables)], axis=1).dropna()
    pairs = [float((columns[a] - columns[b]).std(ddof=1)) for a, b in combinations(columns, 2)]
    pairs = pairs or [float((table.iloc[:, 0] - table.iloc[:, 1]).std(ddof=1)) for table in tables]
    known = [p for p in pairs if not math.isnan(p)]
    return float(np.median(seeds)), float(np.median(known)) if known else math.nan, len(columns)
