"""Figure `rounds` and table `rounds-table`: iterative training, round by round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pobench.registry import register_figure, register_table
from pobench.reporting import plot
from pobench.reporting.looks import START, Dash, look_of
from pobench.results.arms import Arm, round_of, score_of
from pobench.results.rounds import Chain, chains_of
from pobench.results.rows import Rows

TITLE = "Rounds of training"
QUANTITIES = [  # metric, title, printed as per cent
    ("pass_rate", "pass rate", True),
    ("win_rate", "wins over start", True),
    ("kl_winners", "KL from start, nats/token", False),
    ("length_tokens", "length, tokens", False),
    ("margin", "reward margin, own unit", False),
]
WAYS = ("solid", "dotted", "dashdot", "dashed")  # of several chains of one loss
SHOWN = ("pass_rate", "pass_rate_gain", "win_rate", "kl_winners", "length_tokens", "margin", "reward_accuracy")


@register_figure("rounds", title=TITLE, chapter="results", order=52, every_arm=True)
def rounds(runs: pd.DataFrame, scores: Rows) -> plot.Drawing:
    """Each loss over its rounds of iterative training: round 1 trains from the start model on pairs of its answers, every
    later one from the last round's model on pairs of that model's answers. Bars are 95 % intervals, faint dots single seeds,
    the dashed line is the start model. All rounds are measured on the same prompts and the same held-out pairs, and against the
    start model: KL is the distance from it, and a margin is that of the whole way, whatever reference a round was trained
    against. Rounds of one loss are one chain of runs, so a rise from round to round is not tested by bars that overlap or do
    not; gains over the start model are in the table below, paired by prompt."""
    chains = _chains(runs)
    rows = [
        {"loss": chain.loss, "label": chain.label, "round": number, "metric": metric, "of": of, **columns}
        for chain in chains
        for number, arm in enumerate(chain.arms, start=_first(runs, chain))
        for metric, *_ in QUANTITIES
        for of, columns in _estimates(scores, arm, metric)
    ]
    data = pd.DataFrame(rows).dropna(subset=["value"])
    shown = [q for q in QUANTITIES if (data["metric"] == q[0]).any()]
    if not shown:
        raise plot.NothingToDraw("No run of several rounds has been scored.")
    figure, axes = plot.panels(len(shown), height=2.4, sharey=False)
    for ax, (metric, title, percent) in zip(axes, shown, strict=True):
        start = plot.start_score(runs, scores, metric).value
        if not math.isnan(start):
            ax.axhline(start, color=START.colour, linestyle=(0, (4, 3)), linewidth=1)
        for place, chain in enumerate(chains):
            own = data[(data["metric"] == metric) & (data["loss"] == chain.loss) & (data["label"] == chain.label)]
            same = [other.label for other in chains if other.loss == chain.loss]
            dash = WAYS[same.index(chain.label) % len(WAYS)] if len(same) > 1 else look_of(chain.loss).dash
            _line(ax, own, chain, (place - (len(chains) - 1) / 2) * 0.06, dash, title)
        if percent:
            plot.percent_axis(ax, "y")
        ax.set_title(title, fontsize=8)
        ax.xaxis.set_major_locator(plot.MaxNLocator(integer=True))
    if not all([plot.name_lines(ax) for ax in axes]):
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=7)
    plot.outer_labels(figure, "round", "")
    return plot.Drawing(figure, data.reset_index(drop=True), plot.counted(data["n"], "prompts or pairs"))


@register_table("rounds-table", title=f"{TITLE}: every round", chapter="results", order=53, every_arm=True)
def rounds_table(runs: pd.DataFrame, scores: Rows) -> pd.DataFrame:
    """One row a loss and round, with 95 % intervals; gain and wins are paired with the start model prompt by prompt. Reference:
    what a loss that reads one was trained against, the start model or the last round's. Pairs and seconds: of that
    round's training alone, the mean over seeds."""
    facts = runs.set_index("run")
    rows = []
    for chain in _chains(runs):
        for number, arm in enumerate(chain.arms, start=_first(runs, chain)):
            own = facts.loc[list(arm.runs)]
            reads = _text(own["reference"].iloc[0])
            rows.append(
                {
                    "Loss": chain.label,
                    "Round": number,
                    **{metric: score_of(scores, arm, metric) for metric in SHOWN},
                    "Reference": (_text(own["rounds_reference"].iloc[0]) or "start") if reads else "–",
                    "Pairs": float(own["pairs"].mean()),
                    "Seconds": float(own["seconds"].mean()),
                    "Seeds": len(arm.runs),
                }
            )
    table = pd.DataFrame(rows)
    return table.drop(columns=[m for m in SHOWN if all(math.isnan(e.value) for e in table[m])])


def _chains(runs: pd.DataFrame) -> list[Chain]:
    if not (chains := chains_of(runs)):
        raise plot.NothingToDraw("No loss was trained in several rounds (`pobench run --rounds 3`).")
    return chains


def _first(runs: pd.DataFrame, chain: Chain) -> int:
    """The round of a chain's first arm."""
    return round_of(runs[runs["run"] == chain.arms[0].runs[0]].iloc[0])


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


def _estimates(scores: Rows, arm: Arm, metric: str) -> Sequence[tuple[str, dict[str, float]]]:
    """("all" or a seed's run, its estimate as columns)."""
    several = arm.runs if len(arm.runs) > 1 else ()
    each = [(run, score_of(scores, arm._replace(id=run, runs=(run,)), metric)) for run in several]
    return [(of, plot.estimate_columns(e)) for of, e in (("all", score_of(scores, arm, metric)), *each)]


def _line(ax: plot.Axes, rows: pd.DataFrame, chain: Chain, aside: float, dash: str | Dash, title: str) -> None:
    """One chain: the line of its estimates with intervals, and its seeds. aside: how far it stands beside its round."""
    colour, marker, _ = look_of(chain.loss)
    here, seeds = rows[rows["of"] == "all"], rows[rows["of"] != "all"]
    at = here["round"] + aside
    ax.plot(at, here["value"], color=colour, marker=marker, markersize=4.5, linestyle=dash, label=chain.label)
    ax.vlines(at, here["low"], here["high"], color=colour, linewidth=2, alpha=0.6)
    ax.plot(seeds["round"] + aside, seeds["value"], color=colour, marker=".", linestyle="none", alpha=0.35)
    texts = [
        f"{chain.label}, round {row.round}, {title}: {row.value:.3g} [{row.low:.3g}, {row.high:.3g}], n = {row.n:.0f}"
        for row in here.itertuples()
    ]
    plot.hint(ax, at, here["value"], [text.replace("-", "−") for text in texts])
