"""What a command ends with: a row a loss, in the forms of the report's table, and the report's card."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pobench.cli.terminal import escape, make_table, out

if TYPE_CHECKING:
    from pobench.reporting.card import Card, Finding
    from pobench.results.arms import Arm
    from pobench.results.comparable import Comparable
    from pobench.types import Estimate

# metric → its title above its unit; with intervals: those that compare
COLUMNS = {"pass_rate": "pass rate", "pass_rate_gain": "gain", "reward_accuracy": "accuracy", "length_tokens": "length"}
WITH_INTERVAL = ("pass_rate", "pass_rate_gain")
MOST_GROUPS = 3
LONGEST_LABEL = 24  # characters: so that a row fits into 80 columns
SIGNS = {"good": ("▲", "green"), "bad": ("▼", "red"), "open": ("○", ""), "note": ("·", "")}


def print_answers(frames: Mapping[str, Any], runs: Collection[str] | None = None) -> None:
    """Of each group of runs that may be compared: its table and its card. Without `runs` no table; then of several groups the
    answer alone, and of more than `MOST_GROUPS` nothing, since it takes seconds a group and the report has them.

    runs: names of runs; only groups and losses with one of them.
    """
    from pobench.reporting.card import make_card
    from pobench.results.comparable import ordered, split

    groups = split(ordered(frames))
    shown = [group for group in groups if runs is None or _has(group, runs)]
    if runs is None and len(shown) > MOST_GROUPS:
        return
    for group in shown:
        if runs is not None:
            _print_table(group, runs)
        card = make_card(group)
        if runs is None and len(shown) > 1:
            out.print(f"[bold]{escape(group.title)}[/]  {escape(card.answer)}", highlight=False)
        else:
            _print_card(card)


def _has(group: Comparable, runs: Collection[str]) -> bool:
    return any(arm.runs and not set(runs).isdisjoint(arm.runs) for arm in group.every_arm.trained)


# ---------------------------------------------------------------- the table
def _print_table(group: Comparable, runs: Collection[str]) -> None:
    """A line a loss, the largest gain first, with the start model where a gain of zero stands."""
    from pobench.reporting.plot import short
    from pobench.results.arms import score_of
    from pobench.results.metrics import METRICS

    at_home = {run for arm in group.home.arms for run in arm.runs}
    studied = set(group.frames["runs"]["run"]) - at_home
    selection = group.every_arm if studied & set(runs) else group.home
    arms = [arm for arm in selection.arms if arm.is_start or not set(runs).isdisjoint(arm.runs)]
    scores = selection.frames["scores"]
    rows = {arm: {name: score_of(scores, arm, name) for name in COLUMNS} for arm in arms}
    measured = [name for name in COLUMNS if any(not math.isnan(own[name].value) for own in rows.values())]
    if not measured:
        return
    table = make_table("", *(f"{COLUMNS[name]}\n{METRICS[name].unit}" for name in measured), padding=(0, 1, 0, 0))
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for arm in sorted(arms, key=lambda arm: -_place(arm, rows[arm])):
        cells = [_cell(rows[arm][name], name) for name in measured]
        table.add_row(escape(short(arm.label, LONGEST_LABEL)), *cells)
    out.print(table, highlight=False)


def _place(arm: Arm, own: Mapping[str, Estimate]) -> float:
    gain = own["pass_rate_gain"].value
    return 0.0 if arm.is_start else -math.inf if math.isnan(gain) else gain


def _cell(e: Estimate, name: str) -> str:
    from pobench.results.metrics import METRICS

    show = METRICS[name].show
    ends = "" if name not in WITH_INTERVAL or math.isnan(e.low) else f" [{show(e.low)}, {show(e.high)}]"
    return escape(show(e.value) + ends)


# ---------------------------------------------------------------- the card
def _print_card(card: Card) -> None:
    out.print(f"\n[bold]{escape(card.answer)}[/]", highlight=False, soft_wrap=False)
    for line in card.lines:
        _print_line(line)


def _print_line(line: Finding) -> None:
    """Its head, its text and, on lines of their own, its commands."""
    from rich.table import Table

    sign, colour = SIGNS[line.tone]
    commands = re.findall(r"`(pobench [^`]*)`", line.text)
    text = re.sub(r" ?`(pobench [^`]*)`", "", line.text).replace("`", "")
    row = Table.grid(padding=(0, 1))
    row.add_row(
        "", f"[{colour}]{sign}[/]" if colour else sign, f"[bold {colour}]{escape(line.head)}.[/] {escape(text)}"
    )
    out.print(row, highlight=False, soft_wrap=False)
    for command in commands:
        out.print(f"    [cyan]{escape(command)}[/]", highlight=False)
