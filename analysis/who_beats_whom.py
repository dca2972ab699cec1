"""Figure `who-beats-whom`: every pair of models compared on the same prompts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, INK
from pobench.results.arms import arms_of
from pobench.results.contrast import all_pairs


@register_figure("who-beats-whom", title="Who beats whom", chapter="results", order=20)
def who_beats_whom(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None = None,
    comparisons: pd.DataFrame | None = None,
) -> plot.Drawing:
    """Row against column: mean score of the row minus that of the column on the same prompts, in points. Where a judge has
    compared their answers with each other (`--opponents`, underlined): the row's win rate over the column minus 50. Of a judge
    that compares, other scores are win rates over the start model. Blue: the row is better; orange: worse. Only a pair printed
    in bold with a frame differs by more than chance: at least three seeds on both sides, an interval that leaves out zero, and
    p below 5 % after Holm's correction over all such pairs, for other prompts and other seeds. (`p` in the CSV is 1 minus the
    level at which the pair's own interval ends at zero; `p_holm` rests on what all losses tell of the variance of seeds,
    where that is larger.) Everything else is undecided, whatever its colour; a pair with one run on a side has an interval for
    other prompts only. Grey without colour: two losses that were not tuned alike, which no verdict compares."""
    pairs = all_pairs(runs, verdicts, answers, arms_of(runs), comparisons)
    if not pairs:
        raise plot.NothingToDraw("Fewer than two models were judged.")
    arms = list(dict.fromkeys(arm for pair in pairs for arm in (pair.ours, pair.theirs)))
    rows = [
        {
            "row": pair.ours.label,
            "column": pair.theirs.label,
            **plot.estimate_columns(pair.gap.estimate),
            "seeds": pair.gap.seeds,
            "most_seeds": pair.gap.most,
            "runs": pair.gap.runs,
            "comparable": pair.comparable,
            "direct": pair.direct,
            "p": pair.gap.p if pair.decides else np.nan,
            "p_holm": pair.p,
        }
        for pair in pairs
    ]
    data = pd.DataFrame(rows)
    figure, ax = plot.single(0.36 * len(arms) + 1.25, width=min(plot.WIDTH, 0.62 * len(arms) + 2.6))
    gaps = np.full((len(arms), len(arms)), np.nan)
    sure, alike, direct = (np.full(gaps.shape, start) for start in (False, True, False))
    for (i, j), pair in zip(combinations(range(len(arms)), 2), pairs, strict=True):
        gaps[i, j], gaps[j, i] = pair.gap.estimate.value, -pair.gap.estimate.value
        sure[i, j] = sure[j, i] = pair.differs
        alike[i, j] = alike[j, i] = pair.comparable
        direct[i, j] = direct[j, i] = pair.direct
    deepest = max(float(np.nanmax(np.abs(gaps))), 1.0)
    for i, j in np.ndindex(*gaps.shape):
        _cell(ax, (i, j), gaps[i, j], deepest, sure[i, j], alike[i, j])
        if direct[i, j]:
            ax.plot([j + 0.32, j + 0.68], [i + 0.76, i + 0.76], color=INK if alike[i, j] else FAINT, linewidth=0.8)
    names = [plot.short(arm.label, 22) for arm in arms]
    for i, j in zip(*np.nonzero(np.isfinite(gaps)), strict=True):
        word = "sure" if sure[i, j] else "undecided" if alike[i, j] else "not tuned alike"
        text = f"{names[i]} − {names[j]}: {_signed(gaps[i, j], 1)} points, {word}"
        plot.hint(ax, [j + 0.5], [i + 0.5], [text], aloud=False)
    plot.matrix_axes(ax, names, names)
    return plot.Drawing(figure, data, _note(data))


def _note(data: pd.DataFrame) -> str:
    decided, unlike = int((data["p_holm"] < 0.05).sum()), int((~data["comparable"]).sum())
    too_few = int((data["p"].isna() & data["comparable"]).sum())
    n = "–".join(str(int(count)) for count in dict.fromkeys((data["n"].min(), data["n"].max())))
    note = f"{decided} of {len(data)} pairs differ by more than chance, on {n} prompts."
    note += f" {too_few} lack the three seeds that a verdict needs." if too_few else ""
    uneven = int((data["most_seeds"] > data["seeds"]).sum())
    note += f" {uneven} have more seeds on one side; all count." if uneven else ""
    note += f" {unlike} were not tuned alike." if unlike else ""
    return note + (f" {int(data['direct'].sum())} were judged against each other." if data["direct"].any() else "")


def _signed(value: float, decimals: int) -> str:
    return f"{value:+z.{decimals}f}".replace("-", "−")


def _cell(ax: plot.Axes, place: tuple[int, int], gap: float, deepest: float, sure: bool, alike: bool) -> None:
    i, j = place
    if np.isnan(gap):
        ax.text(j + 0.5, i + 0.5, "·" if i == j else "–", ha="center", va="center", color=FAINT)
        return
    if alike:
        colour, depth = (plot.BETTER if gap > 0 else plot.WORSE), min(1.0, abs(gap) / deepest)
        ax.add_patch(plot.rectangle(j + 0.03, i + 0.03, 0.94, 0.94, color=colour, alpha=0.05 + 0.6 * depth))
    if sure:
        ax.add_patch(plot.rectangle(j + 0.05, i + 0.05, 0.9, 0.9, fill=False, edgecolor=INK, linewidth=1.1))
    look = {"weight": "bold" if sure else "normal", "color": INK if alike else FAINT}
    ax.text(j + 0.5, i + 0.52, _signed(gap, 0), ha="center", va="center", fontsize=8.5, **look)
