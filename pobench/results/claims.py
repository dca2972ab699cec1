"""What a claim is decided by: the evidence of the frames, statistics of it, and the rule of the verdict.

A claim says that the true value of a statistic lies in a range: above 0, or between two bounds. Its SMALLEST EFFECT OF
INTEREST is a quarter of the number that the paper itself prints for that statistic, chosen so before any run of ours; a claim
without such a number names it. Exactly one of seven verdicts:

    not measured     no run measures it
    not comparable   the losses did not have equal chances, see `equal_tuning`
    one run          a side has one training seed, whose luck no interval knows
    no effect        the whole interval lies within the smallest effect around "no difference"
    supported        the whole interval lies inside the claimed range, with three seeds or more on each side
    contradicted     the whole interval lies outside
    undecided        anything else: an interval that reaches over a bound, or two seeds

Intervals are 95 %, those of `pobench.results.contrast`. A line of several values of one setting is judged by all its points:
a TREND by the slope of a least-squares line (over logarithms, where all values are positive) times its range; a PEAK by the
best inner point against both ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats as _scipy

from pobench.registry import Claim
from pobench.results import stats
from pobench.results.arms import Arm, Line, arms_of, homes_of, judges_of, lines_of, of_arm
from pobench.results.contrast import MISSING, NO_SEED, POINTS, Contrast, Values, by_seed, contrast, prompt_groups
from pobench.results.crossed import VERDICT_SEEDS
from pobench.results.equal_tuning import equally_tuned
from pobench.types import Estimate

VERDICTS = ("supported", "contradicted", "no effect", "undecided", "one run", "not comparable", "not measured")
DECIDED = VERDICTS[:3]


class Measured(NamedTuple):
    """A statistic as these runs give it. arms: those that it compares; they must have had equal chances."""

    found: Contrast = MISSING
    arms: tuple[Arm, ...] = ()


UNMEASURED = Measured()
Measure = Callable[["Evidence"], Measured]


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


# ---------------------------------------------------------------- the evidence
@dataclass(frozen=True)
class Evidence:
    """The frames, and each arm's values by seed and by prompt or pair. frames that were not stored are None."""

    runs: pd.DataFrame
    heldout: pd.DataFrame | None = None
    answers: pd.DataFrame | None = None
    verdicts: pd.DataFrame | None = None
    trainpairs: pd.DataFrame | None = None
    benchmarks: pd.DataFrame | None = None
    lines: dict[tuple[str, str], Line] = field(init=False)
    homes: dict[str, Arm] = field(init=False)
    start: Arm | None = field(init=False)
    groups: pd.Series | None = field(init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "lines", {(line.loss, line.setting): line for line in lines_of(self.runs)})
        put(self, "homes", homes_of(self.runs))
        put(self, "start", next((arm for arm in arms_of(self.runs) if arm.is_start), None))
        put(self, "groups", prompt_groups(self.answers))

    def arm(self, loss: str) -> Arm | None:
        """The loss's arm with the setting's own values; `start`: the start model."""
        return self.start if loss == "start" else self.homes.get(loss)

    def comparable(self, measured: Measured) -> bool:
        """Whether all arms that are compared had equal chances."""
        arms = measured.arms
        return all(equally_tuned(self.runs, a, b) for i, a in enumerate(arms) for b in arms[:i])

    def line(self, loss: str, setting: str, points: int = 2) -> Line | None:
        """The loss's line along a setting, if it has at least this many points."""
        line = self.lines.get((loss, setting))
        return line if line is not None and len(line.points) >= points else None

    # -- values of an arm, in the unit that claims print

    def score(self, arm: Arm | None) -> Values:
        """The main judge's mean score of a prompt, in points (0 to 100)."""
        if self.verdicts is None or arm is None:
            return _NOTHING
        judged = self.verdicts[self.verdicts["judge"].isin(judges_of(self.verdicts)[:1])]
        return 100.0 * by_seed(of_arm(judged, arm), self.runs, "prompt", "score")

    def tokens(self, arm: Arm | None) -> Values:
        """The mean length of a prompt's answers."""
        return self._of_answers(arm, lambda rows: rows["tokens"])

    def repetition(self, arm: Arm | None) -> Values:
        """The share of a prompt's answers' 4-grams that stood earlier in the same answer, in %."""
        return 100.0 * self._of_answers(arm, lambda rows: rows["text"].map(repeated))

    def _of_answers(self, arm: Arm | None, value: Callable[[pd.DataFrame], pd.Series]) -> Values:
        rows = None if self.answers is None or arm is None else of_arm(self.answers, arm)
        return _values(rows, self.runs, "prompt", value)

    def pairs(self, arm: Arm | None, value: Callable[[pd.DataFrame], pd.Series], *, trained: bool = False) -> Values:
        """A number of every held-out pair, or of every training pair."""
        frame = self.trainpairs if trained else self.heldout
        rows = None if frame is None or arm is None else of_arm(frame, arm)
        return _values(rows, self.runs, "pair", value)

    def benchmark(self, loss: str, benchmark: str, metric: str) -> list[float]:
        """A benchmark's number for every run of the loss's arm, in its own unit."""
        arm = self.arm(loss)
        if self.benchmarks is None or arm is None:
            return []
        rows = of_arm(self.benchmarks, arm)
        rows = rows[(rows["benchmark"] == benchmark) & (rows["metric"] == metric)].dropna(subset=["value"])
        return [float(value) for value in rows.sort_values("run")["value"]]

    def cost(self, loss: str, column: str) -> pd.Series:
        """seed → a number of the `runs` frame, of the loss's arm."""
        arm = self.arm(loss)
        rows = self.runs.iloc[:0] if arm is None else of_arm(self.runs, arm)
        return pd.to_numeric(rows[column], errors="coerce").groupby(rows["seed"]).mean()

    # -- statistics

    def contrast(
        self, parts: Sequence[tuple[float, Values]], bounds: stats.Bounds | None = None, level: float = stats.LEVEL
    ) -> Contrast:
        """`contrast` over prompts in their groups; pairs have none."""
        return contrast(parts, bounds, self.groups, level)


_NOTHING: Values = pd.Series(dtype=float)


def _values(
    rows: pd.DataFrame | None, runs: pd.DataFrame, unit: str, value: Callable[[pd.DataFrame], pd.Series]
) -> Values:
    if rows is None or rows.empty:
        return _NOTHING
    return by_seed(rows.assign(value=value(rows).astype(float)), runs, unit, "value")


# ---------------------------------------------------------------- numbers of a pair or an answer
def accuracy(held: pd.DataFrame) -> pd.Series:
    """100 where the chosen answer has the higher reward, 50 for a tie, else 0."""
    return pd.Series(100 * stats.outcomes(held["chosen_reward"], held["rejected_reward"]), held.index)


def winner(held: pd.DataFrame) -> pd.Series:
    """The winner's log-probability, nats per token."""
    return held["chosen_logp"] / held["chosen_length"]


def kl(held: pd.DataFrame) -> pd.Series:
    """The winner's log-probability under the start model minus the policy's, nats per token."""
    return (held["reference_chosen_logp"] - held["chosen_logp"]) / held["chosen_length"]


def margin(held: pd.DataFrame) -> pd.Series:
    """Chosen minus rejected reward, in the loss's own unit."""
    return held["chosen_reward"] - held["rejected_reward"]


def disagreement(held: pd.DataFrame) -> pd.Series:
    """100 where the loss's reward and the log-probability per token rank the pair differently, else 0; nan without either."""
    reward = held["chosen_reward"] > held["rejected_reward"]
    likely = held["chosen_logp"] / held["chosen_length"] > held["rejected_logp"] / held["rejected_length"]
    known = held[["chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp"]].notna().all(axis=1)
    return (100.0 * (reward != likely)).where(known)


def repeated(text: object) -> float:
    """The share of 4-grams of case-folded words that stood earlier in the text; nan below four words."""
    words = str(text).casefold().split()
    grams = list(zip(*(words[i:] for i in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


# ---------------------------------------------------------------- statistics
Number = Callable[[Evidence, Arm], Values]


def score(e: Evidence, arm: Arm) -> Values:
    return e.score(arm)


def tokens(e: Evidence, arm: Arm) -> Values:
    return e.tokens(arm)


def held(value: Callable[[pd.DataFrame], pd.Series]) -> Number:
    """A number of every held-out pair."""
    return lambda e, arm: e.pairs(arm, value)


def trained(value: Callable[[pd.DataFrame], pd.Series]) -> Number:
    """A number of every training pair."""
    return lambda e, arm: e.pairs(arm, value, trained=True)


def gap(ours: str, theirs: str, number: Number = score, bounds: stats.Bounds | None = POINTS) -> Measure:
    """A loss's number minus another's."""

    def measure(e: Evidence) -> Measured:
        a, b = e.arm(ours), e.arm(theirs)
        return UNMEASURED if a is None or b is None else between(e, a, b, number, bounds)

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


def trend(loss: str, setting: str, number: Number = score, bounds: stats.Bounds | None = None) -> Measure:
    """What a least-squares line along a setting says that its largest value adds to its smallest."""

    def measure(e: Evidence) -> Measured:
        line = e.line(loss, setting)
        if line is None:
            return UNMEASURED
        parts = [
            (w, number(e, arm)) for w, (_, arm) in zip(slope([v for v, _ in line.points]), line.points, strict=True)
        ]
        return Measured(e.contrast(parts, bounds), tuple(arm for _, arm in line.points))

    return measure


def slope(values: Sequence[float]) -> list[float]:
    """The weights whose sum with numbers at these values is the rise of their least-squares line over the whole range."""
    x = np.asarray(values, dtype=float)
    x = np.log(x) if (x > 0).all() else x
    away = x - x.mean()
    return [float(w) for w in away / (away**2).sum() * (x.max() - x.min())]


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


Parts = Sequence[tuple[float, Values]]


def least(candidates: Sequence[Parts], e: Evidence, corrected: float = 1.0) -> Contrast:
    """The smallest of several contrasts. corrected: how many such minima are tried, for the lower end."""
    plain = [e.contrast(parts, POINTS, 1 - (1 - stats.LEVEL) / corrected) for parts in candidates]
    if any(found.estimate.n == 0 for found in plain):
        return MISSING
    upper = [e.contrast(parts, POINTS, 1 - (1 - stats.LEVEL) / len(plain)) for parts in candidates]
    smallest = min((found.estimate for found in plain), key=lambda estimate: estimate.value)
    low = float(np.min([found.estimate.low for found in plain]))
    high = float(np.min([found.estimate.high for found in upper]))
    seeds, runs = min(found.seeds for found in plain), max(found.runs for found in plain)
    return Contrast(Estimate(smallest.value, low, high, smallest.n), seeds, runs)


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
        return Measured(Contrast(estimate, best.seeds, best.runs), tuple(arm for _, arm in line.points))

    return measure


def rho_gap(ours: str, theirs: str) -> Measure:
    """Difference of two Spearman correlations of the winners' log-probability per token with their length."""

    def measure(e: Evidence) -> Measured:
        arms = [e.arm(ours), e.arm(theirs)]
        if None in arms or e.heldout is None:
            return UNMEASURED
        sides = [_by_run(of_arm(e.heldout, arm), e.runs) for arm in arms if arm is not None]
        if not all(sides):
            return UNMEASURED
        estimate, crossing = stats.spearman_contrast([(1.0, sides[0]), (-1.0, sides[1])])
        trained = [len(side) for side in sides if list(side) != [NO_SEED]]
        p = math.nan if crossing is None else crossing.p_value()
        found = Contrast(estimate, min(trained, default=0), sum(trained), crossing, p)
        return Measured(found, tuple(arm for arm in arms if arm is not None))

    return measure


def _by_run(rows: pd.DataFrame, runs: pd.DataFrame) -> dict[int, tuple[pd.Series, pd.Series]]:
    """seed → (lengths of winners, their log-probability per token), by pair."""
    seed_of = dict(zip(runs["run"], runs["seed"], strict=True))
    ordered = rows.assign(y=winner(rows)).sort_values("pair", kind="stable")
    return {int(seed_of[run]): (own["chosen_length"], own["y"]) for run, own in ordered.groupby("run", sort=True)}


def cost_ratio(ours: str, theirs: str, column: str) -> Measure:
    """A loss's cost over another's, seed by seed."""

    def measure(e: Evidence) -> Measured:
        ratios = (e.cost(ours, column) / e.cost(theirs, column)).replace([np.inf, -np.inf], np.nan).dropna()
        return Measured(Contrast(stats.student(ratios), len(ratios), 2 * len(ratios)))

    return measure


def benchmark_gap(ours: str, theirs: str, benchmark: str, metric: str) -> Measure:
    """A benchmark's number of a loss minus another's, run by run: Student's interval of the means over seeds (Welch)."""

    def measure(e: Evidence) -> Measured:
        a, b = e.benchmark(ours, benchmark, metric), e.benchmark(theirs, benchmark, metric)
        arms = tuple(arm for loss in (ours, theirs) if (arm := e.arm(loss)) is not None)
        return Measured(of_few(a, b, theirs == "start"), arms) if a and b else UNMEASURED

    return measure


def of_few(ours: Sequence[float], theirs: Sequence[float], fixed: bool) -> Contrast:
    """The difference of the means of few runs; fixed: theirs is the start model, which has no seeds."""
    value, seeds = float(np.mean(ours) - np.mean(theirs)), len(ours) if fixed else min(len(ours), len(theirs))
    runs = len(ours) + (0 if fixed else len(theirs))
    if seeds < 2:
        return Contrast(Estimate(value, math.nan, math.nan, seeds), seeds, runs)
    if fixed:
        interval = _scipy.ttest_1samp(ours, float(np.mean(theirs))).confidence_interval(stats.LEVEL)
        shift = float(np.mean(theirs))
        return Contrast(Estimate(value, float(interval.low) - shift, float(interval.high) - shift, seeds), seeds, runs)
    interval = _scipy.ttest_ind(ours, theirs, equal_var=False).confidence_interval(stats.LEVEL)
    return Contrast(Estimate(value, float(interval.low), float(interval.high), seeds), seeds, runs)
