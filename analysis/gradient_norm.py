"""Figure `gradient-norm`: the norm of each pair's gradient against the pair's length."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import INK, look_of
from pobench.results import stats
from pobench.results.arms import arms_of, of_arm
from pobench.results.groups import prompts_of


@register_figure(
    "gradient-norm",
    title="Gradient of a pair against its length",
    paper="the analysis of gradients",
    chapter="length",
    order=361,
)
def gradient_norm(runs: pd.DataFrame, gradients: pd.DataFrame) -> plot.Drawing:
    """The length of each held-out pair's gradient by all trained weights, at the trained model, against the tokens of both
    answers; each point is a pair, the line is the mean in bins, and ρ is Spearman's correlation with its 95 % interval.
    1 is the loss's own average, so compare shapes. A ρ far above zero means that long pairs dominate training; a ρ near
    zero, that all pairs count alike. Measured on the pairs whose gradient norms `--stages gradient_norms` has stored."""
    panels = []
    for arm in arms_of(runs):
        pairs = of_arm(gradients, arm).dropna(subset=["norm"])
        mean = pairs["norm"].mean()
        if not arm.is_start and mean > 0:
            tokens = (pairs["chosen_length"] + pairs["rejected_length"]).to_numpy(float)
            points = pd.DataFrame(
                {"run": pairs["run"], "pair": pairs["pair"], "tokens": tokens, "norm": pairs["norm"] / mean}
            )
            rho = stats.spearman(points["tokens"], points["norm"], points["run"], prompts_of(points["pair"]))
            panels.append((arm, points, rho))
    if not panels:
        raise plot.NothingToDraw("No run has measured the gradients of its held-out pairs (`--stages gradient_norms`).")
    figure, axes = plot.panels(len(panels), height=1.9)
    for ax, (arm, points, rho) in zip(axes, panels, strict=True):
        colour = look_of(arm.loss).colour
        ax.plot(points["tokens"], points["norm"], "o", color=colour, alpha=0.4, markersize=2.8, markeredgewidth=0)
        line = plot.binned(
            points["tokens"].to_numpy(), points["norm"].to_numpy(), points["pair"], points["run"], bins=5
        )
        ax.plot(line["x"], line["value"], color=INK, linewidth=1.3)
        plot.hint_estimates(ax, line["x"], line, f"{plot.short(arm.label)}, tokens")
        ax.set_ylim(0, max(2.0, float(np.quantile(points["norm"], 0.98)) * 1.15))
        plot.heading(ax, arm)
        ax.annotate(plot.rho(rho), (0.97, 0.92), xycoords="axes fraction", ha="right", fontsize=8, color=INK)
    plot.outer_labels(figure, "tokens of both answers", "gradient, times the loss's average")
    data = pd.concat([points.assign(loss=arm.loss, label=arm.label) for arm, points, _ in panels], ignore_index=True)
    return plot.Drawing(figure, data)
