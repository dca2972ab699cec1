"""Figure `kl`: the distance of each model from the start model."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot


@register_figure(
    "kl", title="Distance from the start model on held-out winners", paper="Fig. 5a", chapter="length", order=310
)
def kl(runs: pd.DataFrame, scores: pd.DataFrame) -> plot.Drawing:
    """Estimated KL(reference ‖ policy) per token on the chosen answers of held-out pairs. Zero: no change. A large
    value without a higher pass rate is change without benefit; below zero, training made the winners likelier.
    (The paper, Mistral-Base: DPO 0.414 at β = 0.01 and 0.021 at β = 0.1; SimPO 0.536 at β = 2.)"""
    rows = plot.metric_rows(runs, scores, "kl_winners")
    if not rows:
        raise plot.NothingToDraw("No trained model has log-probabilities of held-out winners beside the reference's.")
    figure, ax = plot.single(plot.dots_height(len(rows)))
    plot.dots(ax, rows, show=lambda v: f"{v:z.3f}".replace("-", "−"), zero=0.0)
    ax.set_xlabel("nats per token")
    return plot.Drawing(figure, plot.rows_data(rows))
