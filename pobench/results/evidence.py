"""What claims are decided from: the frames of runs that may be compared, each arm's numbers, and a statistic with its arms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, TypeVar

import pandas as pd

from pobench.results import stats
from pobench.results.arms import Arm, Line, arms_of, homes_of, judges_of, lines_of, of_arm, settings_of
from pobench.results.contrast import MISSING, Contrast, Values, by_seed, contrast
from pobench.results.equal_tuning import equally_tuned, values_of
from pobench.results.groups import pair_groups, prompt_groups, question_groups
from pobench.results.pair_values import OfRows
from pobench.results.rows import Frame, Rows


class Measured(NamedTuple):
    """A statistic as these runs give it. arms: those that it compares, which must have had equal chances. alike: False where
    they differ in more than the claim names. remark: what readers must know of the interval, "" if nothing."""

    found: Contrast = MISSING
    arms: tuple[Arm, ...] = ()
    alike: bool = True
    remark: str = ""


HELD = 32  # arms whose rows of a frame are held at a time, where they are read one by one
UNMEASURED = Measured()
Measure: TypeAlias = Callable[["Evidence"], Measured]
Number: TypeAlias = Callable[["Evidence", Arm], Values]
T = TypeVar("T")


@dataclass(frozen=True)
class Evidence:
    """The frames of one group of runs that may be compared, and each arm's values by seed and by prompt or pair. Frames that
    were not stored are None."""

    runs: pd.DataFrame
    heldout: Frame | None = None
    answers: Frame | None = None
    verdicts: Frame | None = None
    trainpairs: Frame | None = None
    benchmarks: pd.DataFrame | None = None
    gradients: Frame | None = None
    questions: pd.DataFrame | None = None
    lines: dict[tuple[str, str], Line] = field(init=False)
    homes: dict[str, Arm] = field(init=False)
    start: Arm | None = field(init=False)
    groups: pd.Series | None = field(init=False)
    _known: dict[tuple[str, str], Any] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "lines", {(line.loss, line.setting): line for line in lines_of(self.runs)})
        put(self, "homes", homes_of(self.runs))
        put(self, "start", next((arm for arm in arms_of(self.runs) if arm.is_start), None))
        put(self, "groups", prompt_groups(self.answers))

    @cached_property
    def judges(self) -> list[str]:
        """By name, the main one first."""
        return [] if self.verdicts is None else judges_of(self.verdicts)

    # -- arms

    @property
    def setting(self) -> str:
        """The setting of these runs."""
        return str(self.runs["setting"].iloc[0])

    def arm(self, loss: str) -> Arm | None:
        """The loss's arm with the setting's own values; `start`: the start model."""
        return self.start if loss == "start" else self.homes.get(loss)

    def line(self, loss: str, setting: str, points: int = 2) -> Line | None:
        """The loss's line along a setting, if it has at least this many points."""
        line = self.lines.get((loss, setting))
        return line if line is not None and len(line.points) >= points else None

    def comparable(self, measured: Measured) -> bool:
        """Whether all arms that are compared had equal chances, and differ in nothing but what the claim names."""
        arms = measured.arms
        return measured.alike and all(equally_tuned(self.runs, a, b) for i, a in enumerate(arms) for b in arms[:i])

    def alike(self, a: Arm, b: Arm, settings: Sequence[str]) -> bool:
        """Whether two arms share the values of these settings, or were both tuned."""
        if all(values_of(self.runs, arm).startswith("tuned") for arm in (a, b)):
            return True
        ours, theirs = (settings_of(of_arm(self.runs, arm).iloc[0]) for arm in (a, b))
        return all(ours.get(name) == theirs.get(name) for name in settings)

    def peers(self, losses: Sequence[str], number: Number) -> list[Arm]:
        """The arms of these losses that have the number, all with equal chances: the largest such group."""
        arms = [arm for loss in losses if (arm := self.arm(loss)) is not None and len(number(self, arm))]
        return max(([b for b in arms if equally_tuned(self.runs, a, b)] for a in arms), key=len, default=[])

    # -- values of an arm, in the unit that claims print

    def rows(self, frame: str, arm: Arm | None) -> pd.DataFrame:
        """The arm's rows of a frame; none where the frame is not stored."""
        stored: Frame | None = getattr(self, frame)
        if stored is None or arm is None:
            return pd.DataFrame()
        if isinstance(stored, Rows):  # of many arms, more than fits into memory
            held = [key for key in self._known if key[0] == f"rows of {frame}"]
            for key in held[:-HELD]:
                del self._known[key]
        return self._once(f"rows of {frame}", arm, lambda: of_arm(stored, arm))

    def score(self, arm: Arm | None) -> Values:
        """The main judge's mean score of a prompt, in points (0 to 100)."""

        def mean() -> Values:
            own = self.rows("verdicts", arm)
            return 100.0 * by_seed(own[own["judge"].isin(self.judges[:1])], self.runs, "prompt", "score")

        return NOTHING if arm is None or self.verdicts is None else self._once("score", arm, mean)

    def answer(self, arm: Arm | None, column: str, scale: float = 1.0) -> Values:
        """The mean of a column, times `scale`, over a prompt's answers. No other column is read."""
        stored = self.answers
        if arm is None or stored is None:
            return NOTHING

        def mean() -> Values:
            rows = stored.of(arm.runs, ["prompt", column]) if isinstance(stored, Rows) else of_arm(stored, arm)
            return _values(rows, self.runs, "prompt", lambda own: scale * own[column])

        return self._once(column, arm, mean)

    def pairs(self, arm: Arm | None, value: OfRows, *, trained: bool = False) -> Values:
        """A number of every held-out pair, or of every training pair."""
        return _values(self.rows("trainpairs" if trained else "heldout", arm), self.runs, "pair", value)

    def benchmark(self, arm: Arm | None, benchmark: str, metric: str) -> pd.Series:
        """run → a benchmark's number, in its own unit; of several judges, of the first by name."""
        rows = self.rows("benchmarks", arm)
        if arm is None or rows.empty:
            return NOTHING

        def numbers() -> pd.Series:
            known = of_metric(rows, benchmark, metric).dropna(subset=["value"])
            return known.set_index("run")["value"].astype(float).sort_index()

        return self._once(f"{metric} of {benchmark}", arm, numbers)

    def by_question(self, arm: Arm | None, benchmark: str, metric: str) -> Values:
        """The same, seed by seed and question by question. The mean over a run's questions is its number: a question that
        counts more than others stands further from it. Nothing where not every run has its questions."""
        rows = self.rows("questions", arm)
        if arm is None or rows.empty:
            return NOTHING
        rows = of_metric(rows, benchmark, metric).dropna(subset=["score"])
        rows = rows[rows["weight"] > 0]
        if set(rows["run"]) != set(self.benchmark(arm, benchmark, metric).index):
            return NOTHING
        of_run = rows.assign(sum=rows["score"] * rows["weight"]).groupby("run")[["sum", "weight"]].transform("sum")
        number, weight = (
            of_run["sum"] / of_run["weight"],
            rows["weight"] / rows.groupby("run")["weight"].transform("mean"),
        )
        return by_seed(rows.assign(value=number + weight * (rows["score"] - number)), self.runs, "question", "value")

    def question_groups(self, benchmark: str, metric: str) -> pd.Series | None:
        """question → the passage that it shares with others, see `question_groups`."""
        return None if self.questions is None else question_groups(of_metric(self.questions, benchmark, metric))

    def _once(self, name: str, arm: Arm, make: Callable[[], T]) -> T:
        key = (name, arm.id)
        if key not in self._known:
            self._known[key] = make()
        known: T = self._known[key]
        return known

    # -- statistics

    def contrast(
        self, parts: Sequence[tuple[float, Values]], bounds: stats.Bounds | None = None, level: float = stats.LEVEL
    ) -> Contrast:
        """`contrast` over prompts, or over pairs, in their groups."""
        _, first = parts[0]
        of_pairs = first.index.names[-1] == "pair"
        groups = pair_groups(first.index.get_level_values("pair")) if of_pairs else self.groups
        return contrast(parts, bounds, groups, level)


NOTHING: Values = pd.Series(dtype=float)


def of_metric(rows: pd.DataFrame, benchmark: str, metric: str) -> pd.DataFrame:
    """The rows of a benchmark's metric, in `benchmarks` or `questions`; of several judges, of the first by name."""
    if rows.empty:
        return rows
    rows = rows[(rows["benchmark"] == benchmark) & (rows["metric"] == metric)]
    judge = rows["judge"].fillna("").astype(str)
    return rows[judge == judge.min()]


def _values(rows: pd.DataFrame, runs: pd.DataFrame, unit: str, value: OfRows) -> Values:
    return NOTHING if rows.empty else by_seed(rows.assign(value=value(rows).astype(float)), runs, unit, "value")


# ---------------------------------------------------------------- an arm's numbers
def score(e: Evidence, arm: Arm) -> Values:
    """Points of a prompt."""
    return e.score(arm)


def tokens(e: Evidence, arm: Arm) -> Values:
    """Tokens of a prompt's answers."""
    return e.answer(arm, "tokens")


def characters(e: Evidence, arm: Arm) -> Values:
    """Characters of a prompt's answers."""
    return e.answer(arm, "characters")


def repetition(e: Evidence, arm: Arm) -> Values:
    """The share of a prompt's answers' 4-grams that stood earlier in the same answer, in %."""
    return e.answer(arm, "repeated", 100.0)


def held(value: OfRows) -> Number:
    """A number of every held-out pair."""
    return lambda e, arm: e.pairs(arm, value)


def trained(value: OfRows) -> Number:
    """A number of every training pair."""
    return lambda e, arm: e.pairs(arm, value, trained=True)
