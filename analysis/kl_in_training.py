"""Figure `kl-in-training`: the distance from the start model during training."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, look_of
from pobench.results.arms import arms_of, of_arm

COLUMNS = ["heldout/kl", "heldout/accuracy", "heldout/margin", "heldout/chosen_per_token"]


@register_figure(
    "kl-in-training",
    title="Distance from the start model during training",
    paper="Fig. 5a",
    chapter="length",
    order=312,
)
def kl_in_training(runs: pd.DataFrame, steps: pd.DataFrame) -> plot.Drawing:
    """Estimated KL(reference ‖ policy) per token on the chosen answers of held-out pairs, at steps of training; one line
    for each of a loss's settings (the deeper the colour, the later in order), the mean over seeds, thin for each
    seed. It starts at zero, where policy and reference are equal. A line flattens when the learning rate has decayed or
    β holds the policy; a line that still rises at the end would rise further with more steps. (The paper, Mistral-Base:
    DPO ends at 0.414 with β = 0.01 and at 0.021 with 0.1; SimPO at 0.536 with β = 2 and at 0.420 with 10.) The CSV has
    the held-out accuracy, margin and log-probability of the same steps."""
    there = [c for c in COLUMNS if c in steps]
    measured = steps.dropna(subset=there[:1]) if COLUMNS[0] in there else steps.iloc[:0]
    arms = [arm for arm in arms_of(runs) if len(of_arm(measured, arm))]
    if not arms:
        raise plot.NothingToDraw(
            "No run was measured on held-out pairs while training (`--set train.evaluate_every=…`)."
        )
    losses = list(dict.fromkeys(arm.loss for arm in arms))
    figure, axes = plot.panels(len(losses), height=2.3)
    parts = []
    for ax, loss in zip(axes, losses, strict=True):
        of_loss = [arm for arm in arms if arm.loss == loss]
        for place, arm in enumerate(of_loss):
            rows = of_arm(measured, arm)[["run", "step", *there]]
            _line(ax, rows, look_of(loss).colour, 0.3 + 0.7 * (place + 1) / len(of_loss), arm.label)
            parts.append(rows.assign(loss=loss, label=arm.label))
        ax.axhline(0, color=FAINT, linewidth=0.8)
        plot.heading(ax, of_loss[0]._replace(label=of_loss[0].label.partition(" (")[0]))
        if len(of_loss) > 1 and not plot.name_lines(ax):
            ax.legend(fontsize=7)
    plot.outer_labels(figure, "optimiser step", "nats per token")
    return plot.Drawing(figure, pd.concat(parts, ignore_index=True))


def _line(ax: plot.Axes, rows: pd.DataFrame, colour: str, depth: float, label: str) -> None:
    """Draw the mean over seeds as a bold line from zero, and single seeds as thin lines if there are several."""
    several = rows["run"].nunique() > 1
    for _, run in rows.groupby("run", sort=True) if several else []:
        ax.plot([0, *run["step"]], [0.0, *run["heldout/kl"]], color=colour, alpha=0.3, linewidth=0.6)
    mean = rows.groupby("step", sort=True)["heldout/kl"].mean()
    settings = label.partition(" (")[2].removesuffix(")")
    ax.plot(
        [0, *mean.index], [0.0, *mean], color=colour, alpha=depth, marker="o", markersize=2.5, label=settings or label
    )
    seeds = rows["run"].nunique()
    says = [f"{plot.short(label)}, step {at}: {v:.3g}, {seeds} seed{'s'[: seeds != 1]}" for at, v in mean.items()]
    plot.hint(ax, mean.index, mean, [text.replace("-", "−") for text in says])
