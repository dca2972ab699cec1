"""Figure `pass-rate`: the pass rate of every loss beside the start model."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot


@register_figure("pass-rate", title="Pass rate against the start model", chapter="results", order=10)
def pass_rate(runs: pd.DataFrame, scores: pd.DataFrame) -> plot.Drawing:
    """Share of answers that the judge passes. Dot: mean over prompts; line: 95 % interval; dashed line and band: the
    start model and its interval; faint dots: single seeds. Overlapping lines do not mean “no difference”: prompts are
    shared, so judge a gain by its own paired interval in the main table."""
    rows = plot.metric_rows(runs, scores, "pass_rate")
    if not rows:
        raise plot.NothingToDraw("No trained model's answers were judged.")
    start = plot.start_score(runs, scores, "pass_rate")
    figure, ax = plot.single(plot.dots_height(len(rows)))
    plot.dots(ax, rows, baseline=start, show=lambda v: f"{100 * v:.1f}")
    plot.percent_axis(ax)
    ax.set_xlabel("pass rate")
    data = plot.rows_data(rows)
    data.loc[len(data)] = {
        **{"loss": "start", "label": "Start model", "of": "all", "values": "–"},
        **plot.estimate_columns(start),
    }
    return plot.Drawing(figure, data)
