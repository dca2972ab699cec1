"""Figure `pass-by-kind`: pass rate by kind of demand."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, SHADE
from pobench.results import stats
from pobench.results.arms import arms_of
from pobench.results.contrast import MISSING, compare, contrast, scores
from pobench.results.groups import prompt_groups
from pobench.types import Estimate

MOST_KINDS = 24


@register_figure("pass-by-kind", title="Pass rate by kind of demand", chapter="results", order=30)
def pass_by_kind(runs: pd.DataFrame, answers: pd.DataFrame, verdicts: pd.DataFrame) -> plot.Drawing:
    """Pass rate in per cent for each kind of demand (in brackets: its number of prompts); the first column is the
    start model. Colour is the difference from it: blue better, orange worse. Each kind has few prompts, so single
    cells are noisy (intervals in the CSV): look for rows and columns that agree, and for a loss that gains on one
    kind by giving up another."""
    kinds = answers.loc[answers["kind"].astype(str).str.strip() != "", ["prompt", "kind"]].drop_duplicates("prompt")
    if kinds.empty:
        raise plot.NothingToDraw("The prompts have no kinds.")
    arms = arms_of(runs)
    values = {arm: scores(verdicts, runs, arm) for arm in arms}
    arms = [arm for arm in arms if len(values[arm])]
    judged = set().union(*(values[arm].index.get_level_values("prompt") for arm in arms))
    kind_of = kinds[kinds["prompt"].isin(judged)].set_index("prompt")["kind"].astype(str)
    names = kind_of.value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    names = names.head(MOST_KINDS)
    if not arms or names.empty:
        raise plot.NothingToDraw("No prompt of a known kind was judged.")
    start = next((arm for arm in arms if arm.is_start), None)
    rows, groups = [], prompt_groups(answers)
    for kind in names.index:
        asked = kind_of.index[kind_of == kind]
        inside = {arm: own[own.index.isin(asked, level="prompt")] for arm, own in values.items()}
        for arm in arms:
            of_start = start and arm is not start
            gain = compare(inside[arm], inside[start], stats.SIGNED, groups) if of_start else MISSING
            value = contrast([(1.0, inside[arm])], stats.UNIT, groups)
            rows.append(
                {
                    "kind": kind,
                    "label": arm.label,
                    **plot.estimate_columns(value.estimate),
                    **plot.estimate_columns(gain.estimate, "gain_"),
                }
            )
    data = pd.DataFrame(rows)
    figure, ax = plot.single(0.33 * len(names) + 1.1, width=min(plot.WIDTH, 0.66 * len(arms) + 3.4))
    for k, row in enumerate(data.itertuples()):
        i, j = divmod(k, len(arms))
        _cell(ax, i, j, row.value, row.gain_value)
        e = Estimate(row.value, row.low, row.high, int(row.n))
        plot.hint_cell(ax, j + 0.5, i + 0.5, f"{plot.short(row.label)}, {plot.short(row.kind, 32)}", e, plot.percent)
    labels = [f"{plot.short(kind, 32)}  ({count})" for kind, count in names.items()]
    plot.matrix_axes(ax, labels, [plot.short(arm.label, 22) for arm in arms], names_above=True)
    return plot.Drawing(figure, data)


def _cell(ax: plot.Axes, i: int, j: int, value: float, gain: float) -> None:
    if np.isnan(value):
        ax.text(j + 0.5, i + 0.5, "–", ha="center", va="center", color=FAINT)
        return
    if np.isnan(gain) or gain == 0:
        ax.add_patch(plot.rectangle(j + 0.03, i + 0.03, 0.94, 0.94, color=SHADE))
    else:
        colour, depth = (plot.BETTER if gain > 0 else plot.WORSE), min(1.0, abs(gain) / 0.5)
        ax.add_patch(plot.rectangle(j + 0.03, i + 0.03, 0.94, 0.94, color=colour, alpha=0.04 + 0.6 * depth))
    ax.text(j + 0.5, i + 0.52, f"{100 * value:.0f}", ha="center", va="center", fontsize=8.5)
