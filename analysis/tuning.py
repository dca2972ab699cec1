"""Figure `tuning` and tables `tuning-table`, `tuned-values`: every trial of every search, the chosen values, and what they are
worth on prompts that they were not chosen by."""

from __future__ import annotations

import json
import math

import pandas as pd

from pobench.registry import register_figure, register_table
from pobench.reporting import plot
from pobench.reporting.looks import START, look_of
from pobench.results import stats
from pobench.results.arms import GREEK, arms_of, json_object, of_arm, score_of, show_setting
from pobench.results.equal_tuning import values_of


@register_figure("tuning", title="The search for values", paper="Tables 7 and 8", chapter="methods", order=440)
def tuning(tuning: pd.DataFrame) -> plot.Drawing:
    """Every trial: the objective on the tuning split against the learning rate, trials of one rate side by side, with
    95 % intervals; filled: chosen; the dashed line is the start model. A panel's title counts its trials. If
    the best is at the end of the range, a wider search may find better; if intervals overlap, the choice is largely
    chance."""
    trials = tuning[pd.to_numeric(tuning["value"], errors="coerce").notna()].copy()
    if trials.empty:
        raise plot.NothingToDraw("No trial has finished.")
    trials["offset"] = trials.groupby(["study", "lr"]).cumcount()
    same = trials.groupby(["study", "lr"])["offset"].transform("max")
    trials["at"] = trials["lr"] * 1.08 ** (trials["offset"] - same / 2)
    studies = list(dict.fromkeys(trials["study"]))
    figure, axes = plot.panels(len(studies))
    for ax, study in zip(axes, studies, strict=True):
        _panel(ax, trials[trials["study"] == study])
    rates = sorted(set(trials["lr"]))
    for ax in axes:  # one scale for all, with room for the outermost trials
        ax.set_xlim(min(trials["at"]) / 1.4, max(trials["at"]) * 1.4)
        ax.set_xticks([], minor=True)
        if len(rates) <= 5:
            ax.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45, ha="right", rotation_mode="anchor")
    metric = ", ".join(dict.fromkeys(trials["metric"]))
    plot.outer_labels(figure, "learning rate", metric.replace("_", " "))
    keep = ["loss", "study", "sampler", "trial", "lr", "settings", "metric", "value", "low", "high", "n", "chosen"]
    return plot.Drawing(figure, trials[keep].reset_index(drop=True))


def _panel(ax: plot.Axes, here: pd.DataFrame) -> None:
    loss = str(here["loss"].iloc[0])
    colour, marker, _ = look_of(loss)
    start = pd.to_numeric(here["start"], errors="coerce").mean()
    if not math.isnan(start):
        ax.axhline(start, color=START.colour, linestyle=(0, (4, 3)), linewidth=1)
    ax.vlines(here["at"], here["low"], here["high"], color=colour, linewidth=1.2, alpha=0.5)
    chosen = here["chosen"].astype(str) == "True"
    for part, face, size in ((here[~chosen], "none", 4.0), (here[chosen], colour, 7.0)):
        ax.plot(
            part["at"],
            part["value"],
            marker=marker,
            linestyle="none",
            color=colour,
            markerfacecolor=face,
            markersize=size,
        )
    for trial in here.itertuples():
        values = ", ".join(f"{GREEK.get(k, k)} = {show_setting(v)}" for k, v in json.loads(trial.settings).items())
        says = f"{loss}, lr = {trial.lr:g}{f', {values}' if values else ''}{', chosen' if str(trial.chosen) == 'True' else ''}"
        numbers = (float(number) for number in (trial.value, trial.low, trial.high))
        plot.hint_cell(ax, trial.at, float(trial.value), says, stats.Estimate(*numbers, int(trial.n)))
    ax.set(xscale="log")
    ax.set_title(f"{loss}, {len(here)} trials", color=colour)


@register_table("tuning-table", title="What the search chose", chapter="methods", order=441)
def tuning_table(tuning: pd.DataFrame) -> pd.DataFrame:
    """The chosen trial of every search. "At an end" names values chosen at the smallest or largest value tried, where a
    wider search may find better."""
    rows = []
    for study, trials in tuning.groupby("study", sort=True):
        done = trials[pd.to_numeric(trials["value"], errors="coerce").notna()]
        best = done[done["chosen"].astype(str) == "True"]
        if best.empty:
            continue
        first = best.iloc[0]
        settings = {"lr": first["lr"], **json.loads(first["settings"])}
        rows.append(
            {
                "Loss": first["loss"],
                "Chosen": ", ".join(f"{GREEK.get(k, k)} = {show_setting(v)}" for k, v in settings.items()),
                str(first["metric"]): stats.Estimate(
                    *(float(first[k]) for k in ("value", "low", "high")), int(first["n"])
                ),
                "Trials": len(done),
                "Failed": int((trials["status"] == "failed").sum()),
                "At an end": ", ".join(_ends(done, settings)) or "–",
                "Search": str(study),
            }
        )
    if not rows:
        raise plot.NothingToDraw("No trial has finished.")
    return pd.DataFrame(rows)


@register_table("tuned-values", title="What a search promised, and what its choice gives", chapter="methods", order=442)
def tuned_values(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """The metric of the best trial on the tuning split, and of the same values on the reported prompts or pairs, each with its
    95 % interval. The best of several trials is in part the luckiest (the winner's curse), so the first number flatters; the
    second does not, since nothing was chosen by it. They are of different prompts, so they also differ by chance."""
    rows = []
    for arm in arms_of(runs):
        searches = {text for text in of_arm(runs, arm).get("tuned", pd.Series(dtype=str)) if json_object(text)}
        if len(searches) != 1:
            continue
        search = json_object(searches.pop())
        metric, ends = str(search["metric"]), [math.nan if search[k] is None else search[k] for k in ("low", "high")]
        rows.append(
            {
                "Loss": arm.label,
                "Values": values_of(runs, arm),
                f"{metric}@tuning split": stats.Estimate(search["value"], *ends, search["n"]),
                f"{metric}@reported": score_of(scores, arm, metric),
                "Seeds": len(arm.runs),
                "Search": search["study"],
            }
        )
    if not rows:
        raise plot.NothingToDraw("No loss has tuned values (`pobench tune`).")
    return pd.DataFrame(rows)


def _ends(done: pd.DataFrame, chosen: dict[str, object]) -> list[str]:
    tried = [{"lr": row["lr"], **json.loads(row["settings"])} for _, row in done.iterrows()]
    ends = []
    for name, value in chosen.items():
        values = {t.get(name) for t in tried}
        numbers = sorted(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))
        if len(numbers) > 1 and value in (numbers[0], numbers[-1]):
            ends.append(GREEK.get(name, name))
    return ends
