"""Figures `beside-dpo` and `beside-dpo-benchmark`: on which prompts a loss beats a third model and DPO does not, and the
reverse. The third is the start model, or a benchmark's baseline, as in the paper."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import SHADE, look_of
from pobench.results import stats
from pobench.results.arms import Arm, arms_of, home_of, scores_by_prompt
from pobench.results.groups import labels, prompt_groups
from pobench.types import Estimate

OUTCOMES = [(0.0, "loses"), (0.5, "ties"), (1.0, "wins")]


@register_figure(
    "beside-dpo",
    title="Wins and losses, prompt by prompt, beside DPO",
    chapter="results",
    order=22,
)
def beside_dpo(
    runs: pd.DataFrame, verdicts: pd.DataFrame, answers: pd.DataFrame | None = None, *, rival: str = "dpo"
) -> plot.Drawing:
    """Share of prompts, in per cent, by two comparisons with the start model: across, whether the loss wins, ties or loses
    on the prompt; down, whether DPO does. The diagonal is where the two agree. Right of and above it the loss does
    better, in its colour; left of and below it DPO does, in orange. Two losses of the same win rate may win on
    different prompts."""
    dpo, start = home_of(runs, rival), next((arm for arm in arms_of(runs) if arm.is_start), None)
    if dpo is None or start is None:
        raise plot.NothingToDraw("No run of DPO stands beside its start model.")
    arms = [arm for arm in arms_of(runs) if not arm.is_start and arm != dpo]
    table = scores_by_prompt(verdicts, [start, dpo, *arms])
    arms = [arm for arm in arms if arm.id in table and {start.id, dpo.id} <= set(table)]
    if not arms:
        raise plot.NothingToDraw("DPO was not judged beside another loss and the start model.")
    groups = labels(table.index.to_series(), prompt_groups(answers))
    dpo_outcome = stats.outcomes(table[dpo.id], table[start.id])
    figure, axes = plot.panels(len(arms), height=1.95, columns=5)
    rows = []
    for ax, arm in zip(axes, arms, strict=True):
        shares = _shares(stats.outcomes(table[arm.id], table[start.id]), dpo_outcome, groups)
        _square(ax, arm, dpo, shares)
        rows += _cells(arm, shares)
    plot.outer_labels(
        figure, "the loss against the start model", f"{plot.short(dpo.label, 20)} against the start model"
    )
    return plot.Drawing(figure, pd.DataFrame(rows).assign(beside=dpo.label, start=start.label))


BASELINES = {"alpaca_eval": "AlpacaEval's baseline", "arena_hard": "Arena-Hard's baseline"}


@register_figure(
    "beside-dpo-benchmark",
    title="Wins and losses against a benchmark's baseline, beside DPO",
    paper="Figs. 7 and 8",
    chapter="results",
    order=24,
)
def beside_dpo_benchmark(runs: pd.DataFrame, questions: pd.DataFrame, *, rival: str = "dpo") -> plot.Drawing:
    """Share of a benchmark's questions, in per cent, by two comparisons with its baseline's answers (GPT-4's): across,
    whether the loss wins, ties or loses; down, whether DPO does. Right of and above the diagonal the loss does better,
    in its colour; left of and below it DPO does, in orange. One judge a benchmark. (In the
    paper, on AlpacaEval 2 and Mistral-Base, SimPO alone wins 9.6 % of questions and DPO alone 2.6 %.)"""
    dpo = home_of(runs, rival)
    if dpo is None:
        raise plot.NothingToDraw("No run of DPO answered a benchmark with a baseline.")
    found = []
    for benchmark, name in BASELINES.items():
        asked = (questions["benchmark"] == benchmark) & (questions["metric"] == "win_rate")
        table = _by_question(questions[asked], arms_of(runs), dpo)
        outcomes = {
            arm: stats.outcomes(table[arm.id], np.full(len(table), 50.0)) for arm in arms_of(runs) if arm.id in table
        }
        found += [
            (name, arm, _shares(outcomes[arm], outcomes[dpo])) for arm in outcomes if dpo in outcomes and arm != dpo
        ]
    if not found:
        raise plot.NothingToDraw("DPO and another loss have not answered the same benchmark with a baseline.")
    figure, axes = plot.panels(len(found), height=2.2, columns=5)
    rows = []
    for ax, (name, arm, shares) in zip(axes, found, strict=True):
        _square(ax, arm, dpo, shares)
        ax.set_xlabel(name, fontsize=7)
        rows += [{"benchmark": name, **row} for row in _cells(arm, shares)]
    plot.outer_labels(figure, "the model against the baseline", f"{plot.short(dpo.label, 20)} against the baseline")
    return plot.Drawing(figure, pd.DataFrame(rows).assign(beside=dpo.label))


def _by_question(questions: pd.DataFrame, arms: list[Arm], dpo: Arm) -> pd.DataFrame:
    """(questions × arms) the mean over seeds of the score beside the baseline, 50 where both are even, by the judge of most of
    DPO's questions."""
    counts = questions[questions["run"].isin(dpo.runs)]["judge"].value_counts()
    judge = min(counts.index, key=lambda name: (-counts[name], name), default=None)
    arm_of = {run: arm.id for arm in arms for run in arm.runs}
    kept = questions[(questions["judge"] == judge) & questions["run"].isin(list(arm_of))]
    return kept.assign(arm=kept["run"].map(arm_of)).pivot_table("score", "question", "arm", aggfunc="mean")


def _cells(arm: Arm, shares: dict[tuple[str, str], Estimate]) -> list[dict[str, object]]:
    return [
        {"loss": arm.loss, "label": arm.label, "rival": down, "this": across, **plot.estimate_columns(e)}
        for (down, across), e in shares.items()
    ]


def _shares(
    outcome: np.ndarray, dpo_outcome: np.ndarray, groups: pd.Series | None = None
) -> dict[tuple[str, str], Estimate]:
    """(DPO's outcome, the loss's outcome) → share of the prompts on which all three models were judged. groups: of each."""
    judged = ~(np.isnan(outcome) | np.isnan(dpo_outcome))
    cells = {(down, across): (dpo_outcome == a) & (outcome == b) for a, down in OUTCOMES for b, across in OUTCOMES}
    inside = np.stack([cell[judged].astype(float) for cell in cells.values()], axis=1)
    own = None if groups is None else groups.to_numpy()[judged]
    return dict(zip(cells, stats.means(inside, [stats.UNIT] * len(cells), own), strict=True))


def _square(ax: plot.Axes, arm: Arm, dpo: Arm, shares: dict[tuple[str, str], Estimate]) -> None:
    names = [name for _, name in OUTCOMES]
    for (down, across), e in shares.items():
        x, y = names.index(across), names.index(down)
        fill = {"color": SHADE}
        if x != y and not np.isnan(e.value):
            fill = {
                "color": look_of((arm if x > y else dpo).loss).colour,
                "alpha": 0.08 + 0.8 * min(1.0, 2 * e.value),
            }
        ax.add_patch(plot.rectangle(x + 0.02, y + 0.02, 0.96, 0.96, **fill))
        text = "–" if np.isnan(e.value) else f"{100 * e.value:.0f}"
        ax.text(x + 0.5, y + 0.52, text, ha="center", va="center", fontsize=9, weight="bold" if x != y else "normal")
        says = f"{plot.short(arm.label)} {across}, {plot.short(dpo.label)} {down}"
        plot.hint_cell(ax, x + 0.5, y + 0.5, says, e, plot.percent)
    at = np.arange(len(names)) + 0.5
    ax.set(xlim=(0, 3), ylim=(3, 0), aspect="equal")
    ax.set_xticks(at, names)
    ax.set_yticks(at, names, rotation=90, va="center")
    ax.tick_params(length=0, labelsize=7)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    plot.heading(ax, arm)
