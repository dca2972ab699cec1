"""Figure `time-and-memory`: training time and peak memory of every loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.results import stats
from pobench.results.arms import Arm, homes_of, of_arm
from pobench.results.few_runs import crowded, timed_on

QUANTITIES = [  # column, axis label, divisor
    ("whole_seconds", "minutes of training, reference included", 60.0),
    ("peak_memory", "peak memory, GB", 1e9),
]
COST = ("epochs", "batch_size", "pairs")  # decide a loss's cost; its own settings do not


class Kind(NamedTuple):
    """A loss's home runs that got their reference sums in one way, on one part of a machine. values: of `QUANTITIES`."""

    arm: Arm
    part: str
    values: list[pd.Series]
    remark: str

    @property
    def order(self) -> tuple[str, float]:
        """Of rows: times on unlike parts of a machine are not ranked among each other."""
        return self.part, self.values[0].mean() if len(self.values[0]) else math.inf


@register_figure("time-and-memory", title="Time and memory of training", paper="Fig. 5c", chapter="methods", order=425)
def time_and_memory(runs: pd.DataFrame) -> plot.Drawing:
    """Dot: geometric mean over seeds; line: its 95 % interval (Student's, of logarithms) where there are several; faint
    dots: single runs; n: runs. Axes begin at zero. Time is that of the training steps and of the reference model's pass over
    the pairs, where the loss reads one: a single pass whose sums are stored and shared by all runs, added in full to each; or,
    in the rows "in every step", a frozen start model beside the policy in every step, which is how the paper ran it. A remark
    names runs whose pass was not timed, or whose steps were timed beside other work; where runs had unlike parts of a machine,
    it names the part, and rows are ordered by time within a part alone. Comparable only between runs on the same, otherwise
    idle machine. (The paper, Llama-3-Base on eight H100: DPO 73 minutes and 77 GB, SimPO 60 and 69.)"""
    kinds = sorted((kind for kind in _kinds(runs) if any(map(len, kind.values))), key=lambda kind: kind.order)
    if not kinds:
        raise plot.NothingToDraw("No run has recorded its cost.")
    figure = plot.Figure(figsize=(plot.WIDTH, plot.dots_height(len(kinds))), layout="constrained")
    axes, drawn = figure.subplots(1, len(QUANTITIES)), []
    for place, (ax, (column, says, _)) in enumerate(zip(axes, QUANTITIES, strict=True)):
        rows = []
        for kind in kinds:
            values = kind.values[place]
            seeds = list(values) if len(values) > 1 else []
            rows.append(plot.Row(kind.arm, stats.student(values), seeds, "" if place else kind.remark))
        plot.dots(ax, rows, show="{:.3g}".format)
        ax.set_xlim(0, 1.04 * ax.get_xlim()[1])
        if place:  # one column of names is enough
            ax.set_yticklabels([])
        ax.set_xlabel(says)
        drawn.append(plot.rows_data(rows).assign(quantity=column))
    return plot.Drawing(figure, pd.concat(drawn, ignore_index=True))


def _kinds(runs: pd.DataFrame) -> Iterator[Kind]:
    several = timed_on(runs[runs["loss"] != "start"]).nunique() > 1
    for loss, home in homes_of(runs).items():
        facts = of_arm(runs, home).iloc[0]
        same = runs["loss"].eq(loss) & (runs[list(COST)].eq(facts[list(COST)]) | runs[list(COST)].isna()).all(axis=1)
        live = runs["reference"].eq("every_step")
        at_home = runs["run"].isin(home.runs)
        for inside, title in ((at_home & ~live, ""), (same & live, ", in every step")):
            arm = home._replace(label=home.label.partition(" (")[0] + title)
            for part, members in runs[inside].groupby(timed_on(runs[inside])):
                yield Kind(arm, str(part), _quantities(members), _remark(members, str(part) if several else ""))


def _remark(members: pd.DataFrame, part: str) -> str:
    """What to know of these runs' times. part: of a machine, where others had another one."""
    untimed = members["reference"].eq("cached") & members["reference_seconds"].isna()
    remarks = {"without the reference pass": untimed.any(), "beside other work": crowded(members).any()}
    return ", ".join([*filter(None, [part]), *(remark for remark, holds in remarks.items() if holds)])


def _quantities(members: pd.DataFrame) -> list[pd.Series]:
    """The runs' values of `QUANTITIES`, in the units of the axes."""
    numbers = {
        name: pd.to_numeric(members[name], errors="coerce") for name in ("seconds", "reference_seconds", "peak_memory")
    }
    numbers["whole_seconds"] = numbers["seconds"] + numbers["reference_seconds"].fillna(0.0)
    return [numbers[name].dropna() / by for name, _, by in QUANTITIES]
