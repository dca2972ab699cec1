"""The page of all frames, docs/frames.md: what `pobench.columns` says of each. `make docs` writes it."""

from __future__ import annotations

from pobench.columns import FRAMES, Column, Frame

INTRODUCTION = """\
# The frames

<!-- Written by `make docs` from pobench/columns.py; edit that. -->

`load_frames("runs")` reads every stored run as frames: tables with one observation a row, joined by `run`. Figures and
tables are functions of these frames, each asked for by the name of a parameter. Log-probabilities are in nats, lengths
in tokens of an answer with its end-of-turn token, rates in [0, 1] unless a unit says otherwise; a loss's own unit is that
of its reward or of its value. Missing is nan, never 0. A column of whole numbers in which a value is missing is float.

A unit in *italics* marks what is measured: it differs between two runs of the same thing, so a comparison leaves it out."""


def frame_page() -> str:
    """The page as Markdown, the same bytes every time: an overview, then a section a frame."""
    overview = [
        "| frame | a row | rows are ordered by | where it comes from |",
        "| --- | --- | --- | --- |",
        *(
            f"| [{frame.name}](#{frame.name}) | {_first_sentence(frame)} | {_names(frame.sort)} "
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


def _first_sentence(frame: Frame) -> str:
    """`One row a run: a start model …` → `a run`."""
    return _escaped(frame.meaning.removeprefix("One row ").removesuffix(".").partition(". ")[0].partition(":")[0])


def _names(columns: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in columns)


def _escaped(text: str) -> str:
    """`|` would end a cell of a table; a gradient's bars are shown all the same."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(frame_page(), end="")
