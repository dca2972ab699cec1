"""Figures `margin-vs-length` and `simpo-margin-vs-length`: reward margins of held-out and training pairs against the length
difference."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, GRID, INK, PAPER, look_of
from pobench.results import pair_values, stats
from pobench.results.arms import Arm, arms_of, of_arm
from pobench.results.groups import prompts_of
from pobench.results.pair_values import OfRows
from pobench.types import Estimate

HELD_OUT, TRAINING = "held-out", "training"  # pairs
Line = tuple[pd.DataFrame, Estimate]  # bins, and the correlation of length difference and margin
Panel = tuple[Arm, dict[str, Line]]  # an arm's lines, by which pairs


@register_figure(
    "margin-vs-length", title="Each loss's own reward margin against length difference", chapter="length", order=331
)
def margin_vs_length(
    runs: pd.DataFrame,
    heldout: pd.DataFrame,
    trainpairs: pd.DataFrame | None = None,
    *,
    bins: int = 8,
    width: float | None = None,
) -> plot.Drawing:
    """Mean reward margin of held-out pairs, binned by how many tokens longer the chosen answer is; the band is the 95 %
    interval of the mean, ρ Spearman's correlation of the two with its own. Dashed, with a ρ of their own: training pairs,
    which the paper shows, where they were scored (`--stages trainpairs`). Each panel has the loss's own unit, so compare
    shapes, not heights. A line that climbs from far below zero to far above it shows a reward that mostly counts tokens; a
    flat line above zero shows one that ranks pairs whatever their length. A dashed line far above the other was learned by
    heart. Bins hold equal numbers of pairs (the setting width gives fixed ones; the paper uses 100)."""
    panels = _panels(runs, {HELD_OUT: heldout, TRAINING: trainpairs}, pair_values.margin, bins, width)
    if not panels:
        raise plot.NothingToDraw("No trained model has rewards on held-out pairs.")
    drawing = _draw(panels, "mean reward margin, own unit", one_scale=False)
    strong = [arm.label for arm, lines in panels if HELD_OUT in lines and lines[HELD_OUT][1].low > 0.5]
    text = f"The margin follows length strongly (ρ above 0.5) for {', '.join(strong)}." if strong else ""
    return drawing._replace(notes=f"{text} {drawing.notes}".strip())


@register_figure(
    "simpo-margin-vs-length",
    title="The margin of SimPO's reward against length difference",
    paper="Fig. 2a",
    chapter="length",
    order=330,
)
def simpo_margin_vs_length(
    runs: pd.DataFrame,
    heldout: pd.DataFrame,
    trainpairs: pd.DataFrame | None = None,
    *,
    bins: int = 8,
    width: float | None = None,
) -> plot.Drawing:
    """Every model by one yardstick, as the paper's figure draws its three: the margin of SimPO's reward, twice the mean
    log-probability per token of the chosen minus that of the rejected answer, whatever loss has trained the model. Binned
    by how many tokens longer the chosen answer is; all panels have one scale, so heights may be compared, the start
    model's too. Dashed: training pairs, which the paper shows. A line that lies above zero everywhere shows a model that
    finds the better answer likelier whatever its length; one that climbs from below zero to above it finds the longer
    answer likelier. (The paper, Mistral-Base, at 200 tokens shorter and longer: SimPO 0.3 and 2.0, SimPO without length
    normalisation −8.9 and 8.7, which is no margin of sums: those have the other sign.)"""
    panels = _panels(runs, {HELD_OUT: heldout, TRAINING: trainpairs}, pair_values.simpo_margin, bins, width)
    if not panels:
        raise plot.NothingToDraw("No model has log-probabilities of held-out pairs.")
    return _draw(panels, "mean margin of SimPO's reward at β = 2", one_scale=True)


def _panels(
    runs: pd.DataFrame, frames: Mapping[str, pd.DataFrame | None], margin: OfRows, bins: int, width: float | None
) -> list[Panel]:
    return [(arm, lines) for arm in arms_of(runs) if (lines := _lines(arm, frames, margin, bins, width))]


def _draw(panels: list[Panel], unit: str, *, one_scale: bool) -> plot.Drawing:
    figure, axes = plot.panels(len(panels), sharey=one_scale)
    for ax, (arm, lines) in zip(axes, panels, strict=True):
        _panel(ax, arm, lines)
    plot.outer_labels(figure, "chosen minus rejected length, tokens", unit)
    data = pd.concat(
        [
            line.assign(loss=arm.loss, label=arm.label, pairs=of)
            for arm, lines in panels
            for of, (line, _) in lines.items()
        ],
        ignore_index=True,
    )
    return plot.Drawing(figure, data, plot.counted(data["n"], "pairs a bin"))


def _lines(
    arm: Arm, frames: Mapping[str, pd.DataFrame | None], margin: OfRows, bins: int, width: float | None
) -> dict[str, Line]:
    """Which pairs → their line, of those that have a margin."""
    lines: dict[str, Line] = {}
    for of, frame in frames.items():
        if frame is None:
            continue
        rows = of_arm(frame, arm)
        rows = rows.assign(longer=pair_values.longer(rows), margin=margin(rows)).dropna(subset=["longer", "margin"])
        sides = rows["longer"].to_numpy(float), rows["margin"].to_numpy(float)
        line = plot.binned(*sides, rows["pair"], rows["run"], bins=bins, width=width) if len(rows) else ()
        if len(line):
            lines[of] = line, stats.spearman(*sides, rows["run"], prompts_of(rows["pair"]))
    return lines


def _panel(ax: plot.Axes, arm: Arm, lines: dict[str, Line]) -> None:
    colour, marker, _ = look_of(arm.loss)
    ax.axhline(0, color=FAINT, linewidth=0.8)
    ax.axvline(0, color=GRID, linewidth=0.8)
    for of, (line, _) in lines.items():
        solid = of == HELD_OUT
        ax.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.2 if solid else 0.08, linewidth=0)
        ax.plot(
            line["x"], line["value"], marker=marker, color=colour, markersize=4, linestyle="-" if solid else (0, (4, 2)),
            markerfacecolor=colour if solid else PAPER,
        )  # fmt: skip
        plot.hint_estimates(ax, line["x"], line, plot.short(arm.label if solid else f"{arm.label}, {of}"))
    plot.heading(ax, arm)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.2 * len(lines) * (high - low))  # room for the words
    words = [plot.rho(rho) if len(lines) == 1 else f"{of}: {plot.rho(rho)}" for of, (_, rho) in lines.items()]
    size = 8 if len(lines) == 1 else 6.5
    ax.annotate("\n".join(words), (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=size, color=INK)
