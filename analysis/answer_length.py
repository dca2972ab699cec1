"""Figure `answer-length`: the length of generated answers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import look_of
from pobench.results.arms import of_arm, score_of


@register_figure("answer-length", title="Length of the answers", chapter="length", order=320)
def answer_length(runs: pd.DataFrame, answers: pd.DataFrame, scores: pd.DataFrame) -> plot.Drawing:
    """Tokens per generated answer. Dot and line: mean and its 95 % interval; pale bar: the middle half of all answers;
    dashed line: the start model. Length alone can win a judge's favour, so a gain that comes with much longer answers
    deserves a second look; many unfinished answers mean that the token limit, not the model, ended them."""
    rows = []
    for row in plot.metric_rows(runs, scores, "length_tokens"):
        cut = score_of(scores, row.arm, "unfinished").value
        rows.append(row._replace(remark="" if np.isnan(cut) else f"unfinished {100 * cut:.0f} %"))
    if not rows:
        raise plot.NothingToDraw("No trained model has written answers.")
    figure, ax = plot.single(plot.dots_height(len(rows)))
    plot.dots(ax, rows, baseline=plot.start_score(runs, scores, "length_tokens"), show="{:.1f}".format)
    data = plot.rows_data(rows)
    for place, row in enumerate(rows):
        tokens = pd.to_numeric(of_arm(answers, row.arm)["tokens"], errors="coerce").dropna()
        if len(tokens):
            low, high = np.quantile(tokens, [0.25, 0.75])
            colour = look_of(row.arm.loss).colour
            ax.barh(place, high - low, left=low, height=0.5, color=colour, alpha=0.16, linewidth=0, zorder=0)
            data.loc[data["label"] == row.arm.label, ["quarter", "three_quarters"]] = low, high
    ax.set_xlabel("tokens")
    return plot.Drawing(figure, data)
