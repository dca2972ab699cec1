"""Figure `gains`: the gain of every loss over the start model, beside the card on the report's first screen."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.results.arms import arms_of
from pobench.results.contrast import gains as gains_over_start
from pobench.results.equal_tuning import values_of

WIDTH = 5.2  # inches: half of the page


@register_figure("gains", title="Gain over the start model", chapter="answer", order=1)
def gains(runs: pd.DataFrame, verdicts: pd.DataFrame, answers: pd.DataFrame | None = None) -> plot.Drawing:
    """Mean score minus the start model's on the same prompts, in points; line: 95 % interval, paired by prompt. With two seeds
    and more it covers other prompts and other seeds, with one only other prompts. A line that crosses zero shows no gain.
    Whether two losses differ is another question, which “Who beats whom” answers."""
    found = gains_over_start(runs, verdicts, answers, arms_of(runs))
    if not found:
        raise plot.NothingToDraw("No trained model was judged beside its start model.")
    rows = [plot.Row(pair.ours, pair.gap.estimate, values=values_of(runs, pair.ours)) for pair in found]
    figure, ax = plot.single(plot.dots_height(len(rows)), width=WIDTH)
    plot.dots(ax, rows, show=lambda v: f"{v:+z.1f}".replace("-", "−"), zero=0.0)
    ax.set_xlabel("gain over the start model, points")
    return plot.Drawing(figure, plot.rows_data(rows))
