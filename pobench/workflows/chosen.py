"""The values that a search chose, as YAML: a setting of their own, or written into the setting that was searched."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pobench.errors import PobenchError
from pobench.registry import get_loss, losses
from pobench.settings.plain_yaml import plain_yaml
from pobench.settings.read import OF_VALUES

if TYPE_CHECKING:
    from pobench.workflows.tune import Tuning


@dataclass(frozen=True)
class Best:
    """The values chosen for a loss. searched: the settings that were varied. value: the objective; low, high: its 95 %
    interval; start: the start model's value; trials: those that it is the best of; tried: failed ones counted too; run: the
    chosen trial's first run; study: the search."""

    loss: str
    settings: Mapping[str, Any]
    searched: tuple[str, ...]
    lr: float
    value: float
    low: float
    high: float
    start: float
    n: int
    trials: int
    tried: int
    run: str
    study: str


def overlay(tuning: Tuning, best: Sequence[Best]) -> str:
    """A setting that extends the tuned one with the chosen values; a comment beside each names its run."""
    about = tuning.about
    base = tuning.setting
    if Path(base).suffix in (".yaml", ".yml"):
        base = os.path.relpath(Path(base).absolute(), tuning.folder.absolute())
    lines = [
        f"# Chosen by `pobench tune`: {about.metric} on {about.prompts or about.pairs}, {tuning.trials} trials of each loss "
        f"({tuning.sampler}).",
        f"# Every trial, not only the best, is in {tuning.csv.name} beside this file.",
        f"name: {tuning.name}-tuned",
        f"extends: {json.dumps(base)}",
        "losses:",
    ]
    for b in best:
        others = [f"    {key}: {_yaml(v)}  # not searched" for key, v in b.settings.items() if key not in b.searched]
        lines += [f"  {b.loss}:", *_chosen(about.metric, b), *others]
    return "\n".join(lines) + "\n"


def write_into(text: str, metric: str, best: Sequence[Best], where: str) -> str:
    """The text of a setting's file with the chosen values in its section `losses`; everything else stays as it is written.

    A loss that the section has keeps its place and the values that were not searched; another one is put at its end.
    where: the file, for messages. Raises PobenchError unless `losses` is a block of blocks.
    """
    lines, entries, end = text.splitlines(), *_entries(text, where)
    changes: list[tuple[int, int, list[str]]] = []  # lines [start, stop) → lines
    new: list[str] = []
    for b in best:
        if b.loss not in entries:
            new += [f"  {b.loss}:", *_chosen(metric, b)]
            continue
        start, keys = entries[b.loss]
        kept = [line for key, line in keys.items() if key not in _written(b)]
        changes.append((start, start + len(keys), [*_chosen(metric, b), *(lines[at] for at in kept)]))
    for start, stop, block in sorted([*changes, (end, end, new)], reverse=True):
        lines[start:stop] = block
    return "\n".join(lines) + "\n"


def _entries(text: str, where: str) -> tuple[dict[str, tuple[int, dict[str, int]]], int]:
    """Loss → (the line of its first value, key → line) of the section `losses`, and the line behind the section."""
    _, node = plain_yaml(text, where)
    fault = PobenchError(f"{where}: its section `losses` must be a block with one value a line, to be written into")
    found = [value for key, value in node.value if key.value == "losses"]
    if not found:
        raise fault
    section = found[0]
    if not isinstance(section.value, list) or section.flow_style:
        raise fault
    entries: dict[str, tuple[int, dict[str, int]]] = {}
    end = section.start_mark.line
    for name, values in section.value:
        if not isinstance(values.value, list) or values.flow_style:
            raise fault
        at = {key.value: key.start_mark.line for key, _ in values.value}
        first = min(at.values())
        if sorted(at.values()) != list(range(first, first + len(at))):
            raise fault
        entries[losses.canonical(name.value)] = first, at
        end = max(end, first + len(at))
    return entries, end


def _written(best: Best) -> set[str]:
    """The keys of a loss's section that a choice replaces: what was searched under any of its names, and where it is from."""
    groups = [group for group in get_loss(best.loss).alternatives if set(group) & set(best.searched)]
    return {"lr", *best.searched, *OF_VALUES, *(name for group in groups for name in group)}


def _chosen(metric: str, best: Best) -> list[str]:
    """The lines of a loss's section: the values that were searched, and the record of the search."""
    interval = "" if math.isnan(best.low) else f" [{best.low:.3g}, {best.high:.3g}]"
    reached = f"{metric} {best.value:.3g}{interval}, n = {best.n}, the best of {best.tried} trials"
    low, high = (json.dumps(None if math.isnan(x) else round(x, 5)) for x in (best.low, best.high))
    record = f"trials: {best.tried}, metric: {metric}, value: {best.value:.5g}, low: {low}, high: {high}, n: {best.n}"
    return [
        f"    lr: {_yaml(best.lr)}  # tuning: {reached}; run {best.run}",
        *(f"    {key}: {_yaml(best.settings[key])}  # tuning: run {best.run}" for key in best.searched),
        f"    tuned: {{{record}, study: {best.study}}}  # by `pobench tune`",
    ]


def _yaml(value: Any) -> str:
    """YAML 1.1 reads 5e-7 as text, 5.0e-7 as a number."""
    if not isinstance(value, float):
        return json.dumps(value)
    text = repr(value)
    head, e, tail = text.partition("e")
    return text if not e or "." in head else f"{head}.0e{tail}"
