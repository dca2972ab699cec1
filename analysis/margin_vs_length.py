"""Figure `margin-vs-length`: the reward margin of held-out pairs against the length difference."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, GRID, INK, look_of
from pobench.results import stats
from pobench.results.arms import arms_of, of_arm


@register_figure(
    "margin-vs-length", title="Reward margin against length difference", paper="Fig. 2a", chapter="length", order=330
)
def margin_vs_length(
    runs: pd.DataFrame, heldout: pd.DataFrame, *, bins: int = 8, width: float | None = None
) -> plot.Drawing:
    """Mean reward margin of held-out pairs, binned by how many tokens longer the chosen answer is; the band is the 95 %
    interval of the mean, ρ Spearman's correlation of the two with its own. Each panel has the loss's own unit, so
    compare shapes, not heights. A line that climbs from far below zero to far above it shows a reward that mostly
    counts tokens; a flat line above zero shows one that ranks pairs whatever their length. Bins hold equal numbers of
    pairs (the setting width gives fixed ones; the paper uses 100)."""
    panels, notes = [], []
    for arm in arms_of(runs):
        held = of_arm(heldout, arm).dropna(subset=["chosen_reward", "rejected_reward"])
        if held.empty:
            continue
        longer = (held["chosen_length"] - held["rejected_length"]).to_numpy(float)
        margin = (held["chosen_reward"] - held["rejected_reward"]).to_numpy(float)
        line = plot.binned(longer, margin, held["pair"], held["run"], bins=bins, width=width)
        panels.append((arm, line, stats.spearman(longer, margin, held["run"])))
    panels = [p for p in panels if len(p[1])]
    if not panels:
        raise plot.NothingToDraw("No trained model has rewards on held-out pairs.")
    figure, axes = plot.panels(len(panels), sharey=False)
    for ax, (arm, line, rho) in zip(axes, panels, strict=True):
        colour, marker = look_of(arm.loss)
        ax.axhline(0, color=FAINT, linewidth=0.8)
        ax.axvline(0, color=GRID, linewidth=0.8)
        ax.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.2, linewidth=0)
        ax.plot(line["x"], line["value"], marker=marker, color=colour, markersize=4)
        plot.hint_estimates(ax, line["x"], line, plot.short(arm.label))
        plot.heading(ax, arm)
        low, high = ax.get_ylim()
        ax.set_ylim(low, high + 0.2 * (high - low))  # room for the words
        ax.annotate(plot.rho(rho), (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=8, color=INK)
        if rho.low > 0.5:
            notes.append(arm.label)
    plot.outer_labels(figure, "chosen minus rejected length, tokens", "mean reward margin, own unit")
    data = pd.concat([line.assign(loss=arm.loss, label=arm.label) for arm, line, _ in panels], ignore_index=True)
    text = f"The margin follows length strongly (ρ above 0.5) for {', '.join(notes)}." if notes else ""
    return plot.Drawing(figure, data, f"{text} {plot.counted(data['n'], 'pairs a bin')}".strip())
