"""Figure `length-normalisation`: losses with and without it, by length of the answers, quality and likelihood."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.results.arms import home_of, score_of, seed_values
from pobench.results.equal_tuning import values_of

COUPLES = [("simpo", "simpo_no_ln"), ("dpo_ln", "dpo")]  # with, without
QUANTITIES = [  # metric, axis label, printed as per cent
    ("length_tokens", "tokens of an answer", False),
    ("pass_rate", "pass rate", True),
    ("length_correlation", "ρ(log-prob per token, length)", False),
]


@register_figure(
    "length-normalisation",
    title="With and without length normalisation",
    paper="Fig. 6, Table 11",
    chapter="length",
    order=325,
)
def length_normalisation(runs: pd.DataFrame, scores: pd.DataFrame) -> plot.Drawing:
    """Each objective with and without division of its log-probabilities by length, all else equal up to the scale of
    β. Dot and line: mean and 95 % interval; dashed line: the start model. In the paper answers grow without
    normalisation (Mistral-Base, Arena-Hard: 699 tokens with, 851 without; Mistral-Instruct: 539 and 679), and
    likelihood follows length (ρ 0.34 with, 0.82 without)."""
    arms = [arm for couple in COUPLES for loss in couple if (arm := home_of(runs, loss)) is not None]
    shown = []
    for metric, says, percent in QUANTITIES:
        of = ((arm, score_of(scores, arm, metric), seed_values(scores, arm, metric)) for arm in arms)
        rows = [plot.Row(arm, estimate, seeds, values=values_of(runs, arm)) for arm, estimate, seeds in of]
        if any(row.estimate.n for row in rows):
            shown.append((metric, says, percent, rows))
    if not shown or len(arms) < 2:
        raise plot.NothingToDraw("No loss was scored both with and without length normalisation.")
    figure = plot.Figure(figsize=(plot.WIDTH, (0.3 * len(arms) + 0.65) * len(shown)), layout="constrained")
    parts = []
    for ax, (metric, says, percent, rows) in zip(
        figure.subplots(len(shown), 1, squeeze=False).flat, shown, strict=True
    ):
        show = (lambda v: f"{100 * v:.1f}") if percent else "{:.3g}".format
        plot.dots(ax, rows, baseline=plot.start_score(runs, scores, metric), show=show)
        if percent:
            plot.percent_axis(ax)
        ax.set_xlabel(says)
        parts.append(plot.rows_data(rows).assign(metric=metric))
    return plot.Drawing(figure, pd.concat(parts, ignore_index=True))
