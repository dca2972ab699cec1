"""Figure `length-bias`: how much of a length preference in the labels passes into the model."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, START, look_of
from pobench.results import pair_values, stats
from pobench.results.arms import Arm, lines_of, of_arm, score_of
from pobench.results.groups import prompts_of
from pobench.results.rows import Rows
from pobench.types import Estimate

QUANTITIES = [  # name, axis label, printed as per cent
    ("pass_rate", "pass rate", True),
    ("length_tokens", "tokens of an answer", False),
    ("margin_correlation", "ρ(margin, length difference)", False),
    ("reward_accuracy", "accuracy on true labels", True),
]


@register_figure("length-bias", title="Labels that prefer length", chapter="length", order=355, every_arm=True)
def length_bias(runs: pd.DataFrame, heldout: Rows, scores: Rows) -> plot.Drawing:
    """Across: the share of training labels that length decides (the longer answer is called better); held-out labels
    and the judge stay true. Bands are 95 % intervals, the dashed line is the start model. A loss that resists keeps
    its quality and its length; one that gives in writes longer answers, ranks held-out pairs by length (third
    panel), and ranks fewer of them correctly. If all panels change together, the label noise is the cause; if length
    changes and quality does not, the bias was learned in addition to the task."""
    lines = [line for line in lines_of(runs) if line.setting == "length_bias"]
    rows = [
        {
            **{"loss": line.loss, "label": arm.label, "at": at, "quantity": name},
            **plot.estimate_columns(_measured(name, arm, heldout, scores)),
        }
        for line in lines
        for at, arm in line.points
        for name, *_ in QUANTITIES
    ]
    data = pd.DataFrame(rows, columns=["loss", "label", "at", "quantity", "value", "low", "high", "n"])
    data = data.dropna(subset=["value"])
    if data.empty:
        raise plot.NothingToDraw("No loss was trained with several length biases of the labels.")
    shown = [q for q in QUANTITIES if (data["quantity"] == q[0]).any()]
    figure = plot.Figure(figsize=(plot.WIDTH, 3.4), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for ax, (name, says, percent) in zip(axes, shown, strict=True):
        for loss, points in data[data["quantity"] == name].groupby("loss", sort=True):
            colour, marker, dash = look_of(str(loss))
            label = next((line.points[0][1].label.partition(" (")[0] for line in lines if line.loss == loss), str(loss))
            ax.plot(
                points["at"], points["value"], color=colour, marker=marker, linestyle=dash, markersize=4,
                label=plot.short(label, 18),
            )  # fmt: skip
            show = plot.percent if percent else "{:.3g}".format
            plot.hint_estimates(ax, points["at"], points, f"{plot.short(label, 18)}, {says}", show)
            if data["loss"].nunique() <= 4:  # more bands hide each other; the CSV has them
                ax.fill_between(points["at"], points["low"], points["high"], color=colour, alpha=0.12, linewidth=0)
        start = plot.start_score(runs, scores, name).value
        if not math.isnan(start):
            ax.axhline(start, color=START.colour, linestyle=(0, (4, 3)), linewidth=1)
        if percent:
            plot.percent_axis(ax, "y")
        ax.set_title(says, fontsize=8.5)
    if not all([plot.name_lines(ax) for ax in axes]):
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    figure.supxlabel("share of labels decided by length", fontsize=8.5, color=FAINT)
    return plot.Drawing(figure, data, plot.counted(data["n"], "prompts or pairs"))


def _measured(quantity: str, arm: Arm, heldout: Rows, scores: Rows) -> Estimate:
    """The estimate of one of `QUANTITIES` for an arm."""
    if quantity != "margin_correlation":
        return score_of(scores, arm, quantity)
    held = of_arm(heldout, arm)
    return stats.spearman(pair_values.longer(held), pair_values.margin(held), held["run"], prompts_of(held["pair"]))
