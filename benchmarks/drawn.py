"""What the tables and pictures of all benchmarks share."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pobench.reporting import plot
from pobench.reporting.looks import FAINT, INK, look_of
from pobench.reporting.tables import make_table, show_number, to_markdown
from pobench.types import Estimate

# No loss's colours: what is compared here are programs.
OURS, THEIRS, AS_IT_COMES = INK, FAINT, "#aeb6bf"


def table(rows: list[dict[str, Any]]) -> str:
    return to_markdown(make_table(pd.DataFrame(rows))).rstrip()


def estimate(spread: dict[str, float]) -> Estimate:
    """The median over rounds, between the least and the greatest; a single round has no interval."""
    n = int(spread["n"])
    low, high = (spread["min"], spread["max"]) if n > 1 else (math.nan, math.nan)
    return Estimate(spread["median"], low, high, n)


def step_figure(rows: dict[str, tuple[dict[str, Any], str]]) -> Figure:
    """Time, memory and use of the machine, a bar a row. rows: label → (what was measured, colour)."""
    shown = {
        "seconds_per_pair": ("seconds a pair", 1.0),
        "peak_memory": ("peak memory, GB", 1e-9),
        "mfu": ("share of the matrix-product peak", 1.0),
    }
    figure, axes = plot.panels(len(shown), columns=3, height=0.5 + 0.28 * len(rows), sharex=False)
    for ax, (key, (label, unit)) in zip(axes, shown.items(), strict=True):
        for place, (measured, colour) in enumerate(rows.values()):
            spread = {k: v * unit for k, v in measured[key].items()}
            bar(ax, place, spread["median"], colour, (spread["min"], spread["max"]))
        bars_axis(ax, list(rows), label)
    return figure


def bar(
    ax: Axes, place: float, value: float, colour: str, ends: tuple[float, float] | None = None, height: float = 0.62
) -> None:
    """A bar from zero, the number behind it; ends: the least and greatest over rounds, as a thin line."""
    ax.barh(place, value, height=height, color=colour, linewidth=0)
    if ends is not None:
        ax.plot(ends, [place, place], color=look_of("dpo").colour, linewidth=1.2)
    farthest = max(value, ends[1] if ends else value)
    ax.annotate(
        show_number(value), (farthest, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5,
        color=FAINT,
    )  # fmt: skip


def bars_axis(ax: Axes, labels: list[str], unit: str) -> None:
    ax.set_yticks(range(len(labels)), [label if "\n" in label else plot.short(label) for label in labels])
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.margins(x=0.18)
    ax.set_xlim(left=0)
    ax.grid(False, axis="y")
    ax.set_xlabel(unit)
