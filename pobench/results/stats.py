"""Estimates with intervals, on plain arrays. Equal seeds give equal results.

The interval is the EXPANDED PERCENTILE bootstrap. Plain percentiles are too narrow at small n, and BCa does not correct
that. So the quantile levels are widened until the interval of a normal sample's mean equals Student's, at any n
(Hesterberg 2015, "What Teachers Should Know About the Bootstrap", The American Statistician 69(4)). Coverage of the 95 %
interval over 1500 trials, plain → expanded: normal 88 → 94 % at n = 8, 91 → 94 % at n = 15; exponential 88 → 91 % at
n = 15, 92 → 93 % at n = 25. Below ten prompts no bootstrap deserves much trust. CLUSTERS are resampled: all
samples of one prompt stay together, each cluster counts once, and `Estimate.n` is the number of clusters. GROUPS of
clusters (prompts on one topic) are resampled whole; each of their clusters still counts once.

With TWO SEEDS AND MORE the interval is Student's, of prompts crossed with seeds: `pobench.results.crossed`. With one seed
the bootstrap covers the choice of prompts only, not the luck of a training run.

nan means "not measured" and is dropped; n counts the rest. If nothing is left, the result is `Estimate.missing()`. One
cluster gives a value without an interval (nan), unless the scale's bounds are known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as _scipy

from pobench.results.crossed import LEVEL, Crossed, Source, crossed
from pobench.types import Estimate

RESAMPLES = 2000
UNIT = (0.0, 1.0)  # bounds of a share or a score
SIGNED = (-1.0, 1.0)  # bounds of a difference of two shares

Floats = NDArray[np.float64]
Bounds = tuple[float, float]


# ---------------------------------------------------------------- estimates
def mean(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    seeds: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    bounds: Bounds | None = None,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The mean over clusters of each cluster's mean.

    values: (observations,). clusters: (observations,) labels, e.g. prompt ids; default: each observation its own.
    seeds: (observations,) labels of the training run. groups: (observations,) labels of what several clusters share;
    default: each cluster its own. bounds: the ends of the scale, if it has any.
    """
    table, group = _cells(values, clusters, seeds, groups)
    return mean_of_table(table, group, bounds=bounds, level=level, seed=seed, resamples=resamples)


def mean_of_table(
    table: Floats,
    group: NDArray[np.int_] | None = None,
    *,
    bounds: Bounds | None = None,
    level: float = LEVEL,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """`mean` of cells. table: (clusters, seeds), nan where a cell is empty; no row and no column is all nan. group: (clusters,)
    the number of each cluster's group, from 0; default: each its own."""
    if table.size == 0:
        return Estimate.missing()
    if table.shape[1] > 1:
        return of_tables([(1.0, table)], group, bounds, level)[0]
    column = table[:, 0]
    group = np.arange(len(column)) if group is None else group
    constant = bool(np.ptp(column) == 0.0)
    sums, sizes = np.bincount(group, column), np.bincount(group).astype(float)
    drawn = np.concatenate([(w @ sums) / (w @ sizes) for w in _weights(len(sums), seed, resamples)])
    low, high = _interval(drawn, float(column.mean()), len(sums), bounds, constant, level)
    return Estimate(float(column.mean()), low, high, len(column))


def of_tables(
    parts: Sequence[tuple[float, Floats]],
    group: NDArray[np.int_] | None = None,
    bounds: Bounds | None = None,
    level: float = LEVEL,
) -> tuple[Estimate, Crossed | None]:
    """The weighted sum of the means of tables (prompts, seeds), see `crossed`, with its interval for other prompts and other
    seeds. The second is None where there are fewer than two groups of prompts."""
    n, groups = len(parts[0][1]), len(parts[0][1]) if group is None else int(group.max()) + 1
    if groups < 2:
        value = sum(weight * float(np.nanmean(table)) for weight, table in parts)
        return Estimate(value, *_interval(np.empty(0), value, groups, bounds, True, level), n), None
    found = crossed(parts, group)
    if found.variance <= 0.0:
        return Estimate(found.value, *_interval(np.empty(0), found.value, groups, bounds, True, level), n), found
    low, high = (found.value + sign * found.half_width(level) for sign in (-1, 1))
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Estimate(found.value, min(low, found.value), max(high, found.value), n), found


def means(
    columns: ArrayLike,
    bounds: Sequence[Bounds | None],
    groups: ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Estimate]:
    """`mean` of each column of (observations, columns). Every row is its own cluster; all columns share the draws.

    bounds: of each column. groups: as in `mean`. A column with nan is estimated by itself, from its other rows.
    """
    table = np.asarray(columns, dtype=float)
    group = np.arange(len(table)) if groups is None else np.unique(_labels(groups, len(table)), return_inverse=True)[1]
    complete = np.flatnonzero(~np.isnan(table).any(axis=0)) if len(table) else np.empty(0, dtype=int)
    estimates = {}
    if len(complete):
        chosen, units = table[:, complete], int(group.max()) + 1
        draws = resampled_means(chosen, group, seed=seed, resamples=resamples)
        for k, column in enumerate(complete.tolist()):
            value, constant = float(chosen[:, k].mean()), bool(np.ptp(chosen[:, k]) == 0.0)
            low, high = _interval(draws[:, k], value, units, bounds[column], constant, LEVEL)
            estimates[column] = Estimate(value, low, high, len(table))
    return [
        estimates[k]
        if k in estimates
        else mean(table[:, k], None, None, groups, bounds=bounds[k], seed=seed, resamples=resamples)
        for k in range(table.shape[1])
    ]


def resampled_means(
    columns: Floats, groups: ArrayLike | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> Floats:
    """(resamples, columns) the means of (observations, columns) without nan, groups drawn whole as in `mean`."""
    group = np.arange(len(columns)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(group).astype(float)
    sums = np.stack([np.bincount(group, column) for column in columns.T], axis=1)
    return np.concatenate([(w @ sums) / (w @ sizes)[:, None] for w in _weights(len(sizes), seed, resamples)])


def student(values: ArrayLike) -> Estimate:
    """The geometric mean of a few independent, positive costs or ratios of costs of runs, with Student's interval of their
    logarithms: a bootstrap of three numbers never leaves their range. One value has no interval."""
    v = np.asarray(values, dtype=float).ravel()
    v = np.log(v[v > 0])  # drops nan too
    if len(v) < 2:
        return Estimate(float(np.exp(v[0])), math.nan, math.nan, 1) if len(v) else Estimate.missing()
    half = float(_scipy.t.ppf(0.5 + LEVEL / 2, len(v) - 1) * v.std(ddof=1)) / math.sqrt(len(v))
    value, low, high = (float(x) for x in np.exp(v.mean() + half * np.array([0.0, -1.0, 1.0])))
    return Estimate(value, low, high, len(v))


def outcomes(ours: ArrayLike, theirs: ArrayLike) -> Floats:
    """(pairs,) 1 won, 0.5 tied, 0 lost, nan where a side is missing."""
    a, b = _same_shape(ours, theirs)
    return np.where(np.isnan(a) | np.isnan(b), np.nan, 0.5 + 0.5 * np.sign(a - b))


def length_controlled_win_rate(
    results: ArrayLike,
    ours_length: ArrayLike,
    theirs_length: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The win rate at equal length, by a logistic model that knows the lengths and nothing else:

        logit P(ours wins) = θ + φ tanh((ours_length - theirs_length) / their standard deviation)
        length-controlled win rate = sigmoid(θ)

    It is for any prompts and any opponent, and it is NOT AlpacaEval's LC win rate, which also knows how hard each of
    its own instructions is: call it "length-only". A normal prior on φ with standard deviation 10 keeps the fit
    finite where the longer answer always wins; hundreds of pairs outweigh it. Where nearly all of ours are longer (or
    shorter), equal length is an extrapolation: read it with its interval, or not at all.

    results: (observations,) 1 won, 0.5 tied, 0 lost, or anything between, as `outcomes` gives. ours_length,
    theirs_length: (observations,) in one unit. clusters: as in `mean`; each cluster counts once. An observation that
    lacks its result or a length is dropped.
    """
    y, longer = _same_shape(results, np.subtract(*_same_shape(ours_length, theirs_length)))
    there = ~(np.isnan(y) | np.isnan(longer))
    if not there.any():
        return Estimate.missing()
    labels = np.arange(len(y)) if clusters is None else _labels(clusters, len(y))
    names, cluster = np.unique(labels[there], return_inverse=True)
    y, longer = y[there], longer[there]
    spread = float(longer.std(ddof=1)) if len(y) > 1 else 0.0
    x = np.tanh(longer / spread) if spread > 0 else np.zeros_like(y)
    share = 1.0 / np.bincount(cluster)[cluster]  # a cluster's observations count as one together
    value = float(_at_equal_length(y, x, share[None])[0])
    draws = [_at_equal_length(y, x, w[:, cluster] * share) for w in _weights(len(names), seed, resamples)]
    constant = bool(np.ptp(y) == 0.0)
    return _estimate(float(y[0]) if constant else value, np.concatenate(draws), len(names), UNIT, constant)


def _at_equal_length(y: Floats, x: Floats, weights: Floats) -> Floats:
    """(resamples,) sigmoid(θ) of the penalised logistic fits of y on x; weights: (resamples, observations)."""
    theta, phi = np.zeros((2, len(weights), 1))
    for _ in range(60):  # Newton's method with clipped steps: on separable data full steps diverge
        p = 1.0 / (1.0 + np.exp(-(theta + phi * x)))
        rest, bend = weights * (y - p), weights * p * (1.0 - p)
        slope = rest.sum(1, keepdims=True) - 1e-6 * theta, (rest * x).sum(1, keepdims=True) - phi / 100.0
        a, b = bend.sum(1, keepdims=True) + 1e-6, (bend * x).sum(1, keepdims=True)
        d = (bend * x * x).sum(1, keepdims=True) + 1.0 / 100.0
        determinant = a * d - b * b
        steps = (d * slope[0] - b * slope[1]) / determinant, (a * slope[1] - b * slope[0]) / determinant
        theta, phi = theta + np.clip(steps[0], -2.0, 2.0), phi + np.clip(steps[1], -2.0, 2.0)
        if max(np.abs(steps[0]).max(), np.abs(steps[1]).max()) < 1e-9:
            break
    fitted: Floats = 1.0 / (1.0 + np.exp(-theta[:, 0]))
    return fitted


def ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    bounds: Bounds | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """`Σ numerator / Σ denominator`, clusters resampled whole. Missing where the denominators sum to zero.

    bounds: the ends of the ratio's scale, if it has any; used only when all clusters have the same ratio.
    """
    top, bottom = _same_shape(numerator, denominator)
    gone = np.isnan(top) | np.isnan(bottom)
    labels = np.arange(len(top)) if clusters is None else _labels(clusters, len(top))
    _, index = np.unique(labels[~gone], return_inverse=True)
    tops, bottoms = np.bincount(index, top[~gone]), np.bincount(index, bottom[~gone])
    if bottoms.sum() == 0:
        return Estimate.missing()
    draws = []
    for by_cluster in _weights(len(tops), seed, resamples):
        total, count = by_cluster @ tops, by_cluster @ bottoms
        draws.append(np.divide(total, count, out=np.full_like(total, np.nan), where=count != 0))
    shares = tops[bottoms != 0] / bottoms[bottoms != 0]
    constant = bounds is not None and bool(np.ptp(shares) == 0.0)
    return _estimate(float(tops.sum() / bottoms.sum()), np.concatenate(draws), len(tops), bounds, constant)


def proportion(successes: float, n: int) -> Estimate:
    """A share of independent trials with Wilson's interval (Wilson 1927). Raises ValueError outside 0 ≤ successes ≤
    n."""
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n; got {successes} of {n}")
    if n == 0:
        return Estimate.missing()
    p, z = successes / n, float(_scipy.norm.ppf(0.5 + LEVEL / 2))
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)), n)


# seed → (x, y), each (observations,), the same observations in the same order
Ranked = Mapping[Any, tuple[ArrayLike, ArrayLike]]


def spearman(
    x: ArrayLike,
    y: ArrayLike,
    seeds: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Spearman's rank correlation with mid-ranks for ties; the mean over seeds where there are several.

    x, y, groups: (observations,), groups as in `mean`. n is the number of observations of one seed. Missing when a side is
    constant.
    """
    a, b = _same_shape(x, y)
    runs = np.zeros(len(a), dtype=int) if seeds is None else _labels(seeds, len(a))
    group = None if groups is None else _labels(groups, len(a))[runs == runs[0]]
    by_seed = {run: (a[runs == run], b[runs == run]) for run in np.unique(runs)}
    return spearman_contrast([(1.0, by_seed)], group, bounds=SIGNED, seed=seed, resamples=resamples)[0]


def spearman_contrast(
    parts: Sequence[tuple[float, Ranked]],
    groups: ArrayLike | None = None,
    *,
    bounds: Bounds | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[Estimate, Crossed | None]:
    """Σ weight × ρ, each ρ the mean over its seeds; observations are resampled together, so that what parts share does not
    count twice.

    groups: (observations,) labels as in `mean`, where all seeds have the same observations. An observation that lacks a number
    in any part is dropped from all. The second is None where no part has two seeds. Missing where every seed of a part has a
    constant side.
    """
    columns = [
        np.asarray(side, dtype=float).ravel() for _, by_seed in parts for pair in by_seed.values() for side in pair
    ]
    same = len({len(column) for column in columns}) == 1
    there = ~np.isnan(np.stack(columns)).any(axis=0) if same else None
    found = []
    for weight, by_seed in parts:
        sides = [_known(x, y, groups if same else None, there) for x, y in by_seed.values()]
        each = [f for s in sides if len(s[0]) > 1 and not math.isnan((f := _spearman(*s, seed, resamples)).value)]
        if not each:
            return Estimate.missing(), None
        found.append((weight, list(by_seed), each))
    return over_seeds(found, bounds)


def _known(x: ArrayLike, y: ArrayLike, groups: ArrayLike | None, there: Any) -> tuple[Floats, Floats, NDArray[np.int_]]:
    """The observations that are there (None: those where neither side is nan), and the number of each one's group."""
    a, b = np.asarray(x, dtype=float).ravel(), np.asarray(y, dtype=float).ravel()
    kept = ~(np.isnan(a) | np.isnan(b)) if there is None else there
    group = np.arange(len(a)) if groups is None else _labels(groups, len(a))
    return a[kept], b[kept], np.unique(group[kept], return_inverse=True)[1]


class Drawn(NamedTuple):
    """A statistic of one seed, and what it is in resamples of the observations. draws: (resamples,). n: observations. units:
    how many are drawn, groups or single observations."""

    value: float
    draws: Floats
    n: int
    units: int


def over_seeds(
    parts: Sequence[tuple[float, Sequence[Any], Sequence[Drawn]]], bounds: Bounds | None = None
) -> tuple[Estimate, Crossed | None]:
    """The weighted sum of means over seeds; parts: (weight, seeds, what each seed has). Draw k resamples the same observations
    everywhere, so the draws tell what these give the mean (prompts in `Crossed`) and each seed beside it (the noise)."""
    n, units = (min(getattr(f, count) for _, _, each in parts for f in each) for count in ("n", "units"))
    several = [(names, each) for _, names, each in parts if len(each) > 1]
    if several and all(names == several[0][0] and len(each) == len(several[0][1]) for names, each in several):
        parts = [(1.0, several[0][0], [_sum_of(parts, place) for place in range(len(several[0][1]))])]  # paired by seed
    value = float(sum(weight * np.mean([f.value for f in each]) for weight, _, each in parts))
    draws = np.asarray(sum(weight * np.mean([f.draws for f in each], axis=0) for weight, _, each in parts))
    if not several:
        return Estimate(value, *_interval(draws, value, units, bounds, False, LEVEL), n), None
    of_rows = float(np.nanvar(draws))
    seeds = []
    for weight, _, each in parts:
        if (k := len(each)) > 1:
            drawn = np.stack([f.draws for f in each])
            noise = float(np.nanvar(drawn - drawn.mean(axis=0), axis=1).mean()) / (k - 1)
            of_seeds = float(np.var([f.value for f in each], ddof=1)) / k
            seeds.append(Source(weight**2 * of_seeds, weight**2 * max(of_seeds - noise, 0.0), k - 1))
    crossing = Crossed(value, Source(of_rows, of_rows, max(units - 1, 1)), tuple(seeds))
    half, (low, high) = crossing.half_width(), bounds if bounds is not None else (-math.inf, math.inf)
    return Estimate(value, max(low, value - half), min(high, value + half), n), crossing


def _sum_of(parts: Sequence[tuple[float, Sequence[Any], Sequence[Drawn]]], place: int) -> Drawn:
    """The weighted sum of what the parts have for one seed; a part of one run (the start model) stands beside each."""
    own = [(weight, each[place if len(each) > 1 else 0]) for weight, _, each in parts]
    value, drawn = sum(w * f.value for w, f in own), np.asarray(sum(w * f.draws for w, f in own))
    return Drawn(float(value), drawn, min(f.n for _, f in own), min(f.units for _, f in own))


def _spearman(x: Floats, y: Floats, group: NDArray[np.int_], seed: int, resamples: int) -> Drawn:
    """One seed's correlation. Scores, claims and figures ask for that of the same pairs, so it is remembered."""
    return _remembered_spearman(x.tobytes(), y.tobytes(), group.tobytes(), group.dtype.str, seed, resamples)


@functools.lru_cache(maxsize=256)  # an entry is some hundred kilobytes for ten thousand pairs
def _remembered_spearman(x_: bytes, y_: bytes, group_: bytes, of: str, seed: int, resamples: int) -> Drawn:
    x, y, group = np.frombuffer(x_), np.frombuffer(y_), np.frombuffer(group_, of)
    n, units = len(x), int(group.max()) + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(_weighted_pearson(_scipy.rankdata(x)[None], _scipy.rankdata(y)[None], np.ones((1, n)))[0])
        blocks = (w[:, group] for w in _weights(units, seed, resamples))
        draws = np.concatenate([_weighted_pearson(_mid_ranks(x, w), _mid_ranks(y, w), w) for w in blocks])
    draws.setflags(write=False)
    return Drawn(value, draws, n, units)


def _mid_ranks(x: Floats, weights: Floats) -> Floats:
    """(resamples, n) the mid-rank that each observation has in each resample, without sorting any of them."""
    order = np.argsort(x, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(x[order]) > 0])  # where a run of equal values begins
    group = np.empty(len(x), dtype=int)
    group[order] = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(x)]))
    size = np.add.reduceat(weights[:, order], first, axis=1)
    return (np.cumsum(size, axis=1) - size / 2)[:, group]


def _weighted_pearson(x: Floats, y: Floats, w: Floats) -> Floats:
    total = w.sum(axis=1, keepdims=True)
    dx = x - (w * x).sum(axis=1, keepdims=True) / total
    dy = y - (w * y).sum(axis=1, keepdims=True) / total
    r = (w * dx * dy).sum(axis=1) / np.sqrt((w * dx * dx).sum(axis=1) * (w * dy * dy).sum(axis=1))
    return np.clip(r, -1.0, 1.0)


# ---------------------------------------------------------------- several tests
def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment (Holm 1979): (tests,) → (tests,); nan stays nan and does not count as a test."""
    p = np.asarray(p_values, dtype=float)
    adjusted = np.full_like(p, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * (len(order) - np.arange(len(order)))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else []
    return adjusted


# ---------------------------------------------------------------- how large a difference must be
def deviation(values: ArrayLike) -> Estimate:
    """The standard deviation of a few independent values, with the χ² interval of normal theory. Missing below two."""
    v = np.asarray(values, dtype=float)
    v = v[~np.isnan(v)]
    n = len(v)
    if n < 2:
        return Estimate.missing()
    s = float(v.std(ddof=1))
    low, high = (s * math.sqrt((n - 1) / _scipy.chi2.ppf(q, n - 1)) for q in (0.5 + LEVEL / 2, 0.5 - LEVEL / 2))
    return Estimate(s, float(low), float(high), n)


def rank_stability(means: Sequence[ArrayLike], *, seed: int = 0, resamples: int = RESAMPLES) -> list[float]:
    """For each contender the share of draws in which it keeps its rank, when one run of each, drawn at random, counts.

    means: for each contender (seeds,), one mean a run; higher is better, ties broken by order. The rank to keep is
    that of the mean over seeds. It describes these runs and is no estimate of others.
    """
    values = [np.asarray(m, dtype=float) for m in means]
    rng = np.random.default_rng(seed)
    drawn = np.stack([v[rng.integers(len(v), size=resamples)] for v in values], axis=1)
    rank = np.argsort(np.argsort(-drawn, axis=1, kind="stable"), axis=1, kind="stable")
    rank_of_means = np.argsort(np.argsort(-np.array([v.mean() for v in values]), kind="stable"), kind="stable")
    return [float(share) for share in (rank == rank_of_means).mean(axis=0)]


def excludes(estimate: Estimate, value: float = 0.0) -> bool:
    """Whether the interval lies wholly on one side of `value`; False where there is no interval."""
    return estimate.low > value or estimate.high < value


# ---------------------------------------------------------------- resampling
def _cells(
    values: ArrayLike, clusters: ArrayLike | None, seeds: ArrayLike | None, groups: ArrayLike | None = None
) -> tuple[Floats, NDArray[np.int_]]:
    """((clusters, seeds) mean of the observations of each cell; nan where a cell is empty; no row is all nan,
    (clusters,) the number of each cluster's group)."""
    v = np.asarray(values, dtype=float).ravel()
    there = ~np.isnan(v)
    if not there.any():
        return np.empty((0, 0)), np.empty(0, dtype=int)
    if clusters is None and seeds is None and groups is None:
        return v[there][:, None], np.arange(int(there.sum()))
    rows = np.arange(len(v)) if clusters is None else _labels(clusters, len(v))
    columns = np.zeros(len(v), dtype=int) if seeds is None else _labels(seeds, len(v))
    row_names, first, row = np.unique(rows[there], return_index=True, return_inverse=True)
    column_names, column = np.unique(columns[there], return_inverse=True)
    shape = (len(row_names), len(column_names))
    cell = row * shape[1] + column
    count = np.bincount(cell, minlength=shape[0] * shape[1]).astype(float)
    total = np.bincount(cell, v[there], minlength=shape[0] * shape[1])
    table = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0).reshape(shape)
    if groups is None:
        return table, np.arange(shape[0])
    return table, np.unique(_labels(groups, len(v))[there][first], return_inverse=True)[1]


def _weights(clusters: int, seed: int, resamples: int) -> Iterator[Floats]:
    """Blocks of (resamples, clusters) multiplicities; small enough to stay in memory."""
    if clusters * resamples <= REMEMBERED:
        yield _remembered_weights(clusters, seed, resamples)
        return
    rng = np.random.default_rng(seed)
    block = max(1, min(resamples, 4_000_000 // max(clusters, 1)))
    for start in range(0, resamples, block):
        yield _multiplicities(rng, min(block, resamples - start), clusters)


REMEMBERED = 4_000_000  # numbers: a report draws the same prompts and pairs thousands of times


@functools.lru_cache(maxsize=4)  # of at most 32 MB each
def _remembered_weights(clusters: int, seed: int, resamples: int) -> Floats:
    weights = _multiplicities(np.random.default_rng(seed), resamples, clusters)
    weights.setflags(write=False)
    return weights


def _multiplicities(rng: np.random.Generator, rows: int, n: int) -> Floats:
    drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(float)


def _estimate(
    value: float, draws: Floats, n: int, bounds: Bounds | None, constant: bool, level: float = LEVEL
) -> Estimate:
    low, high = _interval(draws, value, n, bounds, constant, level)
    return Estimate(value, low, high, n)


def _interval(draws: Floats, value: float, n: int, bounds: Bounds | None, constant: bool, level: float) -> Bounds:
    """The expanded percentile interval of the draws; where all clusters agree, a bound on what n clusters could have missed.

    A bootstrap of equal values would claim certainty. But up to a share of 1 - (α/2)^(1/n) of all clusters may differ
    without one being drawn; at worst these lie at an end of the scale. (For a share of 0 or 1 this is
    Clopper-Pearson.)
    """
    if constant or n < 2:
        if bounds is not None:
            unseen = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / n)
            return value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value)
        return (value, value) if n > 1 else (math.nan, math.nan)
    draws = draws[~np.isnan(draws)]
    if len(draws) == 0:
        return math.nan, math.nan
    tail = _tail(n, level)
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    if bounds is not None:  # a widened draw may leave the scale
        low, high = max(float(low), bounds[0]), min(float(high), bounds[1])
    return float(min(low, value)), float(max(high, value))


@functools.lru_cache(maxsize=1024)
def _tail(n: int, level: float) -> float:
    """The share of draws below the interval, so that the interval of a normal sample's mean is Student's."""
    t = _scipy.t.ppf(0.5 + level / 2, n - 1) * math.sqrt(n / (n - 1))
    return float(_scipy.norm.cdf(-t))


def _same_shape(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    x, y = np.asarray(a, dtype=float).ravel(), np.asarray(b, dtype=float).ravel()
    if x.shape != y.shape:
        raise ValueError(f"paired arrays need the same length; got {len(x)} and {len(y)}")
    return x, y


def _labels(labels: ArrayLike, n: int) -> NDArray[Any]:
    as_array = np.asarray(labels).ravel()
    if len(as_array) != n:
        raise ValueError(f"one label per value is needed; got {len(as_array)} labels for {n} values")
    return as_array.astype(str) if as_array.dtype == object else as_array
