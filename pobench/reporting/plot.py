"""The style and the building blocks of every figure: panels, dot plots, axes, hints, and bytes as PNG, SVG and CSV.

A figure is a function of frames that returns a `Drawing`; it touches no disk and no global state of matplotlib.
`pobench.reporting.draw` supplies the frames by name and sets the style. The same drawing gives the same bytes.
"""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Rectangle
from matplotlib.spines import Spine
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import ArrayLike, NDArray

from pobench.reporting.looks import FAINT, GRID, INK, PAGE_COLOURS, PAPER, SHADE, START, look_of
from pobench.results import stats
from pobench.results.arms import Arm, arms_of, score_of, seed_values
from pobench.results.equal_tuning import values_of
from pobench.results.groups import prompts_of
from pobench.results.rows import Frame
from pobench.spreadsheet import csv_bytes
from pobench.types import Estimate


class NothingToDraw(Exception):
    """The frames lack what a figure or table needs. The message is one sentence, which the report prints in its place."""


class Figure(matplotlib.figure.Figure):
    """matplotlib's figure, which shows itself in a notebook, whatever backend is chosen there."""

    def _repr_png_(self) -> bytes:
        return png(self)


Numbers = NDArray[np.float64]


class Drawing(NamedTuple):
    """A drawn figure: the picture, the numbers behind it, and notes that these data add to the caption."""

    figure: Figure
    data: pd.DataFrame
    notes: str = ""


# ---------------------------------------------------------------- style
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # labels are data: a dollar sign in a name starts no formula
    "text.hinting": "no_hinting",  # the same width of text in every format
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.labelsize": 8.5,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": FAINT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.fonttype": "path",  # the same picture on every machine
    "path.simplify": True,
}
WIDTH = 9.8  # inches: the report's text column


@contextmanager
def style(salt: str = "pobench") -> Iterator[None]:
    """Our style instead of the user's, within the block."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+")  # a name may use a letter that the font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        matplotlib.rcParams["svg.hashsalt"] = salt
        yield


# ---------------------------------------------------------------- canvases
def panels(
    count: int, *, columns: int = 4, height: float = 1.9, width: float = WIDTH, sharex: bool = True, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
    """A grid of `count` small panels, row by row; `height` inches each. A few panels are not stretched."""
    rows, most = math.ceil(count / columns), columns
    columns = math.ceil(count / rows) if count else 1  # rows of equal length
    width = max(width * columns / most, 0.5 * WIDTH)  # room for the figure's common labels
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.02, hspace=0.03)
    figure = _Panels(figsize=(width, height * rows + 0.5), layout=layout)
    figure.sharex, figure.sharey = sharex, sharey
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for i, ax in enumerate(axes):
        ax.set_visible(i < count)
        # the last panel of each column and the first of each row carry the ticks
        ax.tick_params(labelbottom=not sharex or i + columns >= count, labelleft=not sharey or i % columns == 0)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes[:count]


class _Panels(Figure):
    """A figure whose panels get common limits at the end. (matplotlib's shared axes update every panel for every other;
    with a hundred panels that takes half of the drawing time.)"""

    sharex = sharey = False

    def align(self) -> None:
        drawn = [ax for ax in self.axes if ax.get_visible() and ax.has_data()]
        if self.sharex and drawn:
            lows, highs = zip(*(ax.get_xlim() for ax in drawn), strict=True)
            for ax in drawn:
                ax.set_xlim(min(lows), max(highs))
        if self.sharey and drawn:
            lows, highs = zip(*(ax.get_ylim() for ax in drawn), strict=True)
            for ax in drawn:
                ax.set_ylim(min(lows), max(highs))


def single(height: float, *, width: float = WIDTH) -> tuple[Figure, Axes]:
    """One panel, `height` inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def outer_labels(figure: Figure, x: str, y: str) -> None:
    """One x label and one y label for all panels."""
    figure.supxlabel(x, fontsize=8.5, color=FAINT)
    figure.supylabel(y, fontsize=8.5, color=FAINT)


def heading(ax: Axes, arm: Arm) -> None:
    """The panel's title: the arm's label after its marker."""
    spec = ax.get_subplotspec()
    longest = 96 // spec.get_gridspec().ncols if spec is not None else 34
    colour, marker, _ = look_of(arm.loss)
    ax.set_title("\u2003" + short(arm.label, longest))
    place = ScaledTranslation(3.5 / 72, (STYLE["axes.titlepad"] + 3.4) / 72, ax.figure.dpi_scale_trans)
    ax.add_artist(
        Line2D(
            [0],
            [1],
            color=colour,
            marker=MarkerStyle(marker),
            markersize=6,
            transform=ax.transAxes + place,
            clip_on=False,
        )
    )


def short(text: Any, longest: int = 28) -> str:
    """One printable line of at most `longest` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def rectangle(x: float, y: float, width: float, height: float, **look: Any) -> Rectangle:
    """A filled cell in data coordinates, by default without an edge."""
    return Rectangle((x, y), width, height, **{"linewidth": 0, **look})


def log_scale(axis_of: Axes, which: str = "y") -> None:
    """A logarithmic axis with plain numbers."""
    axis_of.set(**{f"{which}scale": "log"})
    axis = axis_of.yaxis if which == "y" else axis_of.xaxis
    axis.set_major_locator(_FewTicks(numticks=4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


class _FewTicks(LogLocator):
    """Ticks at 1, 2 and 5 times the powers of ten; over more than two of them, at powers of ten alone."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        self.set_params(subs=(1, 2, 5) if vmax < 100 * vmin else (1,))
        return super().tick_values(vmin, vmax)


def value_axis(ax: Axes, values: ArrayLike) -> None:
    """An x axis with ticks at the values, logarithmic if they span a factor of five or more. Labels that would overlap are
    left out, except those of both ends."""
    at = np.unique(np.asarray(values, dtype=float))
    spread = len(at) > 1 and at[0] > 0 and at[-1] / at[0] >= 5
    if spread:
        ax.set_xscale("log")
    place = np.log(at) if spread else at
    place = (place - place[0]) / (np.ptp(place) or 1.0)  # 0 to 1
    texts = [brief(value) for value in at]
    inches = ax.figure.get_figwidth() / ax.get_subplotspec().get_gridspec().ncols * 0.75  # type: ignore[union-attr]
    room = [0.09 * len(text) / inches for text in texts]  # width of a label, at the ticks' font size
    last = len(at) - 1
    ticks = [0]
    for k in range(1, last):
        if all(abs(place[k] - place[j]) > (room[k] + room[j]) / 2 for j in (ticks[-1], last)):
            ticks.append(k)
    ticks = sorted({*ticks, last})
    ax.set_xticks(at[ticks], [texts[k] for k in ticks])
    ax.set_xticks([], minor=True)


def brief(value: float) -> str:
    """A setting's value in few characters: `0.0003` is `3e-4`."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    if not exponent and value and abs(value) < 0.001:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}".replace("-", "−") if exponent else mantissa.replace("-", "−")


def counted(n: ArrayLike, of: str) -> str:
    """`n = 178 to 300 prompts or pairs.`, "" where nothing was counted."""
    known = sorted({int(k) for k in np.asarray(n, dtype=float) if k > 0})
    ends = " to ".join(str(k) for k in dict.fromkeys(known[:1] + known[-1:]))
    return f"n = {ends} {of}." if known else ""


def rho(e: Estimate) -> str:
    """A correlation in words: `ρ = 0.34  [0.21, 0.46]`."""
    if math.isnan(e.value):
        return "ρ undefined"
    interval = "" if math.isnan(e.low) else f"  [{e.low:.2f}, {e.high:.2f}]"
    return f"ρ = {e.value:.2f}{interval}".replace("-", "−")


def thinned(x: ArrayLike, y: ArrayLike, most: int) -> tuple[Numbers, Numbers]:
    """About `most` of the points of a line, x rising: of every stretch its lowest and its highest, so that the line looks the
    same where stretches are narrower than its stroke. A line of fewer points stays as it is."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) <= most:
        return xs, ys
    kept = {0, len(xs) - 1}
    for part in np.array_split(np.arange(len(xs)), max(1, most // 2)):
        known = part[np.isfinite(ys[part])]
        kept |= {int(known[ys[known].argmin()]), int(known[ys[known].argmax()])} if len(known) else {int(part[0])}
    places = sorted(kept)
    return xs[places], ys[places]


# ---------------------------------------------------------------- names at the ends of lines
MOST_NAMED = 16  # lines of a panel; more names would hide each other
NAME_SIZE = 7.0  # points
_LINE_NAME = "name of a line"  # marks the texts that `part_names` moves


def name_lines(ax: Axes, longest: int = 18) -> bool:
    """Write the label of each line beside its last point. With more than `MOST_NAMED` lines: nothing, and False."""
    lines, labels = ax.get_legend_handles_labels()
    if len(lines) > MOST_NAMED:
        return False
    for line, label in zip(lines, labels, strict=True):
        assert isinstance(line, Line2D)
        points = np.column_stack([np.asarray(values, dtype=float) for values in line.get_data()])
        points = points[np.isfinite(points).all(axis=1)]
        if len(points):
            name = ax.annotate(
                short(label, longest), points[-1], (1.03, 0.5), "data", "axes fraction", annotation_clip=False, va="center",
                arrowprops={"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2},
                fontsize=NAME_SIZE, color=INK,
            )  # fmt: skip
            name.set_label(_LINE_NAME)
    return True


def part_names(figure: Figure) -> None:
    """Set the height of each line's name, in the figure's present layout: near the line's end, no two on each other."""
    for ax in figure.axes:
        names = [t for t in ax.texts if isinstance(t, Annotation) and t.get_label() == _LINE_NAME]
        height = {name: float(ax.transAxes.inverted().transform(ax.transData.transform(name.xy))[1]) for name in names}
        names.sort(key=height.__getitem__)
        gap = 1.25 * NAME_SIZE / 72 * figure.dpi / ax.bbox.height
        for name, at in zip(names, apart([height[name] for name in names], gap), strict=True):
            name.set_position((1.03, at))


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart, as near to the wanted ones, which rise, as can be, and within [0, 1] where they fit."""
    blocks: list[list[float]] = []  # of places that touch; each less the gaps below it
    for k, at in enumerate(wanted):
        blocks.append([at - k * gap])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            upper = blocks.pop()
            blocks[-1] += upper
    lowest = [float(np.mean(block)) for block in blocks for _ in block]
    highest = max(0.0, 1 - gap * (len(wanted) - 1))
    return [min(max(at, 0.0), highest) + k * gap for k, at in enumerate(lowest)]


BETTER, WORSE = "#1c5fb0", "#b3401a"  # of a cell that is better or worse than its comparison; no loss has them


def matrix_axes(ax: Axes, rows: Sequence[str], columns: Sequence[str], *, names_above: bool = False) -> None:
    """Axes whose cell (row, column) is the unit square at (column, row), rows from top to bottom, with their names."""
    side = "left" if names_above else "right"
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=35, ha=side, rotation_mode="anchor")
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    if names_above:
        ax.xaxis.tick_top()
    ax.tick_params(length=0, labelcolor=INK)
    ax.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
    ax.grid(False)
    ax.spines[:].set_visible(False)


def percent_axis(ax: Axes, which: str = "x") -> None:
    """Shares in [0, 1] printed as per cent."""
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %".replace("-", "−")))


# ---------------------------------------------------------------- a dot and its interval
class Row(NamedTuple):
    """One row of a dot plot; `seeds` are faint dots. values: where the arm's values come from, see `equal_tuning`."""

    arm: Arm
    estimate: Estimate
    seeds: Sequence[float] = ()
    remark: str = ""
    values: str = ""


def dots(
    ax: Axes,
    rows: Sequence[Row],
    *,
    baseline: Estimate | None = None,
    show: Callable[[float], str] = "{:.3g}".format,
    zero: float | None = None,
) -> None:
    """Rows from top to bottom: marker at the value, line over the interval, the numbers at the right edge.

    baseline: the start model, a dashed line with its interval as a band. zero: the place of a thin solid line.
    """
    if zero is not None:
        ax.axvline(zero, color=FAINT, linewidth=0.8, zorder=1)
    if baseline is not None and not math.isnan(baseline.value):
        if not math.isnan(baseline.low):
            ax.axvspan(baseline.low, baseline.high, color=SHADE, linewidth=0, zorder=0)
        ax.axvline(baseline.value, color=START.colour, linestyle=(0, (4, 3)), linewidth=1, zorder=1)
    for place, row in enumerate(rows):
        colour, marker, _ = look_of(row.arm.loss)
        e, before = row.estimate, set(ax.get_children())
        ax.plot(
            row.seeds, [place] * len(row.seeds), marker=marker, color=colour, alpha=0.3, markersize=4, linestyle="none"
        )
        if not math.isnan(e.low):
            ax.plot([e.low, e.high], [place, place], color=colour, linewidth=2.2, alpha=0.75)
        edge, size = (
            (PAPER, 7.5) if isinstance(marker, str | tuple) else (colour, 9.5)
        )  # a letter is as thin as an edge
        ax.plot(
            [e.value], [place], marker=marker, color=colour, markersize=size, markeredgecolor=edge, markeredgewidth=0.8
        )
        numbers = show(e.value) if math.isnan(e.low) else f"{show(e.value)}  [{show(e.low)}, {show(e.high)}]"
        text = f"{numbers}   n = {e.n}" + (f"   {row.remark}" if row.remark else "")
        label = short(row.arm.label)
        whose = f"{label}, {row.values}" if row.values else label
        hint(ax, [e.value], [place], [f"{whose}: {' '.join(text.split())}"])
        hint(ax, row.seeds, [place] * len(row.seeds), [f"{label}, one seed: {show(v)}" for v in row.seeds], aloud=False)
        ax.annotate(
            text, (1.015, place), xycoords=("axes fraction", "data"), va="center", fontsize=7.5, color=FAINT,
            annotation_clip=False,
        )  # fmt: skip
        for artist in set(ax.get_children()) - before:
            artist.set_label(f"{OF_LOSS}{row.arm.loss}")
    ax.set_yticks(range(len(rows)), [short(row.arm.label) for row in rows])
    ax.tick_params(axis="y", labelcolor=INK, labelsize=9)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))


def metric_rows(runs: pd.DataFrame, scores: pd.DataFrame, metric: str, *, ranked: bool = True) -> list[Row]:
    """A row for every trained arm that has the metric; the highest value first if `ranked`."""
    rows = [
        Row(arm, score_of(scores, arm, metric), seed_values(scores, arm, metric), values=values_of(runs, arm))
        for arm in arms_of(runs)
        if not arm.is_start
    ]
    rows = [row for row in rows if not math.isnan(row.estimate.value)]
    return sorted(rows, key=lambda row: -row.estimate.value) if ranked else rows


def start_score(runs: pd.DataFrame, scores: Frame, metric: str) -> Estimate:
    """The start model's estimate of a metric; missing where there is none."""
    of_start = [score_of(scores, arm, metric) for arm in arms_of(runs) if arm.is_start]
    return of_start[0] if of_start else Estimate.missing()


def rows_data(rows: Sequence[Row]) -> pd.DataFrame:
    """The CSV behind a dot plot: one line per arm and one per seed. The last column says where the arm's values come from."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        arm = {"loss": row.arm.loss, "label": row.arm.label, "values": row.values}
        lines.append({**arm, "of": "all", **estimate_columns(row.estimate)})
        lines += [{**arm, "of": "seed", "value": v} for v in row.seeds]
    return pd.DataFrame(lines, columns=["loss", "label", "of", "value", "low", "high", "n", "values"])


def dots_height(rows: int) -> float:
    """The height in inches of a dot plot with this many rows."""
    return 0.31 * rows + 0.85


def estimate_columns(estimate: Estimate, prefix: str = "") -> dict[str, float]:
    """value, low, high, n as columns of the CSV behind a figure."""
    return {f"{prefix}{k}": v for k, v in zip(("value", "low", "high", "n"), _fields(estimate), strict=True)}


def _fields(e: Estimate) -> tuple[float, float, float, int]:
    return e.value, e.low, e.high, e.n


def binned(
    x: np.ndarray, y: np.ndarray, pairs: pd.Series, runs: pd.Series, *, bins: int = 8, width: float | None = None
) -> pd.DataFrame:
    """The mean of y in bins of x, with its interval: columns x (mean of the bin), low_edge, high_edge, value, low,
    high, n.

    x, y, pairs, runs: (observations,), each of a pair and a run.
    bins: this many with equal counts (fewer where x repeats or data are few); width: bins of this fixed width instead.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    good = ~(np.isnan(x) | np.isnan(y))
    x, y = x[good], y[good]
    columns = ["x", "low_edge", "high_edge", "value", "low", "high", "n"]
    if len(x) == 0:
        return pd.DataFrame(columns=columns, dtype=float)
    if width is not None:
        edges = np.arange(math.floor(x.min() / width), math.floor(x.max() / width) + 2) * width
    else:
        edges = np.unique(np.quantile(x, np.linspace(0, 1, max(1, min(bins, len(x) // 5)) + 1)))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    rows, pairs, runs = [], pairs[good], runs[good]
    for k in np.unique(place):
        inside = place == k
        e = stats.mean(y[inside], pairs[inside], runs[inside], prompts_of(pairs[inside]))
        rows.append((x[inside].mean(), edges[k], edges[min(k + 1, len(edges) - 1)], *_fields(e)))
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------- what belongs to a loss
OF_LOSS = "_loss:"  # before a loss's name, in an artist's label; a legend leaves out labels with an underscore


BOTH = " | "  # between the losses of a matrix's cell
KEPT = "_kept"  # the id of a panel's title that stays where the panel's loss is hidden


def mark_losses(figure: Figure, arms: Sequence[Arm]) -> None:
    """Give every artist that belongs to losses an id, by which `inline_svg` tells the page's script: rows of a dot plot, names
    of arms, what has a colour that only one of the losses has, cells of a matrix, and panels of one loss."""
    trained = [arm for arm in arms if not arm.is_start]
    colours = {loss: look_of(loss).colour.lower() for loss in {arm.loss for arm in trained}}
    often = Counter(colours.values())
    by_colour = {colour: loss for loss, colour in colours.items() if often[colour] == 1}
    by_name = {short(arm.label, longest): arm.loss for arm in trained for longest in (18, 20, 22, 28, 999)}
    for artist in figure.findobj():
        label = str(artist.get_label())
        if label.startswith(OF_LOSS):
            artist.set_gid(label)
        elif isinstance(artist, Text):
            loss = by_name.get(artist.get_text())
            artist.set_gid(loss and f"{OF_LOSS}{loss}")
        elif loss := by_colour.get(_only_colour(artist)):
            artist.set_gid(f"{OF_LOSS}{loss}")
    for ax in figure.axes:
        _mark_cells(ax, by_name)
        _mark_panel(ax, trained)


def _mark_cells(ax: Axes, by_name: Mapping[str, str]) -> None:
    """The cells of `matrix_axes`: they belong to the losses of their row and of their column."""
    rows, columns = (
        [by_name.get(t.get_text()) for t in ticks] for ticks in (ax.get_yticklabels(), ax.get_xticklabels())
    )
    if ax.get_ylim() != (len(rows), 0) or ax.get_xlim() != (0, len(columns)):
        return
    places: list[tuple[Artist, Any]] = [(patch, patch.get_xy()) for patch in ax.patches if isinstance(patch, Rectangle)]
    places += [(text, text.get_position()) for text in ax.texts]
    places += [(line, at[0]) for line in ax.lines if len(at := np.asarray(line.get_xydata()))]
    for artist, (x, y) in places:
        if 0 <= y < len(rows) and 0 <= x < len(columns):
            losses = {rows[int(y)], columns[int(x)]} - {None}
            artist.set_gid(f"{OF_LOSS}{BOTH.join(sorted(map(str, losses)))}" if losses else None)


def _mark_panel(ax: Axes, trained: Sequence[Arm]) -> None:
    """A panel with a loss's `heading`, or whose lines and dots are all of one loss; then its title, a column's, is kept."""
    title = ax.get_title(loc="left")
    head = re.fullmatch("\u2003(.+?)(…?)", title)
    losses = {
        f"{OF_LOSS}{arm.loss}"
        for arm in trained
        if head and (arm.label.startswith(head[1]) if head[2] else arm.label == head[1])
    }
    if not losses:
        losses = {str(artist.get_gid()) for artist in (*ax.lines, *ax.collections) if artist.get_gid()}
        for text in (ax.title, getattr(ax, "_left_title", ax.title)):
            text.set_gid(KEPT)
    if len(losses) == 1:
        ax.set_gid(losses.pop())


def _only_colour(artist: Artist) -> str:
    """The artist's colour, `#rrggbb`; "" where it has several or none."""
    found: list[Any] = []
    for name in ("get_color", "get_facecolor", "get_edgecolor"):
        value = getattr(artist, name, lambda: None)()
        if value is not None and not isinstance(artist, Spine):
            found += [to_hex(rgba) for rgba in to_rgba_array(value) if rgba[3] > 0]
    rest = set(found) - {PAPER.lower()}
    return rest.pop() if len(rest) == 1 else ""


# ---------------------------------------------------------------- hints under the pointer
MOST_HINTS = 60  # of one series, evenly spaced


class _Hints(Artist):
    """Texts at points of an axes, in its data coordinates. Draws nothing."""

    def __init__(self, points: Sequence[tuple[float, float, str]], aloud: bool) -> None:
        super().__init__()
        self.set_in_layout(False)
        self.points, self.aloud = points, aloud


def hint(ax: Axes, x: ArrayLike, y: ArrayLike, texts: Sequence[str], *, aloud: bool = True) -> None:
    """Texts that the page shows when the pointer is near (x, y); each array (points,), in data coordinates.

    Call it once for each series. aloud: its first and last text also go into the description for screen readers.
    """
    xs, ys = (np.asarray(values, dtype=float).ravel() for values in (x, y))
    points = [point for point in zip(xs, ys, map(str, texts), strict=True) if np.isfinite(point[:2]).all()]
    picked = np.unique(np.linspace(0, len(points) - 1, min(len(points), MOST_HINTS)).round().astype(int))
    ax.add_artist(_Hints([points[i] for i in picked], aloud))


def percent(value: float) -> str:
    """A share in [0, 1]: `12.3 %`."""
    return f"{100 * value:.1f} %"


def hint_cell(
    ax: Axes, x: float, y: float, label: str, e: Estimate, show: Callable[[float], str] = "{:.3g}".format
) -> None:
    """The hint of one estimate, such as a cell of a matrix, at (x, y)."""
    if not math.isnan(e.value):
        ends = "" if math.isnan(e.low) else f" [{show(e.low)}, {show(e.high)}]"
        hint(ax, [x], [y], [f"{label}: {show(e.value)}{ends}, n = {e.n}".replace("-", "−")], aloud=False)


def hint_estimates(
    ax: Axes, x: ArrayLike, rows: pd.DataFrame, label: str, show: Callable[[float], str] = "{:.3g}".format
) -> None:
    """Hints of a line of estimates: rows with the columns value, low, high and n, one for each x."""
    xs = np.asarray(x, dtype=float)
    texts = []
    for at, value, low, high, n in zip(xs, rows["value"], rows["low"], rows["high"], rows["n"], strict=True):
        interval = "" if math.isnan(low) else f" [{show(low)}, {show(high)}]"
        texts.append(f"{label} at {at:.4g}: {show(value)}{interval}, n = {n:.0f}".replace("-", "−"))
    hint(ax, xs, rows["value"], texts)


class Hint(NamedTuple):
    """A text at a point of the picture; x, y: fractions of its width and height, from the upper left corner."""

    x: float
    y: float
    text: str


def hints(figure: Figure) -> list[Hint]:
    """Every hint that lies inside its axes, in the figure's present layout."""
    points = []
    for ax, series in _series(figure):
        for x, y, text in series.points:
            at = ax.transData.transform((x, y))
            if ax.bbox.padded(1).contains(*at):
                across, down = figure.transFigure.inverted().transform(at)
                points.append(Hint(float(across), 1 - float(down), text))
    return points


def described(figure: Figure, longest: int = 16) -> str:
    """The figure in words, for screen readers: the first and last hint of each series; "" without hints."""
    words = []
    for _, series in _series(figure):
        texts = [text for *_, text in series.points] if series.aloud else []
        words += [" to ".join(dict.fromkeys((texts[0], texts[-1])))] if texts else []
    rest = len(words) - longest
    return "; ".join(words[:longest] + ([f"and {rest} more"] if rest > 0 else []))


def _series(figure: Figure) -> Iterator[tuple[Axes, _Hints]]:
    for ax in figure.axes:
        yield from ((ax, artist) for artist in ax.artists if isinstance(artist, _Hints))


# ---------------------------------------------------------------- bytes
def png(figure: Figure) -> bytes:
    """The figure as PNG, without a date or a version in it."""
    with style():
        buffer = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def svg(figure: Figure, salt: str = "pobench", *, text: bool = False) -> str:
    """The figure as SVG, without a date or a version in it; ids depend on `salt` alone. text: letters stay letters, which the
    reader's font draws, instead of outlines that look the same everywhere."""
    with style(salt):
        matplotlib.rcParams["svg.fonttype"] = "none" if text else "path"
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return buffer.getvalue().decode("utf-8")


def inline_svg(text: str, prefix: str, label: str) -> str:
    """The SVG as a lean element of the page, with ids made unique by `prefix`, colours as the page's variables, and `label` for
    screen readers. Coordinates keep a tenth of a point, those of markers a hundredth; letters take the font of the page."""
    text = text[text.index("<svg") :]
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", text))
    text = re.sub(rf' id="{OF_LOSS}([^"]+)"', r' data-loss="\1"', text)
    text = text.replace(f' id="{KEPT}"', " data-kept")
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{prefix}-", text)
    for colour, variable in PAGE_COLOURS.items():
        text = re.sub(rf"(fill|stroke|stop-color): {colour}", rf"\1: var({variable}, {colour})", text)
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:d|x|y|transform)="[^"]*"', _short, text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = _without_bare_groups(re.sub(r">\s+<", "><", text))
    size = re.match(r'<svg[^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', text)
    box = f"0 0 {size[1]} {size[2]}" if size else "0 0 100 100"
    width = f"{float(size[1]) / 0.72:.0f}" if size else "100"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}" '
        f'role="img" aria-label="{_attribute(label)}" style="max-width: {width}px">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)


def _short(attribute: re.Match[str]) -> str:
    """An attribute of coordinates, rounded; "" for a rotation by nothing."""
    if re.fullmatch(r' transform="rotate\(-?0 [^"]*"', attribute[0]):
        return ""
    is_line = attribute[0].startswith(" d=") and not re.search("[CQ]", attribute[0])  # not a marker's curve
    digits = 1 if is_line else 2
    rounded = re.sub(r"-?\d+\.\d+", lambda n: f"{float(n[0]):.{digits}f}".rstrip("0").rstrip("."), attribute[0])
    if not is_line:
        return re.sub(r" ?\n", " ", rounded)
    pairs = re.sub(r" ?\n(?:L )?", " ", rounded)  # those behind a move are lines without a letter
    return re.sub(r"M ([-\d. ]+)", _steps, pairs)


def _steps(line: re.Match[str]) -> str:
    """A line's points, in tenths, as steps from one to the next: shorter, and they pack into half the bytes."""
    tenths = [round(10 * float(number)) for number in line[1].split()]
    steps = [*tenths[:2], *(number - before for before, number in zip(tenths, tenths[2:], strict=False))]
    numbers = [f"{step / 10:g}" for step in steps]
    text = "l".join(" ".join(part) for part in (numbers[:2], numbers[2:]) if part)
    return "M" + re.sub(r" (?=-)|(?<!\d)0(?=\.)", "", text)


def _without_bare_groups(text: str) -> str:
    """Without the `<g>` that have no attributes, which change nothing."""
    parts, bare = list[str](), list[bool]()
    for part in re.split(r"(</?g[^>]*>)", text):
        if part.startswith("<g"):
            bare.append(part == "<g>")
            parts += [] if bare[-1] or part.endswith("/>") else [part]
            if part.endswith("/>"):
                bare.pop()
        elif part == "</g>":
            parts += [] if bare.pop() else [part]
        else:
            parts.append(part)
    return "".join(parts)


def data_uri(content: bytes, kind: str) -> str:
    """`data:` address of the bytes, for a self-contained page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def csv(data: pd.DataFrame) -> bytes:
    """The numbers behind a figure, six significant digits, missing as an empty field."""
    return csv_bytes(data, digits=6)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
