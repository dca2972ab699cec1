"""What differs between two reports: losses that only one has, numbers of losses that both have, claims whose verdict changed,
and what the runs were made with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from pobench.errors import PobenchError, or_fault
from pobench.reporting.draw import table
from pobench.results import metrics
from pobench.results.arms import Arm, json_object, of_arm, settings_of, show_setting
from pobench.results.comparable import Comparable, ordered, split
from pobench.results.load import open_frames
from pobench.types import Estimate

SHOWN = (
    "pass_rate",
    "grade",
    "win_rate",
    "pass_rate_gain",
    "length_tokens",
    "repetition",
    "unfinished",
    "reward_accuracy",
    "kl_winners",
)


@dataclass(frozen=True)
class Number:
    """One metric of one loss in both reports. apart: their intervals share no value, which other prompts and, with several
    seeds, other runs hardly explain."""

    arm: str
    metric: str
    before: Estimate
    after: Estimate

    @property
    def apart(self) -> bool:
        return self.before.high < self.after.low or self.after.high < self.before.low


@dataclass
class Differences:
    """Of one setting. only_before, only_after: labels of losses, with their settings. moved: numbers that changed.
    same: how many did not. verdicts: (claim, before, after). made_with: (what, before, after)."""

    setting: str
    only_before: list[str] = field(default_factory=list)
    only_after: list[str] = field(default_factory=list)
    moved: list[Number] = field(default_factory=list)
    same: int = 0
    verdicts: list[tuple[str, str, str]] = field(default_factory=list)
    made_with: list[tuple[str, str, str]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For machines."""
        return {**asdict(self), "moved": [{**asdict(number), "apart": number.apart} for number in self.moved]}


def differences(before: str, after: str, setting: str | None = None) -> list[Differences]:
    """One for each setting that either report has.

    before, after: folders of runs, or of frames (`pobench analyze --format parquet`), or addresses of either. Runs of several
    start models or protocols of one setting are not told apart by a name, so each such group needs a partner with as many.
    Raises PobenchError that lists what cannot be read.
    """
    faults: list[str] = []
    groups = [or_fault(faults, partial(_groups, source, setting)) or {} for source in (before, after)]
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(faults)))
    names = sorted({name for side in groups for name in side})
    unequal = [name for name in names if len({len(side[name]) for side in groups if name in side}) > 1]
    if unequal:
        raise PobenchError(
            f"{', '.join(unequal)}: one side has runs of several start models or protocols; name a folder with those of one"
        )
    pairs = [(name, [side.get(name, []) for side in groups]) for name in names]
    return [_between(name, a, b) for name, (ours, theirs) in pairs for a, b in _beside(ours, theirs)]


def _groups(source: str, setting: str | None) -> dict[str, list[Comparable]]:
    found: dict[str, list[Comparable]] = {}
    for group in split(ordered(open_frames(source, setting))):
        found.setdefault(group.setting, []).append(group)
    return found


def _beside(ours: list[Comparable], theirs: list[Comparable]) -> Iterable[tuple[Comparable | None, Comparable | None]]:
    longest = max(len(ours), len(theirs))
    padded = [[*side, *[None] * (longest - len(side))] for side in (ours, theirs)]
    return zip(*padded, strict=True)


def _between(name: str, before: Comparable | None, after: Comparable | None) -> Differences:
    sides = [_arms(group) for group in (before, after)]
    partners = _partners(*sides)
    found = Differences(
        name,
        only_before=[arm.label for key, arm in sides[0].items() if key not in partners],
        only_after=[arm.label for key, arm in sides[1].items() if key not in partners.values()],
    )
    if before is None or after is None:
        return found
    numbers = [_numbers(group) for group in (before, after)]
    for ours, theirs in partners.items():
        for metric in SHOWN:
            a, b = numbers[0].get((sides[0][ours].id, metric)), numbers[1].get((sides[1][theirs].id, metric))
            if a is None or b is None:
                continue
            if a == b:
                found.same += 1
            else:
                found.moved.append(Number(sides[1][theirs].label, metric, a, b))
        if ours != theirs:
            found.made_with += _values(before, after, sides[0][ours], sides[1][theirs])
    found.verdicts = list(_verdicts(before, after))
    found.made_with += list(_made_with(before.frames["runs"], after.frames["runs"]))
    return found


def _arms(group: Comparable | None) -> dict[str, Arm]:
    """Loss and settings → the arm. An arm's id is made of them; of a start model they are its name alone."""
    if group is None:
        return {}
    return {"start" if arm.is_start else arm.id: arm for arm in group.every_arm.arms}


def _partners(before: Mapping[str, Arm], after: Mapping[str, Arm]) -> dict[str, str]:
    """Key before → key after: of the same loss at the same values, and of a loss that each side has left once."""
    same = {key: key for key in before if key in after}
    left = [Counter(arm.loss for key, arm in side.items() if key not in same) for side in (before, after)]
    once = [loss for loss, count in left[0].items() if count == left[1][loss] == 1]
    keys = [{arm.loss: key for key, arm in side.items() if key not in same} for side in (before, after)]
    return same | {keys[0][loss]: keys[1][loss] for loss in once}


def _values(before: Comparable, after: Comparable, ours: Arm, theirs: Arm) -> Iterator[tuple[str, str, str]]:
    """The settings in which two arms of one loss differ."""
    sides = []
    for group, arm in ((before, ours), (after, theirs)):
        row = of_arm(group.frames["runs"], arm).iloc[0]
        sides.append({**settings_of(row), **{name: row[name] for name in ("lr", "epochs", "batch_size", "pairs")}})
    for name in dict.fromkeys([*sides[0], *sides[1]]):
        a, b = (show_setting(side.get(name)) for side in sides)
        if a != b:
            yield f"{theirs.loss}.{name}", a, b


def _numbers(group: Comparable) -> dict[tuple[str, str], Estimate]:
    """(arm, metric) → its estimate, of arms of one run too."""
    scores = group.frames["scores"]
    runs_of = {arm.runs[0] if len(arm.runs) == 1 else arm.id: arm.id for arm in group.every_arm.arms}
    columns = [scores[name] for name in ("run", "metric", "value", "low", "high", "n")]
    return {
        (runs_of[run], metric): Estimate(float(value), float(low), float(high), int(n))
        for run, metric, value, low, high, n in zip(*columns, strict=True)
        if run in runs_of and n > 0
    }


def _verdicts(before: Comparable, after: Comparable) -> Iterator[tuple[str, str, str]]:
    """Claims whose verdict changed."""
    sides = [_claims(group) for group in (before, after)]
    for claim in sides[0].index.intersection(sides[1].index):
        a, b = (str(side.loc[claim, "verdict"]) for side in sides)
        if a != b:
            yield str(claim), a, b


def _claims(group: Comparable) -> pd.DataFrame:
    """The table of claims by name; empty where it cannot be drawn."""
    try:
        return table("claims", group.frames).set_index("claim")
    except PobenchError:
        return pd.DataFrame({"verdict": []})


def _made_with(before: pd.DataFrame, after: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Versions, machine and seeds that differ."""
    sides = [{**_environment(runs), "seeds": _seeds(runs)} for runs in (before, after)]
    for name in sorted({*sides[0], *sides[1]}):
        a, b = (side.get(name, "–") for side in sides)
        if a != b:
            yield name, a, b


def _environment(runs: pd.DataFrame) -> dict[str, str]:
    values: dict[str, set[str]] = {}
    for text in runs["environment"].unique():
        for name, value in _flat(json_object(text)):
            values.setdefault(name, set()).add(show_setting(value))
    return {name: " | ".join(sorted(seen)) for name, seen in values.items()}


def _flat(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from value.items()
        else:
            yield key, value


def _seeds(runs: pd.DataFrame) -> str:
    return ", ".join(str(seed) for seed in sorted(runs.loc[runs["loss"] != "start", "seed"].unique()))


# ---------------------------------------------------------------- in words
def sentences(found: Differences) -> list[str]:
    """What a reader should know first."""
    lines = []
    for word, labels in (("first", found.only_before), ("second", found.only_after)):
        if labels:
            lines.append(f"Only in the {word}: {', '.join(labels)}.")
    apart = [number for number in found.moved if number.apart]
    if found.moved:
        lines.append(
            f"{len(found.moved)} of {len(found.moved) + found.same} numbers of losses that both have differ; the intervals of "
            f"{len(apart)} share no value."
        )
    elif found.same:
        lines.append(f"All {found.same} numbers of losses that both have are the same.")
    lines += [f"Claim {claim!r}: {a} before, {b} now." for claim, a, b in found.verdicts]
    return lines or ["They have no loss in common."]


def shown(number: Number) -> tuple[str, str, str, str, str]:
    """(loss, metric, before, after, mark) of a changed number, in the metric's unit."""
    metric = metrics.METRICS[number.metric]

    def text(e: Estimate) -> str:
        return f"{metric.show(e.value)} [{metric.show(e.low)}, {metric.show(e.high)}]"

    unit = f"{metric.title}, {metric.unit}" if metric.unit else metric.title
    return number.arm, unit, text(number.before), text(number.after), "apart" if number.apart else ""
