"""Items of the page: each figure or table, drawn, with its downloads and the runs it was made from."""

from __future__ import annotations

import base64
import gzip
import math
import multiprocessing
import os
import struct
import sys
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
from markupsafe import Markup

from pobench import registry
from pobench.errors import PobenchError
from pobench.orphans import end_with_and_at_signals
from pobench.reporting import plot
from pobench.reporting.draw import draw
from pobench.reporting.looks import look_of
from pobench.reporting.tables import Cell, Table, clean, listing, make_table, numbers, to_latex, to_markdown
from pobench.results.arms import arms_of
from pobench.results.comparable import Comparable, Selection
from pobench.results.derived import DERIVED
from pobench.results.run_folder import short_names

# ---------------------------------------------------------------- figures and tables of a section
SMALLEST_PACKED = 4000  # characters of a picture
DOWNLOADS = {
    "csv": ("CSV", "text/csv;charset=utf-8"),
    "md": ("Markdown", "text/markdown;charset=utf-8"),
    "tex": ("LaTeX", "text/plain;charset=utf-8"),
}


class Download(NamedTuple):
    """A file to download. packed: all of it, gzipped, in base64; the page unpacks it on a click. kind: its media type."""

    title: str
    file: str
    kind: str
    packed: str

    @classmethod
    def of(cls, file: str, content: bytes) -> Download:
        title, kind = DOWNLOADS[file.rpartition(".")[2]]
        return cls(title, file, kind, packed(content))


def packed(content: bytes) -> str:
    """The content, gzipped, in base64, as the page's script unpacks it."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode("ascii")


@dataclass
class Item:
    """A figure or table as the page shows it, and its files."""

    name: str
    anchor: str
    kind: str
    title: str
    paper: str
    caption: str
    chapter: str
    notes: str = ""
    missing: str = ""  # why there is nothing
    failure: str = ""  # the traceback of code that failed
    table: Table | None = None
    picture: Markup | None = None
    hints: str = ""  # of `hint_lines`
    files: dict[str, bytes] = field(default_factory=dict)  # format → content
    runs: tuple[str, ...] = ()  # that it was made from
    from_every: str = ""  # "all 16 runs", where these are all of its section
    behind: list[Cell] = field(default_factory=list)  # else the first `MOST_RUNS` of them, by their short names

    @property
    def downloads(self) -> list[Download]:
        return [Download.of(f"{self.name}.{f}", self.files[f]) for f in DOWNLOADS if f in self.files]

    @property
    def drawing(self) -> str:
        """The picture and its hints, packed, where the page draws them only when a reader comes near; "" where they stand on
        it: beside the card, and where they are small."""
        if self.picture is None or self.chapter == "answer" or len(self.picture) < SMALLEST_PACKED:
            return ""
        hints = Markup('<span class="hints" hidden>{}</span>').format(self.hints) if self.hints else ""
        return packed(f"{self.picture}{hints}".encode("utf-8", "replace"))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in CSS pixels, at its full size."""
        width, height = struct.unpack(">II", self.files["png"][16:24])  # the header of a PNG
        return width // 2, height // 2  # it has 200 dots an inch


def build_item(shown: registry.Figure, comparable: Comparable, prefix: str, pictures: bool = True) -> Item:
    """Draw one figure or table; `missing` says why it cannot be drawn, also where its code fails: one figure, perhaps of a
    plug-in, does not cost the report. prefix: of its anchor and of every id in it. pictures: False saves a figure's numbers
    alone, in two thirds of the time."""
    item = Item(
        shown.name,
        f"{prefix}-{shown.name}",
        shown.kind,
        shown.title,
        shown.paper,
        " ".join(shown.doc.split()),
        shown.chapter,
    )
    try:
        return _drawn(replace(item), shown, comparable, pictures)
    except plot.NothingToDraw as reason:
        return replace(item, missing=clean(str(reason)))
    except Exception as error:
        missing = clean(f"Its code failed: {type(error).__name__}: {error}")
        return replace(item, missing=missing, failure=traceback.format_exc())


def _drawn(item: Item, shown: registry.Figure, comparable: Comparable, pictures: bool) -> Item:
    """The item with what is drawn and its files. Raises NothingToDraw, and whatever the figure's code raises."""
    selection = comparable.shown_in(shown)
    drawn = draw(shown, replace(selection, left_out=""))  # the page says once, above, which arms most figures leave out
    item.runs = made_from(drawn if shown.kind == "table" else drawn.data, shown, selection)
    if shown.kind == "table":
        return _as_table(item, drawn, _colours(comparable))
    item.notes = clean(drawn.notes)
    if not pictures:
        item.files = {"csv": plot.csv(drawn.data)}
        return item
    png, svg = plot.png(drawn.figure), plot.svg(drawn.figure, f"pobench-{shown.name}")
    item.files = {"png": png, "svg": svg.encode("utf-8", "replace"), "csv": plot.csv(drawn.data)}
    item.hints = hint_lines(plot.hints(drawn.figure))
    alt = ". ".join(filter(None, (shown.title, clean(plot.described(drawn.figure)), item.notes)))
    plot.mark_losses(drawn.figure, comparable.every_arm.arms + comparable.home.arms)
    lettered = clean(plot.svg(drawn.figure, f"pobench-{shown.name}", text=True))
    inline = plot.inline_svg(lettered, item.anchor, alt)
    if len(inline) <= len(png) * 4 / 3:
        item.picture = Markup(inline)
    else:
        item.picture = Markup('<img alt="{}" src="{}">').format(alt, plot.data_uri(png, "image/png"))
    return item


def hint_lines(points: Sequence[plot.Hint]) -> str:
    """Lines of "x y text", x and y in ten-thousandths of the picture, counted from the point before. A line "=words" has the
    words with which the texts below it begin."""
    texts = [" ".join(clean(point.text, 200).split()) for point in points]
    lines, at, words = list[str](), (0, 0), ""
    for point, (text, following) in zip(points, pairwise([*texts, ""]), strict=True):
        common = os.path.commonprefix([text, following])  # noqa: RUF071  # letter by letter, as is meant
        common = common[: common.rfind(" ") + 1]
        if not text.startswith(words) or len(common) > len(words):
            words = common
            lines.append(f"={words}")
        here = round(1e4 * point.x), round(1e4 * point.y)
        lines.append(f"{here[0] - at[0]} {here[1] - at[1]} {text[len(words) :]}")
        at = here
    return "\n".join(lines)


def _as_table(item: Item, shown: pd.DataFrame, colours: Mapping[str, str]) -> Item:
    """The item with a table."""
    item.table = make_table(shown, colours)
    item.notes = clean(str(shown.attrs.get("notes", "")))
    item.files = {
        "csv": plot.csv(numbers(shown)),
        "md": to_markdown(item.table).encode("utf-8", "replace"),
        "tex": to_latex(item.table).encode("utf-8", "replace"),
    }
    return item


def _colours(comparable: Comparable) -> dict[str, str]:
    """label → colour. An arm's label states how it differs from the other arms shown, so an arm may have two labels: one
    among all arms, one among those at home."""
    arms = [*comparable.every_arm.arms, *comparable.home.arms]
    return {clean(arm.label): look_of(arm.loss).colour for arm in arms}


# ---------------------------------------------------------------- several at a time
class Task(NamedTuple):
    """The arguments of `build_item`."""

    shown: registry.Figure
    comparable: Comparable
    prefix: str
    pictures: bool = True


MOST_PROCESSES = 8  # each holds pictures of its own
_waiting: list[Task] = []  # forked processes inherit the frames from here, so that nothing is pickled


def _draw_all(tasks: Sequence[Task]) -> list[Item]:
    """Draw every item, in order, with one process for each core; with one process outside Linux, where forking is not safe.
    The bytes are the same. Raises PobenchError where one of them was killed."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    processes = min(cores, len(tasks), MOST_PROCESSES)
    if processes < 2:
        return [build_item(*task) for task in tasks]
    # frames are read once for all, and those that need torch are derived before the fork, which would lose torch's threads;
    # one that fails, fails its figures
    for shown, comparable, *_ in tasks:
        for name in shown.frames:
            with suppress(Exception):
                frames = comparable.shown_in(shown).frames
                if name not in shown.by_run:
                    frames.get(name)
                elif name in DERIVED and (rows := frames.rows(name)) is not None:
                    for arm in comparable.home.arms:  # a table reads few others
                        rows.of(arm.runs)
    _waiting[:] = tasks
    try:
        context, ends = multiprocessing.get_context("fork"), (os.getpid(),)
        with ProcessPoolExecutor(processes, context, end_with_and_at_signals, ends) as pool:
            return list(pool.map(_draw_waiting, range(len(tasks))))
    except BrokenProcessPool:
        raise PobenchError(
            "a process that draws the report was killed: the system may have run out of memory; the same command goes on"
        ) from None
    finally:
        _waiting.clear()


def _draw_waiting(place: int) -> Item:
    return build_item(*_waiting[place])


# ---------------------------------------------------------------- the runs behind an item
def made_from(data: pd.DataFrame, shown: registry.Figure, selection: Selection) -> tuple[str, ...]:
    """The runs behind a figure or table: those of the arms named in its data, or all runs of its frames."""
    frames = selection.frames
    every_run = {str(run) for run in frames["runs"]["run"]}
    read = [rows for name in shown.frames if name != "runs" and (rows := frames.rows(name)) is not None]
    measured = {run for rows in read for run in rows.runs} or (every_run if "runs" in shown.frames else set())
    runs_of = {arm.label: arm.runs for arm in selection.arms}
    label_columns = [data[column] for column in data if column in NAMES_ARMS]
    labelled = {run for column in label_columns for label in column.unique() for run in runs_of.get(label, ())}
    pooled = {arm.id for arm in selection.arms}
    loss_of = frames["runs"].set_index("run")["loss"]
    runs = (measured & labelled if labelled else measured) - pooled
    return tuple(sorted(runs, key=lambda run: (loss_of.get(run) != "start", run)))


NAMES_ARMS = ("Loss", "label", "trained", "row", "column", "beside", "start")  # columns with labels of arms


def say_made_from(items: Sequence[Item], runs: pd.DataFrame) -> None:
    """Fill in `from_every` or `behind` of the items of a section. runs: all of the section."""
    short = short_names(runs["run"])
    alike = _alike(runs)
    for item in items:
        item.from_every = alike.get(frozenset(item.runs), "")
        names = [] if item.from_every else [run for run in item.runs if run in short]
        item.behind = [Cell(clean(short[run]), full=clean(run)) for run in names[:MOST_RUNS]]


def _alike(runs: pd.DataFrame) -> dict[frozenset[str], str]:
    """Sets of runs that have a name of their own."""
    trained, finished = runs["loss"] != "start", runs["status"] == "finished"
    sets = {
        "finished trained run": trained & finished,
        "finished run": finished,
        "trained run": trained,
        "run": finished | ~finished,
    }
    return {
        frozenset(runs.loc[chosen, "run"]): f"all {chosen.sum()} {name}s"
        for name, chosen in sets.items()
        if chosen.sum() > 1
    }


def list_made_from(items: Sequence[Item], comparable: Comparable, prefix: str) -> Item:
    """The table of all figures and tables with the runs behind each; its CSV names every run."""
    runs = comparable.frames["runs"].set_index("run")
    rows, stored = [], []
    for item in items:
        behind = runs.loc[[run for run in item.runs if run in runs.index]]
        trained = behind[behind["loss"] != "start"]
        seeds = sorted({int(seed) for seed in trained["seed"]})
        row = {
            "Shown": item.title,
            "In the paper": item.paper or "ours",
            "Losses": trained["loss"].nunique() or math.nan,
            "Seeds": listing([str(seed) for seed in seeds]) or "–",
            "Runs": len(behind) or math.nan,
        }
        names = [cell.text for cell in item.behind]
        further = len(behind) - NAMED_RUNS
        first = ", ".join(names[:NAMED_RUNS]) + (f" and {further} more" if further > 0 else "")
        from_runs = item.from_every or first or item.missing or "what every run shares"
        rows.append({**row, "Made from": from_runs})
        stored.append({"name": item.name, **row, "Made from": " ".join(behind.index)})
    item = Item(
        "made-from", f"{prefix}-made-from", "table", "All figures and tables, and what each was made from", "",
        "“Runs” has the runs by name, and the CSV the names behind each row. Where there is nothing, the reason.",
        "methods",
    )  # fmt: skip
    shown = pd.DataFrame(rows)
    shown.attrs["data"] = pd.DataFrame(stored)
    return _as_table(item, shown, {})


NAMED_RUNS = 3
ROWS_OF_RUNS = 24  # that are not folded
MOST_RUNS = 200  # that the page names; the CSV has all


def list_runs(comparable: Comparable, prefix: str) -> Item:
    """The table of all runs, by arm; its CSV has their whole names."""
    runs = comparable.frames["runs"].set_index("run")
    short = short_names(runs.index)
    arm_of = {run: arm for arm in arms_of(comparable.frames["runs"], every_round=True) for run in arm.runs}
    names = [
        run for arm in dict.fromkeys(arm_of.values()) for run in sorted(arm.runs, key=lambda r: (runs["seed"][r], r))
    ]
    rows = [
        {
            "Loss": arm_of[run].label,
            "Seed": "–" if runs["loss"][run] == "start" else str(runs["seed"][run]),
            "Run": short[run],
            "State": runs["status"][run],
        }
        for run in names
    ]
    further = f" {len(names) - MOST_RUNS} more are in the CSV." if len(names) > MOST_RUNS else ""
    item = Item(
        "runs", f"{prefix}-runs", "table", "Runs", "",
        "Every run that this report was made from. Of a run's digest so many digits stand here as tell it from the others, and "
        "commands take it so. A click shows the whole name and copies it, or leads to the run's page where there is one."
        + further,
        "methods",
    )  # fmt: skip
    shown = pd.DataFrame(rows[:MOST_RUNS])
    shown.attrs["data"] = pd.DataFrame(rows).assign(Run=names)
    if len(shown) > ROWS_OF_RUNS:
        shown.attrs["folded"] = (ROWS_OF_RUNS, f"{len(shown) - ROWS_OF_RUNS} more runs")
    made = _as_table(item, shown, _colours(comparable))
    for row, run in zip(made.table.rows if made.table else (), names, strict=False):
        row[2].full = clean(run)
    return made
