"""Figure `margin-density`: distributions over held-out pairs for each target margin."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import gaussian_kde

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, look_of
from pobench.results import pair_values
from pobench.results.arms import lines_of, of_arm
from pobench.results.rows import Rows

GRID = 200  # points of a curve


@register_figure(
    "margin-density",
    title="Reward margin and winners' likelihood by γ",
    paper="Figs. 3b and 3c",
    chapter="results",
    order=52,
    every_arm=True,
)
def margin_density(runs: pd.DataFrame, heldout: Rows) -> plot.Drawing:
    """Left: density of the reward margin over held-out pairs, one curve for each target margin γ (the deeper the
    colour, the larger); right of the line at zero the pair is ranked right. Right: density of the winners'
    log-probability per token. A larger γ spreads the margins and pushes winners to lower likelihood; past some point
    the second costs more than the first gains. (Gaussian kernels, Scott's width; n and means in the CSV.)"""
    curves, rows, labels = [], [], {}
    for line in (line for line in lines_of(runs) if line.setting == "gamma"):
        for place, (gamma, arm) in enumerate(line.points):
            held = of_arm(heldout, arm)
            quantities = {
                "margin": pair_values.margin(held),
                "winner": pair_values.winner(held),
            }
            for name, values in quantities.items():
                x = values.to_numpy(float)
                x = x[np.isfinite(x)]
                if len(x) > 2 and np.ptp(x) > 0:
                    labels[line.loss] = arm.label.partition(" (")[0]
                    depth = (place + 1) / len(line.points)
                    curves.append((line.loss, arm.label, name, gamma, depth, x))
    if not curves:
        raise plot.NothingToDraw("No loss with held-out pairs was trained with several values of γ.")
    losses = list(dict.fromkeys(curve[0] for curve in curves))
    figure = plot.Figure(figsize=(plot.WIDTH, 2.3 * len(losses) + 0.3), layout="constrained")
    axes = figure.subplots(len(losses), 2, squeeze=False)
    titles = {"margin": "reward margin, own unit", "winner": "winners, nats per token"}
    for loss, label, name, gamma, depth, x in curves:
        ax = axes[losses.index(loss)][list(titles).index(name)]
        low, high = np.quantile(x, [0.002, 0.998])  # far beyond them a curve is flat
        at = np.linspace(low - 0.08 * (high - low), high + 0.08 * (high - low), GRID)
        density = gaussian_kde(x)(at)
        ax.plot(at, density, color=look_of(loss).colour, alpha=0.25 + 0.75 * depth, label=f"γ = {gamma:g}")
        says = f"{plot.short(labels[loss])}, γ = {gamma:g}, n = {len(x)} pairs: mean {x.mean():.3g}".replace("-", "−")
        plot.hint(ax, [x.mean()], [np.interp(x.mean(), at, density)], [says])
        ax.set_xlabel(titles[name])
        ax.yaxis.set_major_locator(plot.MaxNLocator(3))
        same = {"loss": loss, "label": label, "quantity": name, "gamma": gamma, "n": len(x), "mean": x.mean()}
        rows.append(pd.DataFrame({"at": at, "density": density}).assign(**same))
    for row, loss in zip(axes, losses, strict=True):
        row[0].axvline(0, color=FAINT, linewidth=0.8)
        row[0].set_ylabel(plot.short(labels[loss], 20), color=look_of(loss).colour, weight="bold")
        row[0].legend()
    data = pd.concat(rows, ignore_index=True)
    return plot.Drawing(figure, data, plot.counted(data["n"], "held-out pairs a curve"))
