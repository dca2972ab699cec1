"""Figures `training-curves` and `both-rewards`: quantities logged during training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, look_of
from pobench.results.arms import Arm, arms_of, of_arm

# title, columns (the second one dashed), whether losses share the scale, logarithmic
QUANTITIES = [
    ("loss", ["loss"], False, False),
    ("rewards", ["rewards/chosen", "rewards/rejected"], False, False),
    ("margin", ["rewards/margins"], False, False),
    ("accuracy", ["rewards/accuracies"], True, False),
    ("log-prob per token", ["logps/chosen_per_token", "logps/rejected_per_token"], True, False),
    ("gradient norm", ["grad_norm"], True, True),
]

MOST_POINTS = 120  # of a line: a panel is about as many points wide


@register_figure("training-curves", title="Training curves", chapter="training", order=210)
def training_curves(runs: pd.DataFrame, steps: pd.DataFrame) -> plot.Drawing:
    """One row per loss. Solid: chosen; dashed: rejected; thin: single steps (of every seed); bold: their running
    mean. Loss, rewards and margin stand in the loss's own unit; accuracy, log-probability and gradient norm share one
    scale in their column. Look for curves that break off, a gradient norm that explodes, an accuracy that never
    leaves one half."""
    shown = [(arm, logged) for arm in arms_of(runs) if len(logged := of_arm(steps, arm))]
    if not shown:
        raise plot.NothingToDraw("No run has logged a training step.")
    quantities = [q for q in QUANTITIES if any(c in steps and steps[c].notna().any() for c in q[1])]
    if not quantities:
        raise plot.NothingToDraw("No training step has a number to draw.")
    across = len(quantities)
    figure, axes = plot.panels(
        len(shown) * across, columns=across, height=1.12, width=plot.WIDTH + 1.2, sharex=True, sharey=False
    )
    grid = np.array(axes).reshape(len(shown), across)
    for row, (arm, logged) in zip(grid, shown, strict=True):
        for ax, (_, columns, _, logarithmic) in zip(row, quantities, strict=True):
            for style, column in zip(("-", (0, (3, 1.5))), columns, strict=False):
                curve(ax, logged, column, arm, style)
            if logarithmic:
                plot.log_scale(ax)
            else:
                ax.yaxis.set_major_locator(plot.MaxNLocator(3))
            ax.xaxis.set_major_locator(plot.MaxNLocator(4, integer=True))
            ax.tick_params(labelsize=6.5)
        name = plot.short(arm.label, 18)
        size = 8.5 if len(name) <= 12 else 6.5  # a row is as high as eighteen small letters are long
        row[0].set_ylabel(name, color=look_of(arm.loss).colour, weight="bold", fontsize=size)
    for place, (title, _, shared, _) in enumerate(quantities):
        grid[0][place].set_title(title, fontsize=8.5)
        if shared:
            limits = [ax.get_ylim() for ax in grid[:, place] if ax.lines]
            for ax in grid[:, place]:
                ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    figure.supxlabel("optimiser step", fontsize=8.5, color=FAINT)
    used = [c for _, columns, _, _ in quantities for c in columns if c in steps]
    data = pd.concat([f[["run", "step", *used]].assign(label=arm.label) for arm, f in shown], ignore_index=True)
    return plot.Drawing(figure, data, _broken(data, used))


@register_figure(
    "both-rewards", title="Chosen and rejected log-probability during training", chapter="training", order=200
)
def both_rewards(runs: pd.DataFrame, steps: pd.DataFrame) -> plot.Drawing:
    """Change since the first step of the log-probability per token of the chosen (solid) and the rejected answer
    (dashed). Both falling is common and not an error: these objectives require a gap, not a rise. It is a problem if the
    chosen line falls as fast as the rejected one (no gap is learned), or falls while answers repeat themselves, run
    on or stop early."""
    pairs = ["logps/chosen_per_token", "logps/rejected_per_token"]
    shown = [
        (arm, logged)
        for arm in arms_of(runs)
        if set(pairs) <= set(steps) and len(logged := of_arm(steps, arm).dropna(subset=pairs, how="all"))
    ]
    if not shown:
        raise plot.NothingToDraw("No run has logged the log-probabilities of both sides.")
    figure, axes = plot.panels(len(shown), sharey=len(shown) > 1)
    parts = []
    for ax, (arm, logged) in zip(axes, shown, strict=True):
        moved = logged.sort_values(["run", "step"], kind="stable").copy()
        for column in pairs:
            first = moved.groupby("run")[column].transform(lambda v: v.dropna().head(_opening(len(v))).mean())
            moved[column] = moved[column] - first
        ax.axhline(0, color=FAINT, linewidth=0.8)
        for style, column in zip(("-", (0, (3, 1.5))), pairs, strict=True):
            curve(ax, moved, column, arm, style)
        plot.heading(ax, arm)
        parts.append(moved[["run", "step", *pairs]].assign(label=arm.label))
    plot.name_lines(axes[0])
    plot.outer_labels(figure, "optimiser step", "change, nats per token")
    return plot.Drawing(figure, pd.concat(parts, ignore_index=True))


def curve(ax: plot.Axes, logged: pd.DataFrame, column: str, arm: Arm, style: object) -> None:
    """Single steps thin, their running mean over seeds bold."""
    if column not in logged or not np.isfinite(logged[column].to_numpy(float)).any():
        return
    label, colour = arm.label, look_of(arm.loss).colour
    for _, run in logged.groupby("run", sort=True):
        ax.plot(*plot.thinned(run["step"], run[column], MOST_POINTS), color=colour, alpha=0.3, linewidth=0.6)
    over_seeds = logged.groupby("step", sort=True)[column].mean()
    window = max(1, len(over_seeds) // 12)
    smooth = over_seeds.rolling(window, center=True, min_periods=1).mean()
    at = np.unique(np.linspace(0, len(smooth) - 1, min(len(smooth), MOST_POINTS // 2)).round().astype(int))
    ax.plot(
        smooth.index[at],
        smooth.iloc[at],
        color=colour,
        linestyle=style,
        label=column.partition("/")[2].partition("_")[0],
    )
    says = f"{plot.short(label)}, {column.replace('/', ' ').replace('_', ' ')}"
    plot.hint(ax, smooth.index, smooth, [f"{says}, step {at}: {v:.3g}".replace("-", "−") for at, v in smooth.items()])


def _opening(steps: int) -> int:
    """How many steps make the starting point: one step is one batch, and noisy."""
    return max(1, steps // 20)


def _broken(data: pd.DataFrame, columns: list[str]) -> str:
    numbers = [c for c in columns if c in ("loss", "grad_norm")]
    bad = data[~np.isfinite(data[numbers].to_numpy(float)).all(axis=1)]
    first = bad.groupby("label", sort=True)["step"].min()
    return " ".join(
        f"{label}: the loss or its gradient is not finite from step {int(step)}." for label, step in first.items()
    )
