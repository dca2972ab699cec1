"""Comparisons of arms: ONE estimate for gains, claims, "who beats whom" and every other difference between models.

The estimate is the mean over prompts (or held-out pairs) of a weighted sum of arms, such as ours - theirs, each arm's value
being its mean over seeds. The interval is that of `pobench.results.crossed` where every trained arm has two seeds or more.
With ONE RUN on a side the luck of training is unknown: the interval is the bootstrap over prompts, and nothing is decided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from pobench.results import stats
from pobench.results.arms import Arm, by_main_judge, of_arm
from pobench.results.crossed import VERDICT_SEEDS, Crossed, pool_seeds
from pobench.results.equal_tuning import equally_tuned
from pobench.results.groups import labels, prompt_groups
from pobench.types import Estimate

NO_SEED = -1  # of a start model, as in the frame `runs`

Values: TypeAlias = pd.Series  # an arm's numbers, index (seed, prompt or pair)


@dataclass(frozen=True)
class Contrast:
    """A comparison. seeds: the smallest number of seeds of its trained arms, 0 where none is trained; runs: of all of them.
    crossed: the sources of variance, None where the interval covers prompts only; most: the largest number of seeds."""

    estimate: Estimate
    seeds: int = 0
    runs: int = 0
    crossed: Crossed | None = None
    most: int = 0

    @property
    def p(self) -> float:
        """Two-sided, of "no difference"; nan where the interval covers prompts only."""
        return math.nan if self.crossed is None else self.crossed.p_value()

    @property
    def decides(self) -> bool:
        """Whether there are enough seeds for a verdict."""
        return self.seeds >= VERDICT_SEEDS


MISSING = Contrast(Estimate.missing())


def contrast(
    parts: Sequence[tuple[float, Values]],
    bounds: stats.Bounds | None = None,
    groups: pd.Series | None = None,
    level: float = stats.LEVEL,
) -> Contrast:
    """The mean over prompts of Σ weight × value, over the prompts that all parts have.

    parts: (weight, values) of each arm; values: index (seed, prompt). Trained arms with the same seeds are paired by seed, so
    that what a seed does to all cancels; otherwise each brings the luck of its own seeds. groups: prompt → what it shares with
    other prompts, see `pobench.results.groups`. Missing where a part is empty or no prompt is shared.
    """
    if any(values.dropna().empty for _, values in parts):
        return MISSING
    tables = [(weight, _table(values)) for weight, values in parts]
    prompts = sorted(set.intersection(*(set(table.index) for _, table in tables)))
    if not prompts:
        return MISSING
    tables = [(weight, table.loc[prompts]) for weight, table in tables]
    trained = [table for _, table in tables if tuple(table.columns) != (NO_SEED,)]
    counts = [table.shape[1] for table in trained] or [0]
    seeds, runs, most = min(counts), sum(counts), max(counts)
    of_prompts = labels(pd.Series(prompts, dtype=object), groups)
    group = None if of_prompts is None else np.unique(of_prompts.astype(str), return_inverse=True)[1]
    if seeds < 2:
        means = sum(weight * table.mean(axis=1).to_numpy() for weight, table in tables)
        return Contrast(stats.mean(means, groups=group, bounds=bounds, level=level), seeds, runs, most=most)
    estimate, found = stats.of_tables(_paired(tables), group, bounds, level)
    return Contrast(estimate, seeds, runs, found, most)


def compare(
    ours: Values, theirs: Values, bounds: stats.Bounds | None = None, groups: pd.Series | None = None
) -> Contrast:
    """The mean of ours - theirs, see `contrast`."""
    return contrast([(1.0, ours), (-1.0, theirs)], bounds, groups)


def _table(values: Values) -> pd.DataFrame:
    """(prompts × seeds), without prompts that have no number."""
    return values.astype(float).dropna().unstack(level=0)


def _paired(tables: Sequence[tuple[float, pd.DataFrame]]) -> list[tuple[float, np.ndarray]]:
    """One table of the weighted sum where all trained arms have the same seeds, and each prompt a seed with all parts;
    else each arm's table by itself."""
    trained = [set(table.columns) for _, table in tables if tuple(table.columns) != (NO_SEED,)]
    if any(seeds != trained[0] for seeds in trained):
        return [(weight, table.to_numpy()) for weight, table in tables]
    columns = sorted(trained[0])
    arrays = [table.to_numpy() if NO_SEED in table else table[columns].to_numpy() for _, table in tables]
    together = sum(weight * array for (weight, _), array in zip(tables, arrays, strict=True))
    if np.isnan(together).all(axis=1).any():  # a prompt of which no seed has all parts
        return [(weight, table.to_numpy()) for weight, table in tables]
    return [(1.0, np.asarray(together))]


# ---------------------------------------------------------------- values of arms
def scores(verdicts: pd.DataFrame, runs: pd.DataFrame, arm: Arm) -> Values:
    """The main judge's mean score of each prompt, over its samples, in [0, 1]."""
    own = of_arm(by_main_judge(verdicts, verdicts), arm)
    return by_seed(own, runs, "prompt", "score")


def met(comparisons: pd.DataFrame | None, verdicts: pd.DataFrame, ours: Arm, theirs: Arm) -> pd.DataFrame:
    """The main judge's verdicts on both arms' answers, side by side, each as one on ours; no row where there is none."""
    if comparisons is None or comparisons.empty:
        return pd.DataFrame(columns=["run", "prompt", "sample", "score"])
    rows = by_main_judge(comparisons, verdicts)
    forth = rows[rows["run"].isin(ours.runs) & rows["opponent"].isin(theirs.runs)]
    back = rows[rows["run"].isin(theirs.runs) & rows["opponent"].isin(ours.runs)]
    orders = {"forward": 1.0 - back["backward"], "backward": 1.0 - back["forward"]}
    return pd.concat([forth, back.assign(run=back["opponent"], score=1.0 - back["score"], **orders)])


def by_seed(rows: pd.DataFrame, runs: pd.DataFrame, unit: str, column: str) -> Values:
    """The mean of a column for each seed and each `unit` (`prompt` or `pair`), without those that have none."""
    seed_of = dict(zip(runs["run"], runs["seed"], strict=True))
    seed = rows["run"].map(seed_of).astype(int).rename("seed")
    numbers = pd.to_numeric(rows[column], errors="coerce").astype(float)
    means: pd.Series = numbers.groupby([seed, rows[unit]], sort=True).mean().dropna()
    return means


# ---------------------------------------------------------------- every pair of arms
class Pair(NamedTuple):
    """Two judged arms, the better by its mean first. gap: `difference`, in points; comparable: whether they had equal chances,
    see `equal_tuning`; p: after Holm's correction over all pairs that may have a verdict, nan for the others; direct: whether a
    judge saw both answers beside each other; tested: the gap with the variance of seeds on which p rests, see `pool_seeds`."""

    ours: Arm
    theirs: Arm
    gap: Contrast
    comparable: bool
    p: float = math.nan
    direct: bool = False
    tested: Crossed | None = None

    @property
    def in_order(self) -> tuple[Arm, Arm]:
        """The two, the better by their gap first: a judge may prefer the one whose mean is lower."""
        return (self.theirs, self.ours) if self.gap.estimate.value < 0 else (self.ours, self.theirs)

    @property
    def decides(self) -> bool:
        """Whether a verdict is possible: equal chances, and enough seeds."""
        return self.comparable and self.gap.decides

    @property
    def differs(self) -> bool:
        """Whether they differ by more than chance: corrected for all pairs, and by the pair's own interval."""
        return self.p < 1 - stats.LEVEL and stats.excludes(self.gap.estimate)


POINTS = (-100.0, 100.0)  # ends of a difference of two scores, in points


def difference(
    ours: Values, theirs: Values, won: Values, groups: pd.Series | None = None, level: float = stats.LEVEL
) -> Contrast:
    """Ours - theirs, in points. ours, theirs: `scores`. won: ours' scores of `met`, the same way.

    Where answers met, by how much ours' win rate over theirs exceeds a half; elsewhere the difference of the mean scores, which
    for a judge that compares are win rates over the start model.
    """
    if len(won):
        return contrast([(50.0, won), (-50.0, 1.0 - won)], (-50.0, 50.0), groups, level)
    return contrast([(100.0, ours), (-100.0, theirs)], POINTS, groups, level)


def all_pairs(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None,
    arms: Sequence[Arm],
    comparisons: pd.DataFrame | None = None,
) -> list[Pair]:
    """Every pair of the judged arms, by their means from the best to the worst."""
    values = {arm: scores(verdicts, runs, arm) for arm in arms}
    judged = [arm for arm in arms if len(values[arm])]
    judged.sort(key=lambda arm: -values[arm].groupby(level=1).mean().mean())
    groups = prompt_groups(answers)
    pairs = []
    for a, b in combinations(judged, 2):
        won = by_seed(met(comparisons, verdicts, a, b), runs, "prompt", "score")
        gap = difference(values[a], values[b], won, groups)
        pairs.append(Pair(a, b, gap, equally_tuned(runs, a, b), direct=len(won) > 0))
    return _corrected(pairs)


def gains(runs: pd.DataFrame, verdicts: pd.DataFrame, answers: pd.DataFrame | None, arms: Sequence[Arm]) -> list[Pair]:
    """Every trained arm against the start model, from the largest gain to the smallest; [] where there is no start model."""
    start = next((arm for arm in arms if arm.is_start), None)
    theirs = pd.Series(dtype=float) if start is None else 100 * scores(verdicts, runs, start)
    if start is None or theirs.empty:
        return []
    groups = prompt_groups(answers)
    trained = [arm for arm in arms if not arm.is_start]
    found = [
        Pair(arm, start, compare(100 * scores(verdicts, runs, arm), theirs, POINTS, groups), True) for arm in trained
    ]
    measured = [pair for pair in found if pair.gap.estimate.n]
    return _corrected(sorted(measured, key=lambda pair: (-pair.gap.estimate.value, pair.ours.label)))


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with Holm's correction over those that may have a verdict."""
    own = [pair.gap.crossed if pair.decides else None for pair in pairs]
    sides = [tuple(None if arm.is_start else arm.id for arm in (pair.ours, pair.theirs)) for pair in pairs]
    family = [(found, names) for found, names in zip(own, sides, strict=True) if found is not None]
    lent = iter(pool_seeds([found for found, _ in family], [names for _, names in family]))
    tested = [None if found is None else next(lent) for found in own]
    p = stats.holm([math.nan if found is None else found.p_value() for found in tested])
    return [pair._replace(p=float(q), tested=found) for pair, found, q in zip(pairs, tested, p, strict=True)]
