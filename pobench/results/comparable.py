"""Sort the frames of a runs directory, split them into groups that may be compared, and choose the arms to show.

Runs are compared only within one setting, one protocol version and one start model. Such a group is a `Comparable`. It also
holds the one choice of arms that all figures, tables and sentences show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pandas as pd

from pobench.columns import STORED
from pobench.errors import PobenchError, nearest
from pobench.registry import Figure
from pobench.results import metrics
from pobench.results.arms import Arm, arms_of, begun_from, homes_of
from pobench.results.derived import Frames
from pobench.results.frame_files import counted
from pobench.results.rows import Rows
from pobench.results.score_rows import ScoreRows


def ordered(frames: Mapping[str, pd.DataFrame]) -> Frames:
    """All stored frames, sorted, so that the order of reading does not matter. Absent ones are empty; derived ones are
    included."""
    by_run = frames.by_run if isinstance(frames, Frames) else {}
    complete_frames = {}
    for described in (described for described in STORED if described.name not in by_run):
        frame = frames.get(described.name)
        unsortable = frame is None or not set(described.sort) <= set(frame.columns)
        complete = described.of(() if unsortable else frame)
        complete_frames[described.name] = complete.sort_values(list(described.sort), kind="stable", ignore_index=True)
    if "answers" in complete_frames:
        complete_frames["answers"] = counted(complete_frames["answers"])
    return Frames(complete_frames, by_run={name: rows.in_order() for name, rows in by_run.items()})


MOST_ARMS = 16  # rows and panels that a reader can still survey; the paper has twelve losses


@dataclass(frozen=True, eq=False)
class Selection:
    """The runs that a figure shows. left_out: a sentence on the arms that it does not show; "" if it shows all."""

    frames: Frames
    left_out: str = ""

    @cached_property
    def arms(self) -> list[Arm]:
        """The arms of these runs, the start model first. A label tells how an arm differs from the others of this selection."""
        return arms_of(self.frames["runs"])

    @property
    def notes(self) -> str:
        """Sentences on what a figure of these runs does not show."""
        rounds = "Of rounds of training the last is shown." if begun_from(self.frames["runs"]) else ""
        return f"{self.left_out} {rounds}".strip()

    @property
    def trained(self) -> list[Arm]:
        """The arms without the start model."""
        return [arm for arm in self.arms if not arm.is_start]


@dataclass(frozen=True, eq=False)
class Comparable:
    """The runs of one setting, protocol and start model: what may be compared.

    every_arm: all of them. home: each loss with its setting's own values, without the arms that studies have added; the
    same as `every_arm` where there are no more than `MOST_ARMS`. apart: a sentence where the setting has runs of several
    protocols, "" elsewhere.
    """

    setting: str
    protocol: str
    start: str
    title: str
    every_arm: Selection
    home: Selection
    apart: str = ""

    @property
    def frames(self) -> Frames:
        """The frames of every arm."""
        return self.every_arm.frames

    def shown_in(self, figure: Figure) -> Selection:
        """The runs for a figure or table: all arms if it compares the settings of a loss, else the home arms."""
        return self.every_arm if figure.every_arm else self.home


def split(frames: Mapping[str, pd.DataFrame], *, setting: str | None = None, seed: int = 0) -> list[Comparable]:
    """The groups of runs that may be compared, in order. Raises PobenchError when there is no run.

    Unfinished and failed runs keep their steps; their answers and held-out numbers are incomplete and left out.
    seed: of the bootstrap behind scores that are not stored.
    """
    runs = _runs_of(frames["runs"], setting)
    grouped = groups_of(runs)
    keys = [key for key, members in grouped for _ in range(len(members))]
    groups = []
    for key, members in grouped:
        if not key[2] and (members["loss"] == "start").any():  # start models without a name of their own
            key = (*key[:2], str(members.loc[members["loss"] == "start", "run"].iloc[0]))
        every_arm = Selection(_frames_of(frames, members, seed))
        groups.append(Comparable(*key, _title(key, keys), every_arm, _at_home(every_arm), _apart(key, keys)))
    return groups


def side_by_side(groups: Sequence[Comparable]) -> Comparable:
    """The groups of several settings as one, for figures and tables that show settings beside each other (`every_setting`).
    Whatever else is computed from it would compare what may not be compared."""

    first = groups[0].frames

    def of_all(name: str) -> pd.DataFrame:
        return pd.concat([group.frames[name] for group in groups], ignore_index=True)

    def rows_of_all(name: str) -> Rows:
        parts = [rows for group in groups if (rows := group.frames.rows(name)) is not None]
        return parts[0] if len(parts) == 1 else Rows.of_several(parts)

    stored = {name: of_all(name) for name in first.stored}
    later = {name: partial(of_all, name) for name in first.later}
    both = Selection(Frames(stored, later, {name: rows_of_all(name) for name in first.by_run}))
    titles = " · ".join(group.title for group in groups)
    return Comparable(titles, "", "", "Several settings", both, both)


def groups_of(runs: pd.DataFrame) -> list[tuple[Key, pd.DataFrame]]:
    """(key, its runs) for every group of runs that may be compared, in order."""
    keys = _keys(runs)
    ordered_keys = sorted(set(keys), key=lambda k: (k[0], _number(k[1]), k[2]))
    return [(key, runs[[k == key for k in keys]]) for key in ordered_keys]


def _runs_of(runs: pd.DataFrame, setting: str | None) -> pd.DataFrame:
    """The rows of one setting, or all. Raises PobenchError where none is left."""
    if setting is not None:
        known = sorted(runs["setting"].astype(str).unique())
        if setting not in known:
            hint = nearest(setting, known)
            raise PobenchError(
                f"no run of the setting {setting!r}{hint} Settings with runs: {', '.join(known) or 'none'}"
            )
        runs = runs[runs["setting"] == setting]
    if runs.empty:
        raise PobenchError("there is no run to report on")
    return runs


Key = tuple[str, str, str]  # setting, protocol, start model ("" where it is not known)


def _keys(runs: pd.DataFrame) -> list[Key]:
    """The key of every run; runs with equal keys are compared."""
    keys = [_key(row) for row in runs.to_dict("records")]
    starts: dict[tuple[str, str], set[str]] = {}
    for setting, protocol, start in keys:
        starts.setdefault((setting, protocol), set()).update({start} - {""})
    # a run that names no start model belongs to the only one there is
    return [(s, p, start or (min(starts[s, p]) if len(starts[s, p]) == 1 else "")) for s, p, start in keys]


def _key(row: Mapping[Any, Any]) -> Key:
    start = row["run"] if row["loss"] == "start" else row["start"]
    version = row["protocol"]
    protocol = "" if pd.isna(version) else f"{version:g}" if pd.api.types.is_number(version) else str(version)
    return str(row["setting"]), protocol, "" if start is None or pd.isna(start) else str(start)


def _title(key: Key, keys: Sequence[Key]) -> str:
    """The setting, with protocol and start model where groups differ in them."""
    setting, protocol, start = key
    title = setting
    if len({k[1] for k in keys if k[0] == setting}) > 1:
        title += f", protocol {protocol or 'unknown'}"
    if len({k[2] for k in keys if k[:2] == key[:2]}) > 1:
        title += f", start model {start.rsplit('/', 1)[-1] or 'unknown'}"
    return title


def _apart(key: Key, keys: Sequence[Key]) -> str:
    """Why runs of one setting stand in several groups, where their protocols differ."""
    setting, protocol, _ = key
    others = sorted({k[1] for k in keys if k[0] == setting} - {protocol}, key=_number)
    if not others:
        return ""
    count = sum(k == key for k in keys)
    runs = f"{count} run{'' if count == 1 else 's'} of {setting}"
    return (
        f"Made by protocol {protocol or 'unknown'}: {runs}; not comparable with those of protocol "
        f"{' and '.join(other or 'unknown' for other in others)}, which are shown apart."
    )


def _frames_of(frames: Mapping[str, pd.DataFrame], runs: pd.DataFrame, seed: int) -> Frames:
    """The frames of these runs. Scores that are not stored take seconds, and are made where they are read."""
    finished = set(runs.loc[runs["status"] == "finished", "run"])
    tuned = {name.removesuffix("-tuned") for name in runs["setting"].astype(str)}
    part, by_run = {"runs": runs.reset_index(drop=True)}, {}
    read_by_run = frames.by_run if isinstance(frames, Frames) else {}
    for name in [frame.name for frame in STORED if frame.name != "runs"]:
        column, kept = "run", set(runs["run"]) if name == "steps" else finished
        if (rows := read_by_run.get(name)) is not None:
            by_run[name] = rows.of_arms(runs, seed) if isinstance(rows, ScoreRows) else rows.only(kept)
            continue
        if name == "scores":
            kept = finished | {arm.id for arm in arms_of(runs, every_round=True)}
        if name in ("audit", "tuning"):
            column, kept = "setting", tuned if name == "tuning" else set(runs["setting"])
        part[name] = frames[name][frames[name][column].isin(kept)].reset_index(drop=True)
    if "scores" in by_run:
        return Frames(part, by_run=by_run)
    scored = partial(metrics.complete, part, seed=seed)
    return Frames({name: frame for name, frame in part.items() if name != "scores"}, {"scores": scored}, by_run)


def scores_of_arms(frames: Frames, runs: Set[str] | None = None) -> pd.DataFrame:
    """The frame `scores`: the rows of every run, and those of the arms that hold one of these runs (None: of all arms). Each
    arm of several runs takes a bootstrap, so fewer arms take less time."""
    rows = frames.rows("scores")
    if runs is None or rows is None:
        return frames["scores"]
    kept: set[str] = set()
    for arm in arms_of(frames["runs"], every_round=True):
        kept |= {*arm.runs, arm.id} if not runs.isdisjoint(arm.runs) else {*arm.runs}
    return rows.only(kept).whole()


def _number(text: str) -> tuple[float, str]:
    return (float(text), "") if re.fullmatch(r"\d+(\.\d+)?", text) else (math.inf, text)


def _at_home(every_arm: Selection) -> Selection:
    """The selection without the arms of studies, if there are more than `MOST_ARMS`."""
    frames = every_arm.frames
    if len(frames["runs"]) <= MOST_ARMS or len(every_arm.arms) <= MOST_ARMS:
        return every_arm
    homes = homes_of(frames["runs"]).values()
    kept = {name for arm in every_arm.arms if arm.is_start or arm in homes for name in (arm.id, *arm.runs)}
    count = sum(arm.runs[0] not in kept for arm in every_arm.trained)
    if not count:
        return every_arm
    where = "“Effect of one setting” and “Settings of every loss”"
    left_out = f"Each loss stands with its setting's own values; {count} more, of studies, are in {where}."
    return Selection(frames.of_runs(kept), left_out)
