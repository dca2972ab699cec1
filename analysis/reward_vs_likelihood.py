"""Figure `reward-vs-likelihood`: whether reward and likelihood rank a pair alike."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import INK, SHADE, look_of
from pobench.results import pair_values, stats
from pobench.results.arms import Arm, arms_of, of_arm
from pobench.results.groups import prompts_of
from pobench.types import Estimate

CELLS = [  # reward right?, likelihood right?, name
    (True, True, "both right"),
    (True, False, "reward only"),
    (False, True, "likelihood only"),
    (False, False, "both wrong"),
]


@register_figure(
    "reward-vs-likelihood",
    title="Reward order against likelihood order",
    paper="Figs. 4b, 6b",
    chapter="length",
    order=350,
)
def reward_vs_likelihood(
    runs: pd.DataFrame, heldout: pd.DataFrame, trainpairs: pd.DataFrame | None = None
) -> plot.Drawing:
    """Held-out pairs sorted twice: does the reward prefer the chosen answer (rows), and does the log-probability per
    token, which is what generation follows (columns)? Off the diagonal the reward prefers one answer and the
    model is likelier to write the other. Panels of training pairs, which the paper shows, follow where those were scored
    (`--stages trainpairs`). For SimPO the two orders are the same, so its off-diagonal is empty; in the paper DPO
    disagrees on about half of its training pairs."""
    panels = [(arm, "held-out", shares) for arm in arms_of(runs) if (shares := _shares(of_arm(heldout, arm)))]
    if trainpairs is not None:
        for arm in arms_of(runs):
            if shares := _shares(of_arm(trainpairs, arm)):
                panels.append((arm._replace(label=f"{arm.label}, training"), "training", shares))
    if not panels:
        raise plot.NothingToDraw("No trained model has rewards on held-out pairs.")
    figure, axes = plot.panels(len(panels), height=1.95, columns=5)
    for ax, (arm, _, shares) in zip(axes, panels, strict=True):
        _square(ax, arm, shares)
    plot.outer_labels(figure, "higher log-probability per token: chosen | rejected", "higher reward: rejected | chosen")
    rows = [
        {"loss": arm.loss, "label": arm.label, "pairs": of, "cell": name, **plot.estimate_columns(e)}
        for arm, of, shares in panels
        for name, e in shares.items()
    ]
    worst = max(panels, key=lambda panel: _off(panel[2]))
    share = _off(worst[2])
    text = f"They disagree most for {worst[0].label}: {100 * share:.0f} % of pairs." if share > 0 else ""
    return plot.Drawing(figure, pd.DataFrame(rows), text)


def _shares(pairs: pd.DataFrame) -> dict[str, Estimate]:
    """Cell → its share of the pairs; {} where none has rewards."""
    pairs = pairs.dropna(subset=["chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp"])
    if pairs.empty:
        return {}
    reward = pairs["chosen_reward"] > pairs["rejected_reward"]
    likely = pair_values.per_token(pairs, "chosen") > pair_values.per_token(pairs, "rejected")
    cells = {name: ((reward == right) & (likely == likelier)).astype(float) for right, likelier, name in CELLS}
    where = pairs["pair"], pairs["run"], prompts_of(pairs["pair"])
    return {name: stats.mean(inside, *where, bounds=stats.UNIT) for name, inside in cells.items()}


def _off(shares: dict[str, Estimate]) -> float:
    return float(np.nansum([shares["reward only"].value, shares["likelihood only"].value]))


def _square(ax: plot.Axes, arm: Arm, shares: dict[str, Estimate]) -> None:
    """Draw a 2×2 table; off-diagonal cells have the loss's colour, deeper for a larger share."""
    colour = look_of(arm.loss).colour
    for i, (right, likelier, name) in enumerate(CELLS):
        e = shares[name]
        x, y = i % 2, 1 - i // 2
        fill = {"color": colour, "alpha": 0.08 + 0.8 * e.value} if right != likelier else {"color": SHADE}
        ax.add_patch(plot.rectangle(x + 0.02, y + 0.02, 0.96, 0.96, **fill))
        ax.text(x + 0.5, y + 0.56, f"{100 * e.value:.0f} %", ha="center", va="center", fontsize=10, weight="bold")
        plot.hint_cell(ax, x + 0.5, y + 0.5, f"{plot.short(arm.label)}, {name}", e, plot.percent)
        ax.text(x + 0.5, y + 0.27, name, ha="center", va="center", fontsize=6.5, color=INK)
    ax.set(xlim=(0, 2), ylim=(0, 2), aspect="equal", xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    plot.heading(ax, arm)
