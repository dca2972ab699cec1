"""Figure `time-and-memory`: training time and peak memory of every loss."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.results import stats
from pobench.results.arms import homes_of, of_arm

QUANTITIES = [  # column of `runs`, axis label, divisor
    ("seconds", "minutes of training steps", 60.0),
    ("peak_memory", "peak memory, GB", 1e9),
]


@register_figure("time-and-memory", title="Time and memory of training", paper="Fig. 5c", chapter="methods", order=425)
def time_and_memory(runs: pd.DataFrame) -> plot.Drawing:
    """Dot: geometric mean over seeds; line: its 95 % interval (Student's, of logarithms) where there are several; faint
    dots: single runs; n: runs; one row a loss, with the setting's own values. Axes begin at zero. Only the training
    steps are timed: the reference's pass over the data, which some losses need, is done once, stored, and shared by
    all of them. Comparable only between runs on the same, otherwise idle machine. (The paper, Llama-3-Base on eight
    H100: DPO 73 minutes and 77 GB, SimPO 60 and 69.)"""
    costs = []
    for arm in homes_of(runs).values():  # a loss's settings do not change its cost
        members = of_arm(runs, arm)
        costs.append((arm, [pd.to_numeric(members[c], errors="coerce").dropna() / by for c, _, by in QUANTITIES]))
    costs = [(arm, values) for arm, values in costs if any(len(v) for v in values)]
    if not costs:
        raise plot.NothingToDraw("No run has recorded its cost.")
    costs.sort(key=lambda one: one[1][0].mean() if len(one[1][0]) else math.inf)
    figure = plot.Figure(figsize=(plot.WIDTH, plot.dots_height(len(costs))), layout="constrained")
    axes, parts = figure.subplots(1, len(QUANTITIES)), []
    for place, (ax, (column, says, _)) in enumerate(zip(axes, QUANTITIES, strict=True)):
        rows = []
        for arm, values in costs:
            e = stats.student(values[place])
            rows.append(plot.Row(arm, e, list(values[place]) if len(values[place]) > 1 else []))
        plot.dots(ax, rows, show="{:.3g}".format)
        ax.set_xlim(left=0)
        if place:  # one column of names is enough
            ax.set_yticklabels([])
        ax.set_xlabel(says)
        parts.append(plot.rows_data(rows).assign(quantity=column))
    return plot.Drawing(figure, pd.concat(parts, ignore_index=True))
