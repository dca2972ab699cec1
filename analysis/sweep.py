"""Figure `sweep`: metrics against the value of one setting, for losses trained with several values."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import START, look_of
from pobench.results.arms import GREEK, lines_of, score_of
from pobench.results.rows import Rows

QUANTITIES = [  # metric, title, printed as per cent
    ("pass_rate", "pass rate", True),
    ("reward_accuracy", "reward accuracy", True),
    ("kl_winners", "KL, nats/token", False),
    ("chosen_logp_per_token", "winners, nats/token", False),
    ("length_tokens", "length, tokens", False),
]


@register_figure(
    "sweep", title="Effect of one setting", paper="Figs. 3a, 5a and 5b", chapter="results", order=50, every_arm=True
)
def sweep(runs: pd.DataFrame, scores: Rows) -> plot.Drawing:
    """Metrics against the value of the one setting that differs between the runs of a loss; error bars are 95 %
    intervals, the dashed line is the start model. Read a row from left to right: the best value by one metric is
    often not the best by another, and a difference smaller than the bars may be noise. (In the paper a larger γ raises
    reward accuracy and lowers the winners' likelihood, while quality peaks in between.) The figure `length-bias` shows a length
    bias of the labels."""
    grids = [line for line in lines_of(runs) if line.setting != "length_bias"]
    if not grids:
        raise plot.NothingToDraw("No loss was trained with several values of one setting.")
    lines = []
    for loss, name, points in grids:
        found = {arm: {metric: score_of(scores, arm, metric) for metric, *_ in QUANTITIES} for _, arm in points}
        for metric, *_ in QUANTITIES:
            for value, arm in points:
                row = {"loss": loss, "label": arm.label, "setting": name, "at": value, "metric": metric}
                lines.append({**row, **plot.estimate_columns(found[arm][metric])})
    data = pd.DataFrame(lines).dropna(subset=["value"])
    start = {metric: plot.start_score(runs, scores, metric).value for metric, *_ in QUANTITIES}
    shown = [q for q in QUANTITIES if (data["metric"] == q[0]).any()]
    if not shown:
        raise plot.NothingToDraw("No run of the sweep has been scored.")
    scored = set(zip(data["loss"], data["setting"], strict=True))
    grids = [grid for grid in grids if grid[:2] in scored]  # the runs of another may still be under way
    figure = plot.Figure(figsize=(plot.WIDTH, 1.75 * len(grids) + 0.4), layout="constrained")
    axes = figure.subplots(len(grids), len(shown), squeeze=False)
    for row, (loss, name, points) in zip(axes, grids, strict=True):
        for ax, (metric, title, percent) in zip(row, shown, strict=True):
            inside = (data["loss"] == loss) & (data["setting"] == name) & (data["metric"] == metric)
            here = data[inside].sort_values("at")
            if here.empty:
                ax.set_axis_off()
                continue
            _panel(ax, here, loss, start[metric])
            plot.hint_estimates(ax, here["at"], here, f"{title}, {GREEK.get(name, name)}")
            if percent:
                plot.percent_axis(ax, "y")
            ax.set_title(title, fontsize=8)
            ax.set_xlabel(GREEK.get(name, name))
        title = plot.short(points[0][1].label.partition(" (")[0], 20)
        row[0].set_ylabel(title, color=look_of(loss).colour, weight="bold")
    return plot.Drawing(figure, data, plot.counted(data["n"], "prompts or pairs"))


def _panel(ax: plot.Axes, here: pd.DataFrame, loss: str, start: float) -> None:
    colour, marker, _ = look_of(loss)
    if not math.isnan(start):
        ax.axhline(start, color=START.colour, linestyle=(0, (4, 3)), linewidth=1)
    ax.plot(here["at"], here["value"], color=colour, alpha=0.5)
    ax.vlines(here["at"], here["low"], here["high"], color=colour, linewidth=2, alpha=0.75)
    ax.plot(here["at"], here["value"], marker=marker, color=colour, linestyle="none", markersize=5)
    plot.value_axis(ax, here["at"])
    ax.yaxis.set_major_locator(plot.MaxNLocator(4))
