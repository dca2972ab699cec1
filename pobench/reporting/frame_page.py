"""Writes docs/frames.md, the reference of all frames, from `pobench.columns` (`make docs`)."""

from __future__ import annotations

from pobench.columns import FRAMES, Column, Frame
from pobench.printing import say

INTRODUCTION = """\
# The frames

<!-- Written by `make docs` from pobench/columns.py; edit that. -->

`load_frames("runs")` reads every stored run as frames: tables with one observation a row, joined by `run`. Figures and
tables are functions of these frames, and the names of their parameters choose the frames. Log-probabilities are in nats,
lengths in tokens of an answer with its end-of-turn token, rates in [0, 1] unless a unit says otherwise; a loss's own unit
is the unit of its reward or of its value. Missing is nan, never 0. A column of whole numbers becomes float where a value
is missing.

A unit in *italics* marks a measured column: it differs between two runs of the same job, so comparisons leave it out."""


def frame_page() -> str:
    """The page as Markdown, the same bytes every time: an overview, then a section a frame."""
    overview = [
        "| frame | a row | rows are ordered by | where it comes from |",
        "| --- | --- | --- | --- |",
        *(
            f"| [{frame.name}](#{frame.name}) | {_escaped(frame.row)} | {_names(frame.sort)} "
            f"| {'made when first asked for' if frame.made else 'stored with the runs'} |"
            for frame in FRAMES.values()
        ),
    ]
    return "\n\n".join([INTRODUCTION, "\n".join(overview), *map(_section, FRAMES.values())]) + "\n"


def _section(frame: Frame) -> str:
    lines = ["| column | type | unit | meaning |", "| --- | --- | --- | --- |", *map(_line, frame.columns)]
    return f"## {frame.name}\n\n{_escaped(frame.meaning)}\n\n" + "\n".join(lines)


def _line(column: Column) -> str:
    unit = column.unit or "–"
    unit = f"*{unit if column.unit else 'measured'}*" if column.measured else unit
    return f"| `{column.name}` | {column.type} | {unit} | {_escaped(column.meaning)} |"


def _names(columns: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in columns)


def _escaped(text: str) -> str:
    """Escape `|`, which would end a table cell."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    say(frame_page(), end="", out=True)
