"""Figure `cross-loss`: every trained model evaluated with every loss."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, INK
from pobench.results.arms import arms_of, of_arm, pooled
from pobench.types import Estimate

MARKS = {"loss": "mean loss", "reward_accuracy": "reward accuracy", "margin": "mean margin"}


@register_figure("cross-loss", title="Every loss on every model", chapter="results", order=45)
def cross_loss(runs: pd.DataFrame, cross_loss: pd.DataFrame, *, metric: str = "loss") -> plot.Drawing:
    """Columns: the loss that a model was trained with; rows: the loss that evaluates it, with that loss's own settings, on
    the same held-out pairs. A number is the mean over pairs in the row's unit; compare along a row, never down a column.
    Blue is better than the start model by the row's loss, orange is worse; a deeper colour means a larger difference
    within the row. Colours do not show significance; the CSV has the intervals. A frame marks a model under its own loss;
    losses whose inputs were not stored have no row. If a model is best by a loss that it was not trained with, the two losses
    have similar aims."""
    if metric not in MARKS:
        raise plot.NothingToDraw(f"A metric of this figure is one of {', '.join(MARKS)}, not {metric}.")
    arms = arms_of(runs)
    rows = cross_loss[cross_loss["metric"] == metric]
    estimates = {(arm.id, name): pooled(part) for arm in arms for name, part in of_arm(rows, arm).groupby("evaluated")}
    titles = dict(zip(rows["evaluated"], rows["title"], strict=True))
    names = sorted(titles, key=lambda name: (plot.short(titles[name]).casefold(), name))
    measured = {arm for (arm, _), e in estimates.items() if not math.isnan(e.value)}
    arms = [arm for arm in arms if arm.id in measured]
    if not arms:
        raise plot.NothingToDraw("No loss could be evaluated on held-out pairs.")
    blank = Estimate.missing()
    data = pd.DataFrame(
        [
            {
                "trained": a.label,
                "loss": a.loss,
                "evaluated": n,
                **plot.estimate_columns(estimates.get((a.id, n), blank)),
            }
            for a in arms
            for n in names
        ]
    )
    known = {name for (_, name), e in estimates.items() if not math.isnan(e.value)}
    without = [titles[name] for name in names if name not in known]
    names = [name for name in names if name in known]
    values = np.array([[estimates.get((arm.id, name), blank).value for arm in arms] for name in names])
    figure, ax = plot.single(0.24 * len(names) + 1.3, width=min(plot.WIDTH, 0.66 * len(arms) + 2.4))
    start = next((i for i, arm in enumerate(arms) if arm.is_start), None)
    depth = _depth(values, None if start is None else values[:, start], higher=metric != "loss")
    shown = plot.percent if metric == "reward_accuracy" else "{:.4g}".format
    for i, j in np.ndindex(*values.shape):
        says = f"trained with {plot.short(arms[j].label)}, evaluated by {plot.short(titles[names[i]])}"
        plot.hint_cell(ax, j + 0.5, i + 0.5, says, estimates.get((arms[j].id, names[i]), blank), shown)
        _cell(ax, i, j, values[i, j], depth[i, j], arms[j].loss == names[i], metric)
    plot.matrix_axes(ax, [plot.short(titles[name], 22) for name in names], [plot.short(arm.label, 22) for arm in arms])
    ax.set(xlabel="trained with", ylabel="evaluated by")
    counted = data.loc[data["n"] > 0, "n"]
    notes = f"{MARKS[metric].capitalize()}, over {int(counted.max())} held-out pairs."
    if without:
        notes += f" Losses whose inputs were not stored: {', '.join(without)}."
    return plot.Drawing(figure, data, notes)


def _depth(values: np.ndarray, start: np.ndarray | None, higher: bool) -> np.ndarray:
    """(evaluated, trained) in [-1, 1]: the improvement on the start model, divided by the row's largest difference."""
    if start is None:
        return np.full_like(values, np.nan)
    away = (values - start[:, None]) * (1 if higher else -1)
    largest = np.nanmax(np.abs(np.where(np.isnan(away), 0.0, away)), axis=1, keepdims=True)
    return np.divide(away, largest, out=np.full_like(away, np.nan), where=largest > 0)


def _cell(ax: plot.Axes, i: int, j: int, value: float, depth: float, own: bool, metric: str) -> None:
    if not math.isnan(depth) and depth != 0:
        colour = plot.BETTER if depth > 0 else plot.WORSE
        ax.add_patch(plot.rectangle(j + 0.03, i + 0.04, 0.94, 0.92, color=colour, alpha=0.04 + 0.5 * abs(depth)))
    if own:
        ax.add_patch(plot.rectangle(j + 0.04, i + 0.06, 0.92, 0.88, fill=False, edgecolor=INK, linewidth=1.0))
    text = "–" if math.isnan(value) else f"{100 * value:.0f} %" if metric == "reward_accuracy" else f"{value:.3g}"
    shade = FAINT if math.isnan(value) else INK
    ax.text(j + 0.5, i + 0.52, text.replace("-", "−"), ha="center", va="center", fontsize=7, color=shade)
