"""Figure `who-beats-whom`: every pair of models compared on the same prompts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, INK
from pobench.results import stats
from pobench.results.arms import arms_of, beats_tests, scores_by_prompt


@register_figure("who-beats-whom", title="Who beats whom", chapter="results", order=20)
def who_beats_whom(runs: pd.DataFrame, verdicts: pd.DataFrame) -> plot.Drawing:
    """Row against column: share of prompts where the row's mean score is higher, ties half. Blue: the row wins more
    often; orange: it loses more often. Only a pair printed in bold with a frame differs by more than chance (two-sided
    sign test over prompts, and where there are several seeds a test over prompts and seeds too; 5 % after Holm's
    correction over all pairs); everything else is undecided, whatever its colour."""
    arms = arms_of(runs)
    table = scores_by_prompt(verdicts, arms)
    arms = [arm for arm in arms if arm.id in table]
    if len(arms) < 2:
        raise plot.NothingToDraw("Fewer than two models were judged.")
    arms.sort(key=lambda arm: -table[arm.id].mean())
    pairs = list(combinations(arms, 2))
    results = np.stack([stats.outcomes(table[a.id], table[b.id]) for a, b in pairs], axis=1)
    rows = [
        {"row": a.label, "column": b.label, **plot.estimate_columns(e)}
        for (a, b), e in zip(pairs, stats.means(results, [stats.UNIT] * len(pairs)), strict=True)
    ]
    data = pd.DataFrame(rows).assign(p=beats_tests(verdicts, runs, pairs))
    data["p_holm"] = stats.holm(data["p"])
    figure, ax = plot.single(0.36 * len(arms) + 1.25, width=min(plot.WIDTH, 0.62 * len(arms) + 2.6))
    shares, sure = np.full((len(arms), len(arms)), np.nan), np.zeros((len(arms), len(arms)), dtype=bool)
    for (i, j), row in zip(combinations(range(len(arms)), 2), data.itertuples(), strict=True):
        shares[i, j], shares[j, i] = row.value, 1 - row.value
        sure[i, j] = sure[j, i] = row.p_holm < 0.05
    for i, j in np.ndindex(*shares.shape):
        _cell(ax, i, j, shares[i, j], sure[i, j])
    names = [plot.short(arm.label, 22) for arm in arms]
    for i, j in zip(*np.nonzero(np.isfinite(shares)), strict=True):
        text = f"{names[i]} against {names[j]}: {100 * shares[i, j]:.1f} %, {'sure' if sure[i, j] else 'undecided'}"
        plot.hint(ax, [j + 0.5], [i + 0.5], [text], aloud=False)
    plot.matrix_axes(ax, names, names)
    decided = int((data["p_holm"] < 0.05).sum())
    n = "–".join(str(int(count)) for count in dict.fromkeys((data["n"].min(), data["n"].max())))
    return plot.Drawing(figure, data, f"{decided} of {len(data)} pairs differ by more than chance, on {n} prompts.")


def _cell(ax: plot.Axes, i: int, j: int, share: float, sure: bool) -> None:
    if np.isnan(share):
        ax.text(j + 0.5, i + 0.5, "·" if i == j else "–", ha="center", va="center", color=FAINT)
        return
    colour, depth = (plot.BETTER if share > 0.5 else plot.WORSE), min(1.0, 2 * abs(share - 0.5))
    ax.add_patch(plot.rectangle(j + 0.03, i + 0.03, 0.94, 0.94, color=colour, alpha=0.05 + 0.6 * depth))
    if sure:
        ax.add_patch(plot.rectangle(j + 0.05, i + 0.05, 0.9, 0.9, fill=False, edgecolor=INK, linewidth=1.1))
    weight = "bold" if sure else "normal"
    ax.text(j + 0.5, i + 0.52, f"{100 * share:.0f}", ha="center", va="center", fontsize=8.5, weight=weight)
