"""Figure `heldout-accuracy`: how often a loss's own reward prefers the chosen answer of a held-out pair."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.types import Estimate


@register_figure(
    "heldout-accuracy", title="Reward accuracy on held-out pairs", paper="Fig. 4c", chapter="results", order=40
)
def heldout_accuracy(runs: pd.DataFrame, scores: pd.DataFrame) -> plot.Drawing:
    """Share of held-out pairs whose chosen answer has the higher reward, by each loss's own reward. The dashed line is
    chance. A high accuracy shows that the training signal was learned, not that the answers became better. (The paper,
    Mistral-Base: DPO 69.7 %, SimPO 72.0 %.)"""
    rows = plot.metric_rows(runs, scores, "reward_accuracy")
    if not rows:
        raise plot.NothingToDraw("No trained model has rewards on held-out pairs.")
    figure, ax = plot.single(plot.dots_height(len(rows)))
    coin = Estimate(0.5, float("nan"), float("nan"), 0)
    plot.dots(ax, rows, baseline=coin, show=lambda v: f"{100 * v:.1f}")
    plot.percent_axis(ax)
    ax.set_xlabel("pairs ranked right")
    return plot.Drawing(figure, plot.rows_data(rows))
