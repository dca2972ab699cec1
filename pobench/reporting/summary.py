"""Computes the summary at the top of a report: sentences from the frames, with n and intervals, to be read in a minute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from pobench.reporting.tables import clean, listing, show_number
from pobench.results import stats
from pobench.results.arms import (
    Arm,
    beats_tests,
    judges_of,
    of_arm,
    score_of,
    scores_by_prompt,
    scores_by_seed_and_prompt,
)
from pobench.results.comparable import Comparable, Selection
from pobench.types import Estimate

MOST_NAMED = 5  # losses in one sentence; of more, it names the FIRST, and the tables have all
FIRST = 3


@dataclass
class Finding:
    """One sentence of the summary; tone: "good" | "bad" | "open" | "note"."""

    tone: str
    head: str
    text: str


def summarise(
    comparable: Comparable, health: pd.DataFrame | None = None, claims: pd.DataFrame | None = None
) -> list[Finding]:
    """The findings: losses better or worse than the start model, differences between losses, the verdicts on the paper's
    claims, failures, and warnings.

    health, claims: the tables `training-health` and `claims`, if they were drawn. Losses are compared as in the tables,
    each with its setting's own values; failures include every arm.
    """
    home, every_arm = comparable.home, comparable.every_arm
    sentences = [*_gains(home), *_between(home), *_scorecard(claims), *_failures(every_arm), *_warnings(health)]
    if home.left_out:
        sentences.append(Finding("note", "Variants of settings", home.left_out))
    return [*sentences, *_not_judged(every_arm), *_one_seed(every_arm), *_data_order(every_arm)]


def _not_judged(selection: Selection) -> list[Finding]:
    judged = selection.frames["verdicts"]
    blank = int(judged["score"].isna().sum()) if len(judged) else 0
    if not blank:
        return []
    text = f"The judge gave no score for {blank} of {len(judged)} answers; they are left out."
    return [Finding("note", "Not judged", text)]


def _one_seed(selection: Selection) -> list[Finding]:
    runs = selection.frames["runs"]
    finished = runs[(runs["status"] == "finished") & (runs["loss"] != "start")]
    if max((int(finished["run"].isin(arm.runs).sum()) for arm in selection.trained), default=0) != 1:
        return []
    text = "Each loss was trained once. The intervals cover the choice of prompts, not the luck of a training run."
    return [Finding("note", "One seed", text)]


def _data_order(selection: Selection) -> list[Finding]:
    runs = selection.frames["runs"]
    orders = runs[runs["loss"] != "start"].dropna(subset=["order"]).query("order != ''")
    if all(group["order"].nunique() == 1 for _, group in orders.groupby("seed", sort=True)):
        return []
    text = "Runs with the same seed saw pairs in different orders, which may cause part of any difference."
    return [Finding("bad", "Data order", text)]


# ---------------------------------------------------------------- against the start model
def _gains(selection: Selection) -> list[Finding]:
    scores = selection.frames["scores"]
    gains = {arm: score_of(scores, arm, "pass_rate_gain") for arm in selection.trained}
    gains = {arm: e for arm, e in gains.items() if not math.isnan(e.value)}
    if not gains:
        return _without_judge(selection)
    corrected = dict(zip(gains, stats.holm(_gain_p_values(selection, list(gains))), strict=True))
    ranked = sorted(gains, key=lambda arm: (-gains[arm].value, arm.label))
    up = [arm for arm in ranked if gains[arm].low > 0]
    down = [arm for arm in reversed(ranked) if gains[arm].high < 0]
    undecided = [arm for arm in ranked if arm not in up and arm not in down]
    n = max(e.n for e in gains.values())
    basis = f" Pass rates on n = {n} prompts{_level(selection)}."
    sentences: list[Finding] = []
    for tone, head, arms in (("good", "Better than the start model", up), ("bad", "Worse than the start model", down)):
        if arms:
            text = f"{_how_many(arms, gains)}{_points_of(arms, gains)}.{'' if sentences else basis}"
            lost = [clean(arm.label) for arm in arms if not corrected[arm] < 0.05]
            if len(gains) > 1:
                test = f"Holm’s correction for {len(gains)} comparisons"
                text += (
                    f" After {test} this no longer holds for {listing(lost)}." if lost else f" {test} changes nothing."
                )
            sentences.append(Finding(tone, head, text))
    if undecided:
        half = float(np.median([(e.high - e.low) / 2 for e in gains.values()]))
        text = f"{_how_many(undecided, gains)}{_points_of(undecided, gains)}.{'' if sentences else basis}"
        if not math.isnan(half):
            text += f" With these {n} prompts a difference under about {100 * half:.0f} points says nothing."
        sentences.append(Finding("open", "Not told apart from the start model", text))
    return sentences


def _how_many(arms: Sequence[Arm], gains: Mapping[Arm, Estimate]) -> str:
    """The beginning of a list that names only the first of many: their number and range."""
    if len(arms) <= MOST_NAMED:
        return ""
    ends = f"{_signed(gains[arms[-1]].value)} to {_signed(gains[arms[0]].value)} points"
    return f"{len(arms)} of {len(gains)} losses, from {ends}. The {FIRST} furthest: "


def _points_of(arms: Sequence[Arm], gains: Mapping[Arm, Estimate]) -> str:
    """`SimPO +22.1 points (95 % interval +15.0 to +29.2); DPO +12.0 (+4.9 to +19.1)`: units only at the first."""
    points: list[str] = []
    for arm in arms if len(arms) <= MOST_NAMED else arms[:FIRST]:
        unit, what = ("", "") if points else (" points", "95 % interval ")
        points.append(f"{clean(arm.label)} {_signed(gains[arm].value)}{unit}{_interval(gains[arm], '+.1f', what)}")
    return "; ".join(points)


def _level(selection: Selection) -> str:
    """The start model's pass rate, as the end of a sentence."""
    for arm in selection.arms:
        if arm.is_start and not math.isnan((rate := score_of(selection.frames["scores"], arm, "pass_rate")).value):
            return f"; the start model’s is {100 * rate.value:.1f} %"
    return ""


def _without_judge(selection: Selection) -> list[Finding]:
    scores = selection.frames["scores"]
    accuracies = {arm: score_of(scores, arm, "reward_accuracy") for arm in selection.trained}
    ranked = sorted((a for a in accuracies if not math.isnan(accuracies[a].value)), key=lambda a: -accuracies[a].value)
    if not ranked:
        return [Finding("open", "Nothing to compare", "No judged answers or held-out rewards are shown here.")]
    shares = _few(
        [f"{clean(a.label)} {100 * accuracies[a].value:.1f} %{_interval(accuracies[a], '.1f')}" for a in ranked]
    )
    n = max(accuracies[a].n for a in ranked)
    text = (
        "Answers were not judged beside a start model, so nothing is known about quality. Held-out pairs ranked right"
    )
    return [Finding("open", "No judge", f"{text}: {'; '.join(shares)} (n = {n} pairs).")]


def _gain_p_values(selection: Selection, arms: Sequence[Arm]) -> list[float]:
    """Two-sided p of "no gain": over prompts, and if an arm has several seeds also over seeds; the larger of the two."""
    runs, verdicts = selection.frames["runs"], selection.frames["verdicts"]
    starts = [arm for arm in selection.arms if arm.is_start]
    by_prompt = scores_by_prompt(verdicts, [*starts, *arms])
    crossed = scores_by_seed_and_prompt(verdicts, runs, [*starts, *arms])
    start = next((s.id for s in starts if s.id in by_prompt), None)
    return [
        float(
            np.fmax(
                stats.sign_flip_test(by_prompt[arm.id] - by_prompt[start]),
                stats.crossed_test((crossed[arm.id] - crossed[start]).dropna()),
            )
        )
        if start and arm.id in by_prompt
        else math.nan
        for arm in arms
    ]


# ---------------------------------------------------------------- against each other
def _between(selection: Selection) -> list[Finding]:
    """Which losses differ, by the tests and the correction of the figure `who-beats-whom`."""
    runs, verdicts, arms = selection.frames["runs"], selection.frames["verdicts"], selection.arms
    if verdicts.empty:
        return []
    scores = scores_by_prompt(verdicts, arms)
    pairs = list(combinations([arm for arm in arms if arm.id in scores], 2))
    adjusted = stats.holm(beats_tests(verdicts, runs, pairs))  # the start model's pairs count in the correction
    between = [(pair, p) for pair, p in zip(pairs, adjusted, strict=True) if not any(arm.is_start for arm in pair)]
    if not between:
        return []
    wins: list[tuple[Arm, Arm]] = []  # winner, loser
    for (a, b), p in between:
        if p < 0.05:
            a_wins = float(np.nanmean(stats.outcomes(scores[a.id], scores[b.id]))) > 0.5
            wins.append((a, b) if a_wins else (b, a))
    seeds = max(len(arm.runs) for arm in arms)
    how = f"sign test over {len(scores)} prompts{' and a test over seeds' if seeds > 1 else ''}, Holm’s correction"
    if not wins:
        verb = "The one pair does not differ" if len(between) == 1 else f"None of the {len(between)} pairs differs"
        return [Finding("open", "Between the losses", f"{verb} by more than chance ({how}).")]
    rest = len(between) - len(wins)
    decided = f"Undecided: {rest} of {len(between)} pairs" if rest else "Every pair is decided"
    return [Finding("good", "Between the losses", f"{_who_wins(wins)}. {decided} ({how}).")]


def _who_wins(wins: Sequence[tuple[Arm, Arm]]) -> str:
    """Every pair by name, or for more than eight pairs the losses that win and lose most often."""
    if len(wins) > 8:
        most_wins, most_losses = (_tally(side) for side in zip(*wins, strict=True))
        return f"Most often ahead: {most_wins}; most often behind: {most_losses} (“Who beats whom” shows each pair)"
    beaten: dict[Arm, list[str]] = {}
    for winner, loser in wins:
        beaten.setdefault(winner, []).append(clean(loser.label))
    ranked = sorted(beaten, key=lambda arm: (-len(beaten[arm]), arm.label))
    return "; ".join(f"{clean(arm.label)} beats {listing(beaten[arm])}" for arm in ranked)


def _tally(arms: Iterable[Arm]) -> str:
    """`SimPO in 13 pairs, DPO in 7, …`: the arms that occur most often."""
    counts = Counter(arms)
    ranked = sorted(counts, key=lambda arm: (-counts[arm], arm.label))[:FIRST]
    return ", ".join(
        f"{clean(arm.label)} in {counts[arm]}" + ("" if place else f" pair{'s'[: counts[arm] - 1]}")
        for place, arm in enumerate(ranked)
    )


# ---------------------------------------------------------------- the paper's claims
def _scorecard(claims: pd.DataFrame | None) -> list[Finding]:
    """The number of claims with each verdict, and the first of those that were decided, in the table's order."""
    if claims is None:
        return []
    by_verdict = {
        verdict: [f"“{clean(str(claim))}”" for claim in g["Claim"]] for verdict, g in claims.groupby("Verdict")
    }
    measured = len(claims) - len(by_verdict.get("not measured", []))
    counts = []
    for verdict in ("supported", "contradicted"):
        titles = by_verdict.get(verdict, [])
        first = f" ({'; '.join(titles[:2])}{'; …' if titles[2:] else ''})" if titles else ""
        counts.append(f"{len(titles) or 'none'} {verdict}{first}")
    counts.append(f"{len(by_verdict.get('undecided', [])) or 'none'} undecided")
    text = f"{measured} of {len(claims)} were measured: {', '.join(counts)}."
    return [Finding("note", "The paper’s claims", text)]


# ---------------------------------------------------------------- failures and warnings
def _failures(selection: Selection) -> list[Finding]:
    """One sentence for each loss and reason, with the seeds that it concerns."""
    seeds_of: dict[tuple[str, str, str], list[str]] = {}
    for arm in selection.arms:
        for row in of_arm(selection.frames["runs"], arm).sort_values("seed", kind="stable").to_dict("records"):
            if row["status"] == "finished":
                continue
            reason = "" if row["reason"] is None or pd.isna(row["reason"]) else clean(str(row["reason"]), 400).strip()
            head = "Failed" if row["status"] == "failed" else "Not finished"
            seeds = seeds_of.setdefault((head, clean(arm.label), reason), [])
            seeds += [str(row["seed"])] if len(arm.runs) > 1 else []
    sentences = []
    for (head, label, reason), seeds in seeds_of.items():
        which = f" (seed{'s' if len(seeds) > 1 else ''} {listing(seeds)})" if seeds else ""
        text = f"{label}{which}" + (f": {reason}" if reason else "")
        sentences.append(Finding("bad", head, text if text.endswith(".") else f"{text}."))
    return sentences


def _warnings(health: pd.DataFrame | None) -> list[Finding]:
    if health is None:
        return []
    sentences = [
        f"{clean(str(loss))}: {clean(str(what))}"
        for loss, what in zip(health["Loss"], health["Warnings"], strict=True)
        if what
    ]
    return [Finding("bad", "Watch", ". ".join(_few(sentences)) + ".")] if sentences else []


def both_fell(health: pd.DataFrame | None) -> str:
    """For which losses both log-probabilities fell, and whether the gap still widened; "" if that is not known."""
    if health is None:
        return ""
    moved = [(clean(str(a)), str(b)) for a, b in zip(health["Loss"], health["Both sides"], strict=True) if b]
    if not moved:
        return ""
    fell = [loss for loss, how in moved if how.startswith("both fell")]
    wrong = [loss for loss, how in moved if how.endswith(("no gap", "wrong way"))]
    text = f"Here, on held-out pairs, both fell for {listing(_few(fell)) or 'no loss'}."
    if wrong:
        return text + f" {listing(_few(wrong))} learned no gap between the two: look into it."
    return text + " Every loss widened the gap between the two."


# ---------------------------------------------------------------- facts
def facts(comparable: Comparable) -> str:
    """The number of losses, seeds, pairs and prompts, the judge and the protocol, in one line."""
    runs, frames = comparable.frames["runs"], comparable.frames
    trained = runs[runs["loss"] != "start"]
    parts = [_count(trained["loss"].nunique(), "loss", "losses")]
    variants = len(comparable.every_arm.trained)
    if variants > trained["loss"].nunique():
        parts.append(f"{variants} variants of settings")
    parts.append(_count(trained["seed"].nunique(), "seed", "seeds"))
    pairs = sorted({int(p) for p in trained["pairs"].dropna()})
    if pairs:
        parts.append(f"{'–'.join(show_number(p) for p in dict.fromkeys((pairs[0], pairs[-1])))} training pairs")
    for name, column, one, many in (
        ("heldout", "pair", "held-out pair", "held-out pairs"),
        ("answers", "prompt", "prompt", "prompts"),
    ):
        if len(frames[name]):
            parts.append(_count(frames[name][column].nunique(), one, many))
    if judges := (judges_of(frames["verdicts"]) if len(frames["verdicts"]) else []):
        parts.append(f"judged by {clean(listing(judges))}")
    if comparable.protocol:
        parts.append(f"protocol {comparable.protocol}")
    return " · ".join(parts)


# ---------------------------------------------------------------- words
def _count(number: int, one: str, many: str) -> str:
    return f"{show_number(number)} {one if number == 1 else many}"


def _few(texts: Sequence[str]) -> list[str]:
    """The first few texts, and the number of the others."""
    rest = len(texts) - MOST_NAMED
    return list(texts) if rest <= 1 else [*texts[:MOST_NAMED], f"{rest} more"]


def _signed(value: float) -> str:
    return f"{100 * value:+z.1f}".replace("-", "−")


def _interval(e: Estimate, form: str, what: str = "95 % interval ") -> str:
    if math.isnan(e.low):
        return ""
    low, high = (f"{100 * x:{form}}".replace("-", "−") for x in (e.low, e.high))
    return f" ({what}{low} to {high})"
