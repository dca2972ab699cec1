"""Figure `gradient-weight`: the derivative of a loss by an answer's log-probability, against the answer's length."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, look_of
from pobench.results.arms import arms_of, of_arm

SIDES = [("chosen", "-"), ("rejected", (0, (3, 1.5)))]


@register_figure(
    "gradient-weight",
    title="Pull on an answer against its length",
    paper="the analysis of gradients",
    chapter="length",
    order=360,
)
def gradient_weight(runs: pd.DataFrame, gradients: pd.DataFrame) -> plot.Drawing:
    """The size of a loss's derivative by the log-probability of an answer, on held-out pairs, at the trained model: solid,
    the chosen answer; dashed, the rejected one; bands are 95 % intervals of the mean. 1 is the loss's own average, so
    compare shapes. Flat: every token of a long answer is pulled as hard as one of a short answer, so long answers move
    the model most. Falling like one over length (the dotted curve): every answer counts the same, however long. Computed
    exactly from stored log-probabilities; `gradient-norm` shows the effect on the weights."""
    panels = []
    for arm in arms_of(runs):
        pairs = of_arm(gradients, arm)
        sizes = pairs[["chosen_weight", "rejected_weight"]].abs()
        mean = sizes.to_numpy(float)[np.isfinite(sizes.to_numpy(float))].mean() if sizes.notna().any(axis=None) else 0.0
        if arm.is_start or not mean > 0:
            continue
        lines = {
            side: plot.binned(
                pairs[f"{side}_length"].to_numpy(),
                (sizes[f"{side}_weight"] / mean).to_numpy(),
                pairs["pair"],
                pairs["run"],
                bins=6,
            )
            for side, _ in SIDES
        }
        panels.append((arm, lines, mean))
    if not panels:
        raise plot.NothingToDraw("No trained model's loss can be differentiated on held-out pairs.")
    figure, axes = plot.panels(len(panels), height=1.75)
    for ax, (arm, lines, _) in zip(axes, panels, strict=True):
        colour = look_of(arm.loss).colour
        for side, style in SIDES:
            line = lines[side]
            ax.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
            ax.plot(line["x"], line["value"], color=colour, linestyle=style, label=side)
            plot.hint_estimates(ax, line["x"], line, f"{plot.short(arm.label)}, {side}, tokens")
        _one_over_length(ax, lines["chosen"])
        ax.set_ylim(bottom=0)
        plot.heading(ax, arm)
    plot.name_lines(axes[0])
    plot.outer_labels(figure, "length of the answer, tokens", "pull, times the loss's average")
    rows = [
        line.assign(loss=arm.loss, label=arm.label, side=side, average=mean)
        for arm, lines, mean in panels
        for side, line in lines.items()
    ]
    return plot.Drawing(figure, pd.concat(rows, ignore_index=True))


def _one_over_length(ax: plot.Axes, line: pd.DataFrame) -> None:
    """The curve proportional to 1 / length with the same mean as the line."""
    if len(line) > 1:
        x = np.linspace(line["x"].min(), line["x"].max(), 60)
        height = np.average(line["value"], weights=line["n"]) / np.average(1 / line["x"], weights=line["n"])
        ax.plot(x, height / x, color=FAINT, linewidth=0.9, linestyle=":")
