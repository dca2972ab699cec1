"""Statistics of benchmarks and costs.

A training time is one number a run: its only sample is the seeds, and its interval Student's over a few runs, and wide. A
benchmark's result is estimated over its questions crossed with seeds, as scores are over prompts, where its questions are
stored; else it is such a number too."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as _scipy

from pobench.results import stats
from pobench.results.arms import Arm, json_object, of_arm, settings_of
from pobench.results.claims import slope
from pobench.results.contrast import MISSING, POINTS, Contrast, contrast
from pobench.results.evidence import UNMEASURED, Evidence, Measure, Measured, of_metric
from pobench.results.groups import labels
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
    counts = [len(part.values) for part in trained] or [0]
    seeds, runs, most = min(counts), sum(counts), max(counts)
    if seeds < 2:
        return Contrast(Estimate(value, math.nan, math.nan, max(seeds, 1)), seeds, runs, most=most)
    each = [(p.weight**2 * float(np.var(p.values, ddof=1)) / len(p.values), len(p.values) - 1) for p in trained]
    variance, below = sum(v for v, _ in each), sum(v**2 / freedom for v, freedom in each)
    if not below > 0:  # all runs gave the same number: nothing is known of how runs vary
        return Contrast(Estimate(value, math.nan, math.nan, seeds), seeds, runs, most=most)
    half = float(_scipy.t.ppf(0.5 + stats.LEVEL / 2, variance**2 / below)) * math.sqrt(variance)
    return Contrast(Estimate(value, value - half, value + half, seeds), seeds, runs, most=most)


# ---------------------------------------------------------------- benchmarks
SEEDS_ALONE = "its interval rests on the numbers of runs, and says nothing of other questions"
Result = tuple[str, str]  # a benchmark and its metric
Weighted = tuple[float, Arm, Result]


def of_results(e: Evidence, parts: Sequence[Weighted]) -> tuple[Contrast, str]:
    """Σ weight × a benchmark's number, and a remark on its interval.

    Over questions crossed with seeds, in their groups, where every run has stored its questions' scores, as for prompts; else
    over the numbers of runs. Missing where a part has no number.
    """
    numbers = [e.benchmark(arm, *result) for _, arm, result in parts]
    values = [e.by_question(arm, *result) for _, arm, result in parts]
    if parts and all(map(len, numbers)) and all(map(len, values)):
        benchmark, metric = parts[0][2]
        found = contrast(
            [(weight, own) for (weight, *_), own in zip(parts, values, strict=True)],
            bounds=POINTS,
            groups=e.question_groups(benchmark, metric),
        )
        if found.estimate.n:
            return found, ""
    each = [Few(w, own.to_list(), arm.is_start) for (w, arm, _), own in zip(parts, numbers, strict=True)]
    return few(each), SEEDS_ALONE


def benchmark_gap(ours: str, theirs: str, benchmark: str, metric: str) -> Measure:
    """A benchmark's number of a loss minus another's."""
    return benchmark_means((ours,), (theirs,), benchmark, metric)


def benchmark_means(ours: Sequence[str], theirs: Sequence[str], benchmark: str, metric: str) -> Measure:
    """The mean of a benchmark's number over those of some losses that have it, minus the mean over others."""

    def measure(e: Evidence) -> Measured:
        parts: list[Weighted] = []
        for sign, losses in ((1.0, ours), (-1.0, theirs)):
            arms = [arm for loss in losses if (arm := e.arm(loss)) and len(e.benchmark(arm, benchmark, metric))]
            parts += [(sign / len(arms), arm, (benchmark, metric)) for arm in arms]
            if not arms:
                return UNMEASURED
        found, remark = of_results(e, parts)
        arms = [arm for _, arm, _ in parts]
        # losses that are each compared with the start model need no equal chances among themselves
        return Measured(found, () if any(arm.is_start for arm in arms) else tuple(arms), remark=remark)

    return measure


def benchmark_trend(loss: str, setting: str, *results: tuple[str, str]) -> Measure:
    """What a least-squares line along a setting says that its largest value adds to its smallest, in a benchmark's number.

    results: (benchmark, metric) of one quantity by several protocols; the first that any of the runs has.
    """

    def measure(e: Evidence) -> Measured:
        line = e.line(loss, setting)
        if line is None:
            return UNMEASURED
        weights = slope([value for value, _ in line.points])
        arms = [arm for _, arm in line.points]
        measured = (result for result in results if any(len(e.benchmark(arm, *result)) for arm in arms))
        result = next(measured, results[-1])
        found, remark = of_results(e, [(w, arm, result) for w, arm in zip(weights, arms, strict=True)])
        return Measured(found, tuple(arms), remark=remark)

    return measure


def metric_gap(loss: str, benchmark: str, ours: str, theirs: str) -> Measure:
    """One metric of a benchmark minus another, run by run: its interval rests on the numbers of runs."""

    def measure(e: Evidence) -> Measured:
        arm = e.arm(loss)
        both = (e.benchmark(arm, benchmark, ours) - e.benchmark(arm, benchmark, theirs)).dropna()
        return Measured(few([Few(1.0, both.to_list())]), remark=SEEDS_ALONE)

    return measure


# ---------------------------------------------------------------- how far benchmarks set losses apart
def separation_ratio(losses: Sequence[str], ours: Result, theirs: Sequence[Result]) -> Measure:
    """How far a benchmark sets the losses apart, over the least that one of the others does; the geometric mean over seeds.

    Separation is the standard deviation of the losses' numbers over the mean half of their intervals' widths, which is taken as
    known. Where questions are stored, those of each benchmark are resampled, as for rank correlations.
    """

    def measure(e: Evidence) -> Measured:
        if e.benchmarks is None:
            return UNMEASURED
        arms = [arm for loss in losses if (arm := e.arm(loss)) is not None]
        apart = [_separations(e.benchmarks, arms, result) for result in (ours, *theirs)]
        rest = pd.concat([own["sd"] / own["half"] for own in apart[1:]], axis=1).min(axis=1)
        ratios = (apart[0]["sd"] / apart[0]["half"] / rest).replace([np.inf, 0.0], np.nan).dropna()
        runs = len(ratios) * len(arms)
        tables = [_by_question(e, arms, result) for result in (ours, *theirs)]
        stored = [table for table in tables if table is not None]
        if ratios.empty or len(stored) < len(tables):
            return Measured(Contrast(stats.student(ratios), len(ratios), runs), remark=SEEDS_ALONE)
        drawn = []
        for seed, ratio in ratios.items():
            first, *others = [
                np.log(_resampled(table.loc[seed], table.attrs["groups"], place) / own["half"][seed])
                for place, (table, own) in enumerate(zip(stored, apart, strict=True))
            ]
            n = min(table.loc[seed].index.nunique() for table in stored)
            drawn.append(stats.Drawn(math.log(ratio), first - np.min(others, axis=0), n, n))
        found, _ = stats.over_seeds([(1.0, list(ratios.index), drawn)])
        low, value, high = (float(np.exp(number)) for number in (found.low, found.value, found.high))
        return Measured(Contrast(Estimate(value, low, high, found.n), len(ratios), runs))

    return measure


def _separations(benchmarks: pd.DataFrame, arms: Sequence[Arm], result: Result) -> pd.DataFrame:
    """seed → sd of the losses' numbers, and the mean half of their intervals; of seeds with three losses or more."""
    own = of_metric(benchmarks, *result).dropna(subset=["value", "low", "high"])
    own = own[own["run"].isin([run for arm in arms for run in arm.runs])]
    by_seed = own.assign(half=(own["high"] - own["low"]) / 2).groupby("seed")
    apart = pd.DataFrame({"sd": by_seed["value"].std(), "half": by_seed["half"].mean()})
    return apart[by_seed["loss"].nunique() >= 3]


def _resampled(table: pd.DataFrame, groups: pd.Series | None, place: int) -> stats.Floats:
    """(resamples,) the sd of the losses' numbers, of (questions, losses). place: of the benchmark, which has its own draws."""
    known = table.dropna(axis=1, how="all").dropna()
    of_questions = labels(known.index.to_series(), groups)
    return np.asarray(stats.resampled_means(known.to_numpy(), of_questions, seed=place).std(axis=1, ddof=1))


def _by_question(e: Evidence, arms: Sequence[Arm], result: Result) -> pd.DataFrame | None:
    """((seed, question), arms) of those that have the number; None where one of them has not stored its questions."""
    having = [arm for arm in arms if len(e.benchmark(arm, *result))]
    columns = {arm.id: e.by_question(arm, *result) for arm in having}
    if not columns or not all(map(len, columns.values())):
        return None
    table = pd.DataFrame(columns)
    table.attrs["groups"] = e.question_groups(*result)
    return table


# ---------------------------------------------------------------- costs
Cost = Callable[[pd.DataFrame], pd.Series]
CROWDED = 0.045  # the share of its time that a run may wait for a processor; a quarter of what SimPO saves in Fig. 5c


def memory(runs: pd.DataFrame) -> pd.Series:
    """Most memory that training held, bytes."""
    return pd.to_numeric(runs["peak_memory"], errors="coerce")


def step_seconds(runs: pd.DataFrame) -> pd.Series:
    """Seconds of all training steps."""
    return pd.to_numeric(runs.reindex(columns=["seconds"])["seconds"], errors="coerce")


def working_seconds(runs: pd.DataFrame) -> pd.Series:
    """Seconds of all training steps without those in which other work had the processor, where the system counts them."""
    waited = pd.to_numeric(runs.reindex(columns=["waited"])["waited"], errors="coerce")
    return step_seconds(runs) - waited.fillna(0.0)


def crowded(runs: pd.DataFrame) -> pd.Series:
    """Whether a run's steps were timed beside other work, so that their time says nothing of the loss. False where the system
    did not count it."""
    times = runs.reindex(columns=["waited", "seconds"]).apply(pd.to_numeric, errors="coerce")
    return times["waited"] > CROWDED * times["seconds"]


def timed_on(runs: pd.DataFrame) -> pd.Series:
    """What each run had of a machine while it trained, in words: `on 1 of 2 cores, 2 jobs at a time`. Only times on the same
    are compared. "" where it is not stored."""
    stored = runs.reindex(columns=["environment"])["environment"]
    return stored.astype(object).map(lambda text: _part_of_a_machine(json_object(text)))


def _part_of_a_machine(environment: Mapping[str, Any]) -> str:
    numbers = [environment.get(name) for name in ("threads", "processes", "jobs", "cores")]
    threads, processes, jobs, cores = (n if isinstance(n, int) and n > 0 else 0 for n in numbers)
    beside = f", {jobs} jobs at a time" if jobs > 1 else ""
    if (device := str(environment.get("device") or "cpu")) != "cpu":
        return f"on {f'{processes} × ' if processes > 1 else ''}{device}{beside}"
    if not threads:
        return ""
    used = threads * max(processes, 1)
    if cores and used < cores:
        part = f"{used} of {cores} cores"
    else:
        part = f"{used} {'core' if used == cores else 'thread'}{'s'[: used != 1]}"
        part += f" on {cores} core{'s'[: cores != 1]}" if cores and used > cores else ""
    return f"on {part}{f', in {processes} processes' if processes > 1 else ''}{beside}"


def whole_seconds(runs: pd.DataFrame) -> pd.Series:
    """Seconds of all training steps and of the reference's pass before them, counted whole for every run."""
    return step_seconds(runs) + pd.to_numeric(runs["reference_seconds"], errors="coerce")


def cost_ratio(ours: str, theirs: str, cost: Cost, reference: str) -> Measure:
    """The cost of a loss that reads no reference over that of one that does, seed by seed.

    reference: `cached` or `every_step`, how the second got its reference sums. Times beside other work are left out, and only
    times on the same part of a machine are compared; where there are none, the ratio is given and not comparable.
    """

    def measure(e: Evidence) -> Measured:
        sides = [_at_home(e, ours, ""), _at_home(e, theirs, reference)]
        quiet = sides if cost is memory else [side[~crowded(side)] for side in sides]
        ratios = _ratios(cost, quiet, by_part=cost is not memory)
        alike = len(ratios) > 0
        if not alike:
            ratios = _ratios(cost, sides, by_part=False)
        return Measured(Contrast(stats.student(ratios), len(ratios), 2 * len(ratios)), alike=alike)

    return measure


def _ratios(cost: Cost, sides: Sequence[pd.DataFrame], *, by_part: bool) -> pd.Series:
    """The first side's cost over the second's, by seed; by_part: and by what the runs had of a machine."""
    both = [cost(side).groupby([side.index, timed_on(side)] if by_part else side.index).mean() for side in sides]
    return (both[0] / both[1]).replace(np.inf, np.nan).dropna()


def _at_home(e: Evidence, loss: str, reference: str) -> pd.DataFrame:
    """The runs of a loss with the values of its home arm, by seed, whose reference sums came about in this way."""
    known = e.runs.reindex(columns=[*e.runs.columns.union(["reference", "reference_seconds", "waited", "environment"])])
    home = e.arm(loss)
    if home is None:
        return known.iloc[:0].set_index("seed")
    alike = ["loss", "lr", "epochs", "batch_size", "pairs", "length_bias"]
    first = of_arm(known, home).iloc[0]
    same = (known[alike].eq(first[alike]) | (known[alike].isna() & first[alike].isna())).all(axis=1)
    values = known["settings"].map(lambda text: json.dumps(settings_of({"settings": text}), sort_keys=True))
    same &= values == json.dumps(settings_of(first), sort_keys=True)
    return known[same & (known["reference"] == reference)].set_index("seed")  # nan: not known, and equal to none
