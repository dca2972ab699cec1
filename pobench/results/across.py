"""Statistics that compare settings: the same losses from another start model, or on pairs that another ranker chose.

Runs of two settings are two groups, each compared within itself. Between groups only scores of the same prompts by the same
judge are compared, and only those of a judge that grades each answer by itself: a judge that sets every answer beside the
start model's has another measure in every setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from pobench.columns import FRAMES
from pobench.results.arms import Arm, main_judge
from pobench.results.comparable import groups_of
from pobench.results.contrast import Values
from pobench.results.equal_tuning import equally_tuned
from pobench.results.evidence import UNMEASURED, Evidence, Measured
from pobench.results.rows import Frame, Rows

FRAMES_OF_EVIDENCE = ("heldout", "answers", "verdicts", "trainpairs", "benchmarks", "questions")


@dataclass(frozen=True)
class Settings:
    """The evidence of every group of runs, by setting. Where a setting has several groups (protocols, start models), the one
    with the most runs."""

    groups: Mapping[str, Evidence]

    @classmethod
    def of(cls, runs: pd.DataFrame, frames: Mapping[str, Frame | None]) -> Settings:
        """runs: of all settings. frames: those of `FRAMES_OF_EVIDENCE`, where they are stored."""
        groups: dict[str, Evidence] = {}
        for (setting, *_), members in groups_of(runs[runs["status"] == "finished"]):
            if setting in groups and len(members) <= len(groups[setting].runs):
                continue
            own = {name: None if frame is None else _of_runs(frame, members["run"]) for name, frame in frames.items()}
            groups[setting] = Evidence(members, **own)
        return cls(groups)

    def comparable(self, measured: Measured) -> bool:
        """Whether arms of different settings had equal chances."""
        runs, arms = pd.concat([e.runs for e in self.groups.values()]), measured.arms
        return all(equally_tuned(runs, a, b) for i, a in enumerate(arms) for b in arms[:i])


def _of_runs(frame: Frame, runs: pd.Series) -> Frame:
    return frame.only(set(runs)) if isinstance(frame, Rows) else frame[frame["run"].isin(runs)]


MeasureAcross = Callable[[Settings], Measured]


def setting_gap(pairs: Sequence[tuple[str, str]], losses: Sequence[str]) -> MeasureAcross:
    """The mean score of the losses that both settings have, in the first minus in the second. pairs: of settings; the first
    that both have runs."""

    def measure(settings: Settings) -> Measured:
        for ours, theirs in pairs:
            a, b = _graded_alike(settings, ours, theirs)
            if a is None or b is None:
                continue
            shared = [loss for loss in losses if len(a.score(a.arm(loss))) and len(b.score(b.arm(loss)))]
            if shared:
                parts = [
                    (sign / len(shared), e.score(e.arm(loss))) for sign, e in ((1.0, a), (-1.0, b)) for loss in shared
                ]
                return Measured(a.contrast(parts))
        return UNMEASURED

    return measure


def gap_change(ours: str, theirs: str, losses: tuple[str, str]) -> MeasureAcross:
    """A loss's lead over another in one setting, minus its lead in another setting."""

    def measure(settings: Settings) -> Measured:
        a, b = _graded_alike(settings, ours, theirs)
        if a is None or b is None:
            return UNMEASURED
        parts: list[tuple[float, Values]] = []
        arms: list[Arm] = []
        for sign, e in ((1.0, a), (-1.0, b)):
            found = [arm for loss in losses if (arm := e.arm(loss)) is not None]
            if len(found) < 2:
                return UNMEASURED
            parts += [(sign, e.score(found[0])), (-sign, e.score(found[1]))]
            arms += found
        return Measured(a.contrast(parts), tuple(arms))

    return measure


def _graded_alike(settings: Settings, *names: str) -> list[Evidence | None]:
    """The settings' evidence; None for both where one has no runs, or their scores have different measures."""
    found = [settings.groups.get(name) for name in names]
    judged = [e.verdicts for e in found if e is not None and e.verdicts is not None and len(e.verdicts)]
    if len(judged) < len(names):
        return [None] * len(names)
    main = {main_judge(verdicts) for verdicts in judged}
    beside = any(_against(verdicts).eq("start").any() for verdicts in judged)
    return [None] * len(names) if len(main) > 1 or beside else list(found)


def _against(verdicts: Frame) -> pd.Series:
    """What the judge has set answers beside."""
    rows = verdicts.distinct("against") if isinstance(verdicts, Rows) else verdicts
    return FRAMES["verdicts"].of(rows)["against"]
