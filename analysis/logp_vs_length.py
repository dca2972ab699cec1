"""Figure `logp-vs-length`: the log-probability per token of an answer against its length."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import INK, look_of
from pobench.results import pair_values, stats
from pobench.results.arms import arms_of, of_arm
from pobench.results.groups import prompts_of

MOST_POINTS = 1000  # drawn per panel, evenly picked; every number is computed from all of them


@register_figure(
    "logp-vs-length",
    title="Log-probability per token against length",
    paper="Figs. 2b, 2c, 4a, 6a",
    chapter="length",
    order=340,
)
def logp_vs_length(runs: pd.DataFrame, heldout: pd.DataFrame) -> plot.Drawing:
    """Each point is the chosen answer of a held-out pair; the line is the mean in bins of equal counts; ρ is Spearman's
    correlation with its 95 % interval. Compare with the start model: a ρ far above it means that training made long
    answers likelier per token, which is how a loss exploits length. (The paper, Mistral-Base: start 0.33, SimPO 0.34,
    DPO 0.59, SimPO without length normalisation 0.82.)"""
    panels = []
    for arm in arms_of(runs):
        held = of_arm(heldout, arm).dropna(subset=["chosen_logp", "chosen_length"])
        held = held[held["chosen_length"] > 0].sort_values(["run", "pair"], kind="stable")
        if len(held):
            points = held.assign(per_token=pair_values.winner(held), loss=arm.loss, label=arm.label)
            sides = points["chosen_length"], points["per_token"]
            panels.append((arm, points, stats.spearman(*sides, points["run"], prompts_of(points["pair"]))))
    if not panels:
        raise plot.NothingToDraw("No run has log-probabilities of held-out answers.")
    figure, axes = plot.panels(len(panels), height=2.0)
    for ax, (arm, points, rho) in zip(axes, panels, strict=True):
        colour = look_of(arm.loss).colour
        drawn = points.iloc[:: max(1, -(-len(points) // MOST_POINTS))]
        ax.plot(
            drawn["chosen_length"], drawn["per_token"], "o", color=colour, alpha=0.35, markersize=2.5,
            markeredgewidth=0, rasterized=len(drawn) > 200,
        )  # fmt: skip
        line = plot.binned(
            points["chosen_length"].to_numpy(), points["per_token"].to_numpy(), points["pair"], points["run"]
        )
        ax.plot(line["x"], line["value"], color=INK, linewidth=1.3)
        plot.hint_estimates(ax, line["x"], line, plot.short(arm.label))
        plot.heading(ax, arm)
        ax.annotate(plot.rho(rho), (0.97, 0.05), xycoords="axes fraction", ha="right", fontsize=8, color=INK)
    plot.outer_labels(figure, "length of the chosen answer, tokens", "log-probability, nats per token")
    columns = ["loss", "label", "run", "pair", "chosen_length", "per_token"]
    data = pd.concat([points[columns] for _, points, _ in panels], ignore_index=True)
    return plot.Drawing(figure, data, plot.counted([e.n for *_, e in panels], "pairs"))
