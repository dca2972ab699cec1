"""Statistics of numbers that a run has only one of: a benchmark's result, a training time. Their only sample is the seeds, so
the intervals are Student's over a few runs, and wide."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as _scipy

from pobench.results import stats
from pobench.results.arms import Arm, of_arm, settings_of
from pobench.results.claims import slope
from pobench.results.contrast import MISSING, Contrast
from pobench.results.evidence import UNMEASURED, Evidence, Measure, Measured
from pobench.types import Estimate


class Few(NamedTuple):
    """A few runs in a weighted sum of means. fixed: a start model's, which has no seeds."""

    weight: float
    values: Sequence[float]
    fixed: bool = False


def few(parts: Sequence[Few]) -> Contrast:
    """Σ weight × mean with Student's interval; degrees of freedom by Welch and Satterthwaite (1946).

    Missing where a part has no run; without an interval where a trained part has one run alone.
    """
    if not parts or any(len(part.values) == 0 for part in parts):
        return MISSING
    trained = [part for part in parts if not part.fixed]
    value = float(sum(part.weight * np.mean(part.values) for part in parts))
    seeds, runs = min((len(p.values) for p in trained), default=0), sum(len(p.values) for p in trained)
    if seeds < 2:
        return Contrast(Estimate(value, math.nan, math.nan, max(seeds, 1)), seeds, runs)
    each = [(p.weight**2 * float(np.var(p.values, ddof=1)) / len(p.values), len(p.values) - 1) for p in trained]
    variance, below = sum(v for v, _ in each), sum(v**2 / freedom for v, freedom in each)
    if not below > 0:  # all runs gave the same number: nothing is known of how runs vary
        return Contrast(Estimate(value, math.nan, math.nan, seeds), seeds, runs)
    half = float(_scipy.t.ppf(0.5 + stats.LEVEL / 2, variance**2 / below)) * math.sqrt(variance)
    return Contrast(Estimate(value, value - half, value + half, seeds), seeds, runs)


# ---------------------------------------------------------------- benchmarks
def benchmark_gap(ours: str, theirs: str, benchmark: str, metric: str) -> Measure:
    """A benchmark's number of a loss minus another's."""
    return benchmark_means((ours,), (theirs,), benchmark, metric)


def benchmark_means(ours: Sequence[str], theirs: Sequence[str], benchmark: str, metric: str) -> Measure:
    """The mean of a benchmark's number over those of some losses that have it, minus the mean over others."""

    def measure(e: Evidence) -> Measured:
        parts: list[Few] = []
        arms: list[Arm] = []
        for sign, losses in ((1.0, ours), (-1.0, theirs)):
            found = [(arm, e.benchmark(arm, benchmark, metric)) for loss in losses if (arm := e.arm(loss)) is not None]
            found = [(arm, values) for arm, values in found if len(values)]
            if not found:
                return UNMEASURED
            parts += [Few(sign / len(found), values.to_list(), arm.is_start) for arm, values in found]
            arms += [arm for arm, _ in found]
        # losses that are each compared with the start model need no equal chances among themselves
        return Measured(few(parts), () if any(arm.is_start for arm in arms) else tuple(arms))

    return measure


def benchmark_trend(loss: str, setting: str, benchmark: str, metric: str) -> Measure:
    """What a least-squares line along a setting says that its largest value adds to its smallest, in a benchmark's number."""

    def measure(e: Evidence) -> Measured:
        line = e.line(loss, setting)
        if line is None:
            return UNMEASURED
        weights = slope([value for value, _ in line.points])
        numbers = [e.benchmark(arm, benchmark, metric).to_list() for _, arm in line.points]
        parts = [Few(w, values) for w, values in zip(weights, numbers, strict=True)]
        return Measured(few(parts), tuple(arm for _, arm in line.points))

    return measure


def metric_gap(loss: str, benchmark: str, ours: str, theirs: str) -> Measure:
    """One metric of a benchmark minus another, run by run."""

    def measure(e: Evidence) -> Measured:
        arm = e.arm(loss)
        both = (e.benchmark(arm, benchmark, ours) - e.benchmark(arm, benchmark, theirs)).dropna()
        return Measured(few([Few(1.0, both.to_list())]))

    return measure


Result = tuple[str, str]  # a benchmark and its metric


def separation_ratio(losses: Sequence[str], ours: Result, theirs: Sequence[Result]) -> Measure:
    """How far a benchmark sets the losses apart, over the least that one of the others does, seed by seed.

    Separation is the standard deviation of the losses' numbers over the mean half of their intervals' widths.
    """

    def measure(e: Evidence) -> Measured:
        if e.benchmarks is None:
            return UNMEASURED
        homes = [arm for loss in losses if (arm := e.arm(loss)) is not None]
        rows = e.benchmarks[e.benchmarks["run"].isin([run for arm in homes for run in arm.runs])]
        first = _separations(rows, ours)
        rest = pd.concat([_separations(rows, other) for other in theirs], axis=1).min(axis=1)
        ratios = (first / rest).replace([np.inf, 0.0], np.nan).dropna()
        return Measured(Contrast(stats.student(ratios), len(ratios), len(ratios) * len(homes)))

    return measure


def _separations(rows: pd.DataFrame, result: Result) -> pd.Series:
    """seed → the separation; of seeds with three losses or more."""
    own = rows[(rows["benchmark"] == result[0]) & (rows["metric"] == result[1])].dropna(subset=["value", "low", "high"])
    own = own.assign(half=(own["high"] - own["low"]) / 2)
    by_seed = own.groupby("seed")
    apart = by_seed["value"].std() / by_seed["half"].mean()
    return apart[by_seed["loss"].nunique() >= 3]


# ---------------------------------------------------------------- costs
Cost = Callable[[pd.DataFrame], pd.Series]
CROWDED = 0.045  # the share of its time that a run may wait for a processor; a quarter of what SimPO saves in Fig. 5c


def memory(runs: pd.DataFrame) -> pd.Series:
    """Most memory that training held, bytes."""
    return pd.to_numeric(runs["peak_memory"], errors="coerce")


def step_seconds(runs: pd.DataFrame) -> pd.Series:
    """Seconds of all training steps."""
    return pd.to_numeric(runs["seconds"], errors="coerce")


def crowded(runs: pd.DataFrame) -> pd.Series:
    """Whether a run's steps were timed beside other work, so that their time says nothing of the loss. False where the system
    did not count it."""
    times = runs.reindex(columns=["waited", "seconds"]).apply(pd.to_numeric, errors="coerce")
    return times["waited"] > CROWDED * times["seconds"]


def whole_seconds(runs: pd.DataFrame) -> pd.Series:
    """Seconds of all training steps and of the reference's pass before them, counted whole for every run."""
    return step_seconds(runs) + pd.to_numeric(runs["reference_seconds"], errors="coerce")


def cost_ratio(ours: str, theirs: str, cost: Cost, reference: str) -> Measure:
    """The cost of a loss that reads no reference over that of one that does, seed by seed.

    reference: `cached` or `every_step`, how the second got its reference sums. Times beside other work are left out; where
    there are no others, the ratio is given and not comparable.
    """

    def measure(e: Evidence) -> Measured:
        sides = [_at_home(e, ours, ""), _at_home(e, theirs, reference)]
        quiet = sides if cost is memory else [side[~crowded(side)] for side in sides]
        alike = all(map(len, quiet))
        first, second = (cost(side).groupby(level=0).mean() for side in (quiet if alike else sides))
        ratios = (first / second).replace(np.inf, np.nan).dropna()
        return Measured(Contrast(stats.student(ratios), len(ratios), 2 * len(ratios)), alike=alike)

    return measure


def _at_home(e: Evidence, loss: str, reference: str) -> pd.DataFrame:
    """The runs of a loss with the values of its home arm, by seed, whose reference sums came about in this way."""
    known = e.runs.reindex(columns=[*e.runs.columns.union(["reference", "reference_seconds", "waited"])])
    home = e.arm(loss)
    if home is None:
        return known.iloc[:0].set_index("seed")
    alike = ["loss", "lr", "epochs", "batch_size", "pairs", "length_bias"]
    first = of_arm(known, home).iloc[0]
    same = (known[alike].eq(first[alike]) | (known[alike].isna() & first[alike].isna())).all(axis=1)
    values = known["settings"].map(lambda text: json.dumps(settings_of({"settings": text}), sort_keys=True))
    same &= values == json.dumps(settings_of(first), sort_keys=True)
    return known[same & (known["reference"].fillna("unknown") == reference)].set_index("seed")
