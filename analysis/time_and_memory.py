"""Figure `time-and-memory`: training time and peak memory of every loss."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.results import stats
from pobench.results.arms import Arm, homes_of, of_arm
from pobench.results.few_runs import crowded

QUANTITIES = [  # column, axis label, divisor
    ("whole_seconds", "minutes of training, reference included", 60.0),
    ("peak_memory", "peak memory, GB", 1e9),
]
COST = ("epochs", "batch_size", "pairs")  # decide a loss's cost; its own settings do not


@register_figure("time-and-memory", title="Time and memory of training", paper="Fig. 5c", chapter="methods", order=425)
def time_and_memory(runs: pd.DataFrame) -> plot.Drawing:
    """Dot: geometric mean over seeds; line: its 95 % interval (Student's, of logarithms) where there are several; faint
    dots: single runs; n: runs. Axes begin at zero. Time is that of the training steps and of the reference model's pass over
    the pairs, where the loss reads one: a single pass whose sums are stored and shared by all runs, added in full to each; or,
    in the rows "in every step", a frozen start model beside the policy in every step, which is how the paper ran it. A remark
    names runs whose pass was not timed, or whose steps were timed beside other work. Comparable only between runs on the same,
    otherwise idle machine. (The paper,
    Llama-3-Base on eight H100: DPO 73 minutes and 77 GB, SimPO 60 and 69.)"""
    costs = [(arm, _quantities(members), remark) for arm, members, remark in _kinds(runs)]
    costs = [cost for cost in costs if any(len(v) for v in cost[1])]
    if not costs:
        raise plot.NothingToDraw("No run has recorded its cost.")
    costs.sort(key=lambda one: one[1][0].mean() if len(one[1][0]) else math.inf)
    figure = plot.Figure(figsize=(plot.WIDTH, plot.dots_height(len(costs))), layout="constrained")
    axes, parts = figure.subplots(1, len(QUANTITIES)), []
    for place, (ax, (column, says, _)) in enumerate(zip(axes, QUANTITIES, strict=True)):
        rows = []
        for arm, values, remark in costs:
            e = stats.student(values[place])
            seeds = list(values[place]) if len(values[place]) > 1 else []
            rows.append(plot.Row(arm, e, seeds, "" if place else remark))
        plot.dots(ax, rows, show="{:.3g}".format)
        ax.set_xlim(0, 1.04 * ax.get_xlim()[1])
        if place:  # one column of names is enough
            ax.set_yticklabels([])
        ax.set_xlabel(says)
        parts.append(plot.rows_data(rows).assign(quantity=column))
    return plot.Drawing(figure, pd.concat(parts, ignore_index=True))


def _kinds(runs: pd.DataFrame) -> list[tuple[Arm, pd.DataFrame, str]]:
    """(arm, its runs, a remark): a loss's home runs, apart by where their reference sums come from."""
    kinds = []
    for loss, home in homes_of(runs).items():
        facts = of_arm(runs, home).iloc[0]
        same = runs["loss"].eq(loss) & (runs[list(COST)].eq(facts[list(COST)]) | runs[list(COST)].isna()).all(axis=1)
        live = runs["reference"].eq("every_step")
        at_home = runs["run"].isin(home.runs)
        for inside, title in ((at_home & ~live, ""), (same & live, ", in every step")):
            members = runs[inside]
            untimed = members["reference"].eq("cached") & members["reference_seconds"].isna()
            if len(members):
                arm = home._replace(label=home.label.partition(" (")[0] + title)
                remarks = {"without the reference pass": untimed.any(), "beside other work": crowded(members).any()}
                kinds.append((arm, members, ", ".join(remark for remark, holds in remarks.items() if holds)))
    return kinds


def _quantities(members: pd.DataFrame) -> list[pd.Series]:
    """The runs' values of `QUANTITIES`, in the units of the axes."""
    numbers = {
        name: pd.to_numeric(members[name], errors="coerce") for name in ("seconds", "reference_seconds", "peak_memory")
    }
    numbers["whole_seconds"] = numbers["seconds"] + numbers["reference_seconds"].fillna(0.0)
    return [numbers[name].dropna() / by for name, _, by in QUANTITIES]
