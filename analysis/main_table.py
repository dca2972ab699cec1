"""Table `main-table`: all losses by the main metrics."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results import stats
from pobench.results.arms import arms_of, of_arm, pooled, score_of
from pobench.results.crossed import VERDICT_SEEDS
from pobench.results.equal_tuning import values_of

METRICS = [
    "pass_rate",
    "pass_rate_gain",
    "grade",
    "win_rate",
    "longer_wins",
    "position_flips",
    "reward_accuracy",
    "kl_winners",
    "length_tokens",
    "length_correlation",
]


@register_table("main-table", title="All losses", chapter="results", order=1)
def main_table(runs: pd.DataFrame, scores: pd.DataFrame, benchmarks: pd.DataFrame | None = None) -> pd.DataFrame:
    """Value, 95 % interval and n. Gain and wins are paired with the start model prompt by prompt: a gain is shown where
    its interval leaves out zero, a win rate where it leaves out 50 %. With two seeds and more an interval covers other
    prompts and other seeds, with one only other prompts; fewer than three seeds show no gain, whatever the interval.
    Values: where learning rate and settings come from. Losses whose values came about differently (tuned with another
    number of trials, defaults, the paper's, set by hand) differ by that too. MT-Bench has a column for each judge."""
    rows, graded = [], _mt_bench(benchmarks)
    for arm in arms_of(runs):
        estimates = {metric: score_of(scores, arm, metric) for metric in METRICS}
        estimates |= {title: pooled(of_arm(grades, arm)) for title, grades in graded.items()}
        if any(not math.isnan(e.value) for e in estimates.values()):
            seeds = math.nan if arm.is_start else len(arm.runs)
            rows.append({"Loss": arm.label, "Values": values_of(runs, arm), **estimates, "Seeds": seeds})
    if not rows:
        raise NothingToDraw("No run has been scored.")
    rows.sort(key=lambda row: -_order(row["pass_rate_gain"], row["pass_rate"]))
    table = pd.DataFrame(rows)
    empty = [m for m in (*METRICS, *graded) if all(math.isnan(e.value) for e in table[m])]
    table = table.drop(columns=empty)
    table.attrs["too_few_seeds"] = [bool(seeds < VERDICT_SEEDS) for seeds in table["Seeds"]]
    return table


def _mt_bench(benchmarks: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    """A column's title → the grades of MT-Bench by one judge and its reference answers, by name."""
    if benchmarks is None:
        return {}
    rows = benchmarks[(benchmarks["benchmark"] == "mt_bench") & (benchmarks["metric"] == "score")]
    by_judge = rows.groupby(["name", "judge"], sort=True)
    return {f"{name}" if str(judge) in str(name) else f"{name} by {judge}": own for (name, judge), own in by_judge}


def _order(gain: stats.Estimate, rate: stats.Estimate) -> float:
    """By gain; the start model stands where a gain of zero does."""
    if not math.isnan(gain.value):
        return gain.value
    return 0.0 if not math.isnan(rate.value) else -math.inf
