"""The frames of a runs directory: in order, and apart.

Order of arrival does not matter, and runs are compared only inside one setting, one protocol version and one start
model: such a group is a `Part`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pobench.columns import STORED
from pobench.errors import PobenchError, nearest
from pobench.results import metrics as scores
from pobench.results.arms import arms_of, homes_of
from pobench.results.derived import Frames


def ordered(frames: Mapping[str, pd.DataFrame]) -> Frames:
    """All stored frames, sorted, so that their order of arrival does not matter; absent ones are empty. What is derived
    from them follows."""
    found = {}
    for described in STORED:
        frame = frames.get(described.name)
        unsortable = frame is None or not set(described.sort) <= set(frame.columns)
        complete = described.of(() if unsortable else frame)
        found[described.name] = complete.sort_values(list(described.sort), kind="stable", ignore_index=True)
    return Frames(found)


@dataclass
class Part:
    """The frames of one setting, protocol and start model: what may be compared."""

    setting: str
    protocol: str
    start: str
    title: str
    frames: Frames


def split(frames: Mapping[str, pd.DataFrame], *, setting: str | None = None, seed: int = 0) -> list[Part]:
    """The parts of the runs directory that may not be mixed, in order. Raises PobenchError when there is no run.

    Unfinished and failed runs keep their steps; their answers and held-out numbers are incomplete and left out.
    """
    runs = frames["runs"]
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
    keys = [_key(row) for row in runs.to_dict("records")]
    starts: dict[tuple[str, str], set[str]] = {}
    for where, protocol, start in keys:
        starts.setdefault((where, protocol), set()).update({start} - {""})
    # a run that names no start model belongs to the only one there is
    keys = [(s, p, start or (min(starts[s, p]) if len(starts[s, p]) == 1 else "")) for s, p, start in keys]
    parts = []
    for key in sorted(set(keys), key=lambda k: (k[0], _number(k[1]), k[2])):
        mine = runs[[k == key for k in keys]]
        if not key[2] and (mine["loss"] == "start").any():  # start models without a name of their own
            key = (*key[:2], str(mine.loc[mine["loss"] == "start", "run"].iloc[0]))
        title = key[0]
        if len({p for s, p in starts if s == key[0]}) > 1:
            title += f", protocol {key[1] or 'unknown'}"
        if len({k[2] for k in keys if k[:2] == key[:2]}) > 1:
            title += f", start model {key[2].rsplit('/', 1)[-1] or 'unknown'}"
        parts.append(Part(*key, title, _part_frames(frames, mine, seed)))
    return parts


def _key(row: Mapping[Any, Any]) -> tuple[str, str, str]:
    start = row["run"] if row["loss"] == "start" else row["start"]
    found = row["protocol"]
    protocol = "" if pd.isna(found) else f"{found:g}" if pd.api.types.is_number(found) else str(found)
    return str(row["setting"]), protocol, "" if start is None or pd.isna(start) else str(start)


def _part_frames(frames: Mapping[str, pd.DataFrame], runs: pd.DataFrame, seed: int) -> Frames:
    finished = set(runs.loc[runs["status"] == "finished", "run"])
    tuned = {name.removesuffix("-tuned") for name in runs["setting"].astype(str)}
    part = {"runs": runs.reset_index(drop=True)}
    for name in [frame.name for frame in STORED if frame.name != "runs"]:
        column, kept = "run", set(runs["run"]) if name == "steps" else finished
        if name in ("audit", "tuning"):
            column, kept = "setting", tuned if name == "tuning" else set(runs["setting"])
        part[name] = frames[name][frames[name][column].isin(kept)].reset_index(drop=True)
    return Frames({**part, "scores": scores.complete(part, seed=seed)})


def _number(text: str) -> tuple[float, str]:
    return (float(text), "") if re.fullmatch(r"\d+(\.\d+)?", text) else (math.inf, text)


MOST_ARMS = 16  # rows and panels that a reader still takes in; the paper's losses are twelve


def at_home(frames: Frames) -> tuple[Frames, str]:
    """The frames without the arms that studies have added, and a sentence on what is left out; as they are, and "",
    where no more than `MOST_ARMS` arms stand in them."""
    found: tuple[Frames, str] = frames.once("at home", _at_home)
    return found


def _at_home(frames: Frames) -> tuple[Frames, str]:
    runs = frames.get("runs")
    if runs is None or len(runs) <= MOST_ARMS or len(arms := arms_of(runs)) <= MOST_ARMS:
        return frames, ""
    homes = homes_of(runs)
    kept = {name for arm in arms if arm.is_start or arm in homes for name in (arm.id, *arm.runs)}
    count = sum(not arm.is_start and arm.runs[0] not in kept for arm in arms)
    if not count:
        return frames, ""
    where = "“Effect of one setting” and “Settings of every loss”"
    said = f"Each loss stands with its setting's own values; {count} more, of studies, are in {where}."
    return frames.of_runs(kept), said
