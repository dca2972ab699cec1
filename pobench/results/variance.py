"""Where the noise of a mean score comes from, by analysis of variance, and what another design would make of it.

    y[prompt, seed, sample] = mean + prompt + seed + prompt × seed + decoding (+ judge / readings)        (all random)

Each component is the unbiased estimate that equates mean squares with their expectations (method of moments; Searle,
Casella and McCulloch 1992, "Variance Components", chapter 4). With P prompts, S seeds, and m the means of the cells:

    decoding      = variance of the samples within a cell - judge / readings
    prompt × seed = M - what decoding and judge give a cell's mean      M = Σ residual² / ((P - 1)(S - 1)), m additive
    seed          = variance of the S seeds' means   - M / P
    prompt        = variance of the P prompts' means - M / S

A NEGATIVE ESTIMATE IS SET TO 0 and named in `negative`. What cannot be told apart is nan: with one sample a prompt, decoding
is part of prompt × seed; the judge's component needs answers that were judged several times or in both orders, and is part of
decoding elsewhere. Cells may hold different numbers of samples; a prompt that lacks a seed is left out.

The components of a DIFFERENCE of two models are those of the differences, seed by seed and sample by sample, so what both
share (a hard prompt, a seed's order of the data) has cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats as _scipy

from pobench.results.arms import Arm, by_main_judge, of_arm
from pobench.results.contrast import met
from pobench.results.crossed import LEVEL, Crossed, Floats, Source, additive, variance_of_mean
from pobench.results.groups import labels, prompt_groups

PARTS = ("prompt", "seed", "cell", "decoding", "judge")  # the components, cell: prompt × seed
ORDERS = ("forward", "backward")  # columns of a verdict that was given in both orders


@dataclass(frozen=True)
class Components:
    """Variances of one prompt, one seed, one cell (prompt × seed), one sample and one reading of the judge, in points²; nan
    where a component cannot be told apart. prompts, seeds, samples, readings: what they were estimated from, the last two
    per cell and per answer, as harmonic means. grouped: how many times the variance of the prompts' mean is larger because
    prompts share topics, and groups: how many topics there are for each prompt (1 and 1 where prompts are independent).
    negative: the components whose estimate was below 0."""

    prompt: float
    seed: float
    cell: float
    decoding: float
    judge: float
    prompts: int
    seeds: int
    samples: float
    readings: float
    grouped: float = 1.0
    groups: float = 1.0
    negative: tuple[str, ...] = ()

    def of_cell(self, samples: float) -> float:
        """The variance of a cell's mean over its samples, without the effects of prompt and seed."""
        judge = 0.0 if math.isnan(self.judge) else self.judge / self.readings
        if math.isnan(self.decoding):  # the stored cells hold both, and one sample
            return self.cell + judge
        return self.cell + (self.decoding + judge) / samples

    def shares(self) -> dict[str, float]:
        """Component → its share of the variance of the mean, as stored; nan where it cannot be told apart."""
        cells = self.prompts * self.seeds
        each = {
            "prompt": self.grouped * self.prompt / self.prompts,
            "seed": self.seed / self.seeds,
            "cell": self.cell / cells,
            "decoding": self.decoding / cells / self.samples,
            "judge": self.judge / cells / self.samples / self.readings,
        }
        whole = sum(v for v in each.values() if not math.isnan(v))
        return {name: v / whole if whole else math.nan for name, v in each.items()}

    def crossed(self, seeds: int, prompts: float, samples: float) -> Crossed:
        """What `pobench.results.crossed` can be expected to find for a mean with this design: each source at its expectation.

        The expected excess of the seeds is larger than their variance: where C, the variance of the seeds' means, falls
        below the noise by luck, the excess is set to 0 and not below. C is taken as χ² with seeds - 1 degrees of freedom.
        """
        residual = self.of_cell(samples)
        of_prompts = self.grouped * (self.prompt + residual / seeds) / prompts
        noise = residual / seeds / prompts
        of_seeds = self.seed / seeds + noise
        free = seeds - 1
        excess = of_seeds
        if of_seeds > 0.0:
            bar = free * noise / of_seeds
            excess = of_seeds * _scipy.chi2.sf(bar, free + 2) - noise * _scipy.chi2.sf(bar, free)
        sources = (Source(of_seeds, float(excess), free),)
        return Crossed(0.0, Source(of_prompts, of_prompts, max(1, round(prompts * self.groups) - 1)), sources)

    def detectable(self, seeds: int, prompts: float, samples: float, level: float = LEVEL) -> float:
        """The smallest true mean that this design would see four times in five, in points; nan where nothing varies."""
        return self.crossed(seeds, prompts, samples).detectable(level)


@dataclass(frozen=True)
class Readings:
    """A judge's readings of answers in points. values: (prompts, seeds, samples, orders), nan where there is none. axes: the
    labels of each axis."""

    values: Floats
    axes: tuple[pd.Index, ...]

    def minus(self, other: Readings) -> Readings:
        """Reading by reading, over what both have."""
        axes = tuple(a.intersection(b).sort_values() for a, b in zip(self.axes, other.axes, strict=True))
        return Readings(self._at(axes) - other._at(axes), axes)

    def _at(self, axes: Sequence[pd.Index]) -> Floats:
        return self.values[np.ix_(*(own.get_indexer(wanted) for own, wanted in zip(self.axes, axes, strict=True)))]


def components(readings: Readings, groups: pd.Series | None = None) -> Components | None:
    """The components of a mean over prompts and seeds. groups: prompt → what it shares with others, see `prompt_groups`. None
    with fewer than two prompts or two seeds."""
    judged = ~np.isnan(readings.values)
    complete = np.all(judged.any(axis=(2, 3)), axis=1)
    if min(complete.sum(), readings.values.shape[1]) < 2:
        return None
    values, judged = readings.values[complete], judged[complete]
    answers, readings_each = _means(values, judged)  # (prompts, seeds, samples)
    cells, samples = _means(answers, readings_each > 0)  # (prompts, seeds)
    judge = _within_answers(values, answers, readings_each)
    known_judge = 0.0 if math.isnan(judge) else judge
    a_reading = float((1 / readings_each[readings_each > 0]).mean())  # the judge's share of an answer's mean
    a_sample = float((1 / samples).mean())
    free = int((samples - 1).sum())
    within = float(np.nansum((answers - cells[..., None]) ** 2)) / free if free else math.nan
    estimates = _of_table(cells) | {"decoding": within - known_judge * a_reading, "judge": judge}
    estimates["cell"] -= (within if free else known_judge * a_reading) * a_sample
    grouped, per_prompt = _grouped(pd.Series(cells.mean(axis=1), readings.axes[0][complete]), groups)
    return Components(
        **{name: value if math.isnan(value) else max(value, 0.0) for name, value in estimates.items()},
        prompts=len(cells),
        seeds=cells.shape[1],
        samples=1 / a_sample,
        readings=1 / a_reading,
        grouped=grouped,
        groups=per_prompt,
        negative=tuple(name for name in PARTS if estimates[name] < 0.0),
    )


def _means(values: Floats, there: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(mean over the last axis of what is there, nan where nothing is; how many are there)."""
    count = there.sum(axis=-1)
    total = np.where(there, values, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0), count


def _of_table(means: np.ndarray) -> dict[str, float]:
    """Prompt, seed, and the residual mean square as `cell`, of (prompts, seeds); not yet set to 0 where negative."""
    n, k = means.shape
    square = float(((means - additive(means)) ** 2).sum()) / ((n - 1) * (k - 1))
    return {
        "prompt": float(means.mean(axis=1).var(ddof=1)) - square / k,
        "seed": float(means.mean(axis=0).var(ddof=1)) - square / n,
        "cell": square,
    }


def _within_answers(values: Floats, answers: Floats, readings_each: Floats) -> float:
    """The variance of one reading of one answer; what an order does to all answers is no noise. nan without a second one."""
    apart = (values - answers[..., None])[readings_each > 1]  # (answers, orders)
    used = ~np.isnan(apart).all(axis=0)
    free = int((~np.isnan(apart)).sum()) - len(apart) - (int(used.sum()) - 1)
    if not len(apart) or free < 1:
        return math.nan
    return float(np.nansum((apart[:, used] - np.nanmean(apart[:, used], axis=0)) ** 2)) / free


def _grouped(means: pd.Series, groups: pd.Series | None) -> tuple[float, float]:
    """(variance of the mean over prompts with groups / without, groups a prompt); (1, 1) where there are no groups."""
    of_prompts = labels(means.index.to_series(), groups)
    if of_prompts is None:
        return 1.0, 1.0
    apart, group = (means - means.mean()).to_numpy(), np.unique(of_prompts.astype(str), return_inverse=True)[1]
    alone, together = (variance_of_mean(apart, each) for each in (np.arange(len(apart)), group))
    return (together / alone if alone > 0.0 else 1.0), (int(group.max()) + 1) / len(apart)


# ---------------------------------------------------------------- of stored verdicts
def readings_of(verdicts: pd.DataFrame, runs: pd.DataFrame, arm: Arm) -> Readings:
    """The main judge's readings of an arm's answers. An answer that was judged in both orders has two; their mean is its
    score. Further verdicts on the same answer are further readings."""
    return _readings(of_arm(by_main_judge(verdicts, verdicts), arm), runs)


def _readings(own: pd.DataFrame, runs: pd.DataFrame) -> Readings:
    """Of verdicts, in points."""
    own = own.assign(seed=own["run"].map(dict(zip(runs["run"], runs["seed"], strict=True))).astype(int))
    orders = own.reindex(columns=list(ORDERS)).apply(pd.to_numeric, errors="coerce").astype(float)
    both = orders.notna().all(axis=1)
    columns = {"": pd.to_numeric(own["score"]).mask(both), **{order: orders[order].where(both) for order in ORDERS}}
    keys = ["prompt", "seed", "sample"]
    rows = pd.concat([own[keys].assign(order=order, value=values) for order, values in columns.items()]).dropna()
    rows["order"] += rows.groupby([*keys, "order"]).cumcount().astype(str)
    axes, places = [], []
    for key in (*keys, "order"):
        place, labels = pd.factorize(rows[key], sort=True)
        axes.append(pd.Index(labels))
        places.append(place)
    values = np.full([len(axis) for axis in axes], np.nan)
    values[tuple(places)] = 100 * rows["value"].astype(float)
    return Readings(values, tuple(axes))


class Noise(NamedTuple):
    """The components of the mean of each trained arm, and of the difference of each two over the seeds that both have."""

    of_arms: dict[Arm, Components]
    of_pairs: dict[tuple[Arm, Arm], Components]


def noise_of(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None,
    arms: Sequence[Arm],
    comparisons: pd.DataFrame | None = None,
) -> Noise:
    """Without arms and pairs that have fewer than two seeds or two prompts."""
    groups = prompt_groups(answers)
    readings = {arm: readings_of(verdicts, runs, arm) for arm in arms if not arm.is_start}
    alone = {arm: components(of_one, groups) for arm, of_one in readings.items()}
    pairs = {}
    for a, b in combinations(readings, 2):
        rows = met(comparisons, verdicts, a, b)
        apart = _readings(rows, runs) if len(rows) else readings[a].minus(readings[b])
        pairs[a, b] = components(apart, groups)
    return Noise(
        {arm: found for arm, found in alone.items() if found is not None},
        {pair: found for pair, found in pairs.items() if found is not None},
    )


def median(found: Sequence[Components]) -> Components:
    """Each component's median over several, without those where it is nan; of the counts likewise. Raises ValueError where
    there is none."""
    if not found:
        raise ValueError("the median of no components")
    values: dict[str, Any] = {}
    for name in (f.name for f in fields(Components) if f.name != "negative"):
        known = [v for c in found if not math.isnan(v := getattr(c, name))]
        values[name] = float(np.median(known)) if known else math.nan
    counts = {name: round(values[name]) for name in ("prompts", "seeds")}
    return replace(found[0], **{**values, **counts}, negative=())
