"""What a claim is decided by: the rule of the verdict, and statistics of the evidence.

A claim says that the true value of a statistic lies in a range: above 0, or between two bounds. Its SMALLEST EFFECT OF
INTEREST is a quarter of the number that the paper itself prints for that statistic, chosen so before any run of ours; a claim
without such a number names it. Exactly one of seven verdicts:

    not measured     no run measures it
    not comparable   the losses did not have equal chances, see `equal_tuning`, or differ in more than the claim names
    one run          a side has one training seed, whose luck no interval knows
    no effect        the whole interval lies within the smallest effect around "no difference"
    supported        the whole interval lies inside the claimed range, with three seeds or more on each side
    contradicted     the whole interval lies outside
    undecided        anything else: an interval that reaches over a bound, or two seeds

Intervals are 95 %, those of `pobench.results.contrast`. A line of several values of one setting is judged by all its points:
a TREND by the slope of a least-squares line (over logarithms, where all values are positive) times its range; a PEAK by the
best inner point against both ends. Benchmarks and costs have one number a run: `pobench.results.few_runs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats as _scipy

from pobench.registry import Claim
from pobench.results import stats
from pobench.results.arms import Arm, Line
from pobench.results.contrast import MISSING, NO_SEED, POINTS, Contrast, Values
from pobench.results.crossed import VERDICT_SEEDS
from pobench.results.equal_tuning import equally_tuned
from pobench.results.evidence import UNMEASURED, Evidence, Measure, Measured, Number, score, tokens
from pobench.results.groups import prompts_of
from pobench.results.pair_values import winner
from pobench.types import Estimate

VERDICTS = ("supported", "contradicted", "no effect", "undecided", "one run", "not comparable", "not measured")
DECIDED = VERDICTS[:3]


# ---------------------------------------------------------------- the rule
def verdict(claim: Claim, measured: Measured, comparable: bool) -> str:
    """One of `VERDICTS`; see the module."""
    ours, seeds = measured.found.estimate, measured.found.seeds
    if ours.n == 0 or math.isnan(ours.value):
        return "not measured"
    if not comparable:
        return "not comparable"
    if seeds == 1:
        return "one run"
    if seeds < VERDICT_SEEDS or math.isnan(ours.low):
        return "undecided"
    small = claim.neutral - claim.smallest < ours.low and ours.high < claim.neutral + claim.smallest
    if small and not (claim.above < claim.neutral < claim.below):
        return "no effect"
    if ours.low > claim.above and ours.high < claim.below:
        return "supported"
    # an interval that only touches the bound, as when a single pair differs, decides nothing
    if ours.high < claim.above or ours.low > claim.below:
        return "contradicted"
    return "undecided"


def power(claim: Claim, measured: Measured) -> float:
    """The probability that these runs would support the claim if the paper's effect were the true one (its smallest effect,
    where the paper prints none). nan for a claim that something lies between two bounds, and without an interval."""
    if claim.above > -math.inf and claim.below < math.inf:
        return math.nan
    bound = claim.above if claim.above > -math.inf else claim.below
    sign = 1.0 if claim.above > -math.inf else -1.0
    effect = claim.neutral + sign * claim.smallest if claim.paper is None else claim.paper
    distance = sign * (effect - bound)
    if measured.found.crossed is not None:
        return measured.found.crossed.power(distance) if distance > 0 else 0.0
    ours, z = measured.found.estimate, float(_scipy.norm.ppf(0.5 + stats.LEVEL / 2))
    half = (ours.high - ours.low) / 2
    if math.isnan(half) or measured.found.seeds < VERDICT_SEEDS:
        return math.nan
    return float(_scipy.norm.sf(z * (1 - distance / half))) if half > 0 else math.nan


# ---------------------------------------------------------------- differences and levels
QUALITY = (
    1.6  # points: the smallest effect where the paper prints none; a quarter of what SimPO gains over DPO in Table 10
)

Parts = Sequence[tuple[float, Values]]


def gap(
    ours: str, theirs: str, number: Number = score, bounds: stats.Bounds | None = POINTS, *, same: Sequence[str] = ()
) -> Measure:
    """A loss's number minus another's. same: settings that both must share, unless both were tuned."""

    def measure(e: Evidence) -> Measured:
        a, b = e.arm(ours), e.arm(theirs)
        if a is None or b is None:
            return UNMEASURED
        return between(e, a, b, number, bounds)._replace(alike=not same or e.alike(a, b, same))

    return measure


def between(
    e: Evidence, ours: Arm, theirs: Arm, number: Number = score, bounds: stats.Bounds | None = POINTS
) -> Measured:
    """An arm's number minus another's."""
    found = e.contrast([(1.0, number(e, ours)), (-1.0, number(e, theirs))], bounds)
    return Measured(found, (ours, theirs))


def level(loss: str, number: Number, bounds: stats.Bounds | None = None) -> Measure:
    """A loss's number itself."""

    def measure(e: Evidence) -> Measured:
        arm = e.arm(loss)
        return UNMEASURED if arm is None else Measured(e.contrast([(1.0, number(e, arm))], bounds), (arm,))

    return measure


def percent_more(ours: str, theirs: str, number: Number) -> Measure:
    """By how many per cent the mean of a loss's number exceeds another's.

    The interval is that of `number - ratio × other's number`, divided by the other's mean (the delta method).
    """

    def measure(e: Evidence) -> Measured:
        a, b = e.arm(ours), e.arm(theirs)
        if a is None or b is None:
            return UNMEASURED
        first, second = number(e, a), number(e, b)
        shared = first.index.unique(level=1).intersection(second.index.unique(level=1)) if len(first) else []
        if not len(second) or not len(shared):
            return UNMEASURED
        mean, other = (values.groupby(level=1).mean().loc[shared].mean() for values in (first, second))
        found = e.contrast([(100.0 / other, first), (-100.0 * mean / other**2, second)])
        return Measured(_shifted(found, 100.0 * (mean / other - 1.0) - found.estimate.value), (a, b))

    return measure


def _shifted(found: Contrast, by: float) -> Contrast:
    value, low, high = (getattr(found.estimate, name) + by for name in ("value", "low", "high"))
    return replace(found, estimate=Estimate(value, low, high, found.estimate.n))


def only_where(measure: Measure, condition: Callable[[Evidence], bool]) -> Measure:
    """A statistic of those runs that a claim is about; not measured on others."""
    return lambda e: measure(e) if condition(e) else UNMEASURED


def smallest_gap(loss: str, rivals: Sequence[str], number: Number = score) -> Measure:
    """A loss's number minus that of its best rival, of those that were run with equal chances.

    Supported only if each rival supports it (an intersection-union test, which needs no correction), contradicted only if one
    does so after Bonferroni's correction.
    """

    def measure(e: Evidence) -> Measured:
        ours = e.arm(loss)
        others = [arm for rival in rivals if (arm := e.arm(rival)) and len(number(e, arm))]
        others = [arm for arm in others if ours is not None and equally_tuned(e.runs, ours, arm)]
        if ours is None or not others:
            return UNMEASURED
        return Measured(least([[(1.0, number(e, ours)), (-1.0, number(e, other))] for other in others], e), (ours,))

    return measure


def smallest_gain(losses: Sequence[str], number: Number = score) -> Measure:
    """What the start model's number grows by under the loss that adds least to it."""

    def measure(e: Evidence) -> Measured:
        arms = [arm for loss in losses if (arm := e.arm(loss)) and len(number(e, arm))]
        if e.start is None or not arms:
            return UNMEASURED
        theirs = number(e, e.start)
        return Measured(least([[(1.0, number(e, arm)), (-1.0, theirs)] for arm in arms], e))

    return measure


def least(
    candidates: Sequence[Parts], e: Evidence, corrected: float = 1.0, bounds: stats.Bounds | None = POINTS
) -> Contrast:
    """The smallest of several contrasts. corrected: how many such minima are tried, for the lower end."""
    plain = [e.contrast(parts, bounds, 1 - (1 - stats.LEVEL) / corrected) for parts in candidates]
    if any(found.estimate.n == 0 for found in plain):
        return MISSING
    upper = [e.contrast(parts, bounds, 1 - (1 - stats.LEVEL) / len(plain)) for parts in candidates]
    smallest = min((found.estimate for found in plain), key=lambda estimate: estimate.value)
    low = float(np.min([found.estimate.low for found in plain]))
    high = float(np.min([found.estimate.high for found in upper]))
    seeds, runs = min(found.seeds for found in plain), max(found.runs for found in plain)
    return Contrast(Estimate(smallest.value, low, high, smallest.n), seeds, runs, most=max(f.most for f in plain))


# ---------------------------------------------------------------- lines
def trend(
    loss: str, setting: str, number: Number = score, bounds: stats.Bounds | None = None, *, upto: float | None = None
) -> Measure:
    """What a least-squares line along a setting says that its largest value adds to its smallest.

    upto: only from the loss's own value to this multiple of it.
    """

    def measure(e: Evidence) -> Measured:
        line = e.line(loss, setting) if upto is None else upward(e, loss, setting, upto)
        if line is None:
            return UNMEASURED
        return Measured(e.contrast(along(e, line, number), bounds), tuple(arm for _, arm in line.points))

    return measure


def upward(e: Evidence, loss: str, setting: str, upto: float) -> Line | None:
    """The loss's line from its home's value to `upto` times that; None where the home stands on none, or is its only point."""
    line, home = e.line(loss, setting), e.arm(loss)
    own = next((value for value, arm in line.points if arm == home), None) if line else None
    if line is None or own is None:
        return None
    points = tuple((value, arm) for value, arm in line.points if own <= value <= own * upto * (1 + 1e-9))
    return line._replace(points=points) if len(points) > 1 else None


def along(e: Evidence, line: Line, number: Number) -> list[tuple[float, Values]]:
    """The parts of a line's trend."""
    weights = slope([value for value, _ in line.points])
    return [(w, number(e, arm)) for w, (_, arm) in zip(weights, line.points, strict=True)]


def slope(values: Sequence[float]) -> list[float]:
    """The weights whose sum with numbers at these values is the rise of their least-squares line over the whole range."""
    x = np.asarray(values, dtype=float)
    x = np.log(x) if (x > 0).all() else x
    away = x - x.mean()
    return [float(w) for w in away / (away**2).sum() * (x.max() - x.min())]


def tenfold_gap(ours: str, theirs: str, setting: str, number: Number) -> Measure:
    """What a tenfold setting adds to a loss's number, by its line over the setting's logarithm, minus the same of another's."""

    def measure(e: Evidence) -> Measured:
        lines, homes = [e.line(loss, setting) for loss in (ours, theirs)], [e.arm(loss) for loss in (ours, theirs)]
        parts: list[tuple[float, Values]] = []
        for sign, line in zip((1.0, -1.0), lines, strict=True):
            if line is None or line.points[0][0] <= 0:
                return UNMEASURED
            decades = np.log10(line.points[-1][0] / line.points[0][0])
            parts += [(sign * weight / decades, values) for weight, values in along(e, line, number)]
        return Measured(e.contrast(parts), tuple(arm for arm in homes if arm is not None))

    return measure


def peak(loss: str, setting: str, number: Number = score) -> Measure:
    """The best inner point of a line minus the better of its ends. That the best was picked is corrected (Bonferroni)."""

    def measure(e: Evidence) -> Measured:
        line = e.line(loss, setting, points=3)
        if line is None:
            return UNMEASURED
        ends = [number(e, arm) for arm in line.ends]
        inner = [number(e, arm) for _, arm in line.points[1:-1]]
        tried = [least([[(1.0, own), (-1.0, end)] for end in ends], e, len(inner)) for own in inner]
        if any(found.estimate.n == 0 for found in tried):
            return UNMEASURED
        best = max(tried, key=lambda found: found.estimate.value)
        low, high = (float(np.max([getattr(found.estimate, end) for found in tried])) for end in ("low", "high"))
        estimate = Estimate(best.estimate.value, low, high, best.estimate.n)
        return Measured(replace(best, estimate=estimate), tuple(arm for _, arm in line.points))

    return measure


# ---------------------------------------------------------------- over methods
def share_by_length(losses: Sequence[str], number: Number = score) -> Measure:
    """What a least-squares line over the losses' mean lengths says that the longest answers add to the shortest, in % of the
    distance from the best loss to the worst. Lengths and that distance are taken as known."""

    def measure(e: Evidence) -> Measured:
        arms = [arm for arm in e.peers(losses, number) if len(tokens(e, arm))]
        if len(arms) < 4:
            return UNMEASURED
        values = [number(e, arm) for arm in arms]
        spread = np.ptp([v.groupby(level=1).mean().mean() for v in values])
        weights = slope([tokens(e, arm).groupby(level=1).mean().mean() for arm in arms])
        if not spread > 0 or not np.isfinite(weights).all():
            return UNMEASURED
        return Measured(e.contrast([(100 * w / spread, v) for w, v in zip(weights, values, strict=True)]), tuple(arms))

    return measure


# ---------------------------------------------------------------- rank correlations
Ranked = Callable[[Evidence, Arm], dict[int, tuple[pd.Series, pd.Series]]]  # seed → two numbers by pair, in one order


def likelihood_and_length(e: Evidence, arm: Arm) -> dict[int, tuple[pd.Series, pd.Series]]:
    """Of held-out winners: their length, and their log-probability per token."""
    rows = e.rows("heldout", arm)
    return {} if rows.empty else _by_seed(e, rows.assign(y=winner(rows)))


def pull_and_length(e: Evidence, arm: Arm) -> dict[int, tuple[pd.Series, pd.Series]]:
    """Of held-out winners: their length, and the size of the loss's derivative by their log-probability."""
    rows = e.rows("gradients", arm)
    return {} if rows.empty else _by_seed(e, rows.assign(y=rows["chosen_weight"].abs()))


def _by_seed(e: Evidence, rows: pd.DataFrame) -> dict[int, tuple[pd.Series, pd.Series]]:
    seed_of = dict(zip(e.runs["run"], e.runs["seed"], strict=True))
    ordered = rows.sort_values("pair", kind="stable").set_index("pair")
    return {int(seed_of[run]): (own["chosen_length"], own["y"]) for run, own in ordered.groupby("run", sort=True)}


def rho_gap(ours: str, theirs: str, ranked: Ranked = likelihood_and_length) -> Measure:
    """Difference of two Spearman correlations, each the mean over its seeds."""

    def measure(e: Evidence) -> Measured:
        arms = [arm for loss in (ours, theirs) if (arm := e.arm(loss)) is not None]
        sides = [ranked(e, arm) for arm in arms]
        if len(arms) < 2 or not all(sides):
            return UNMEASURED
        first = next(iter(sides[0].values()))[0]
        groups = prompts_of(first.index.to_series())
        estimate, crossing = stats.spearman_contrast([(1.0, sides[0]), (-1.0, sides[1])], groups)
        trained = [len(side) for side in sides if list(side) != [NO_SEED]]
        found = Contrast(estimate, min(trained, default=0), sum(trained), crossing, max(trained, default=0))
        return Measured(found, tuple(arms))

    return measure
