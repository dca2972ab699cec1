"""Computes the summary at the top of a report: sentences from the frames, with n and intervals, to be read in a minute."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pobench.reporting.tables import clean, decimals_that_tell, listing, show_number
from pobench.results.arms import Arm, judges_of, score_of
from pobench.results.claims import VERDICTS
from pobench.results.comparable import Comparable, Selection
from pobench.results.contrast import Pair, all_pairs, gains
from pobench.results.crossed import VERDICT_SEEDS
from pobench.results.scores import DISTINCT
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
    comparable: Comparable,
    health: pd.DataFrame | None = None,
    claims: pd.DataFrame | None = None,
    looks: pd.DataFrame | None = None,
    noise: pd.DataFrame | None = None,
) -> list[Finding]:
    """The findings: losses better or worse than the start model, differences between losses, the verdicts on the paper's
    claims, failures, warnings, and the next command.

    health, claims, looks, noise: the tables `training-health`, `claims`, `looked-before` and `variance`, if they were drawn.
    Losses are compared as in the tables,
    each with its setting's own values; failures include every arm.
    """
    home, every_arm = comparable.home, comparable.every_arm
    sentences = [*_gains(home), *_between(home), *scorecard(claims), *_failures(every_arm), *_warnings(health)]
    sentences += [*_sentence("bad", "Looks", looks), *_sentence("note", "Next", noise)]
    if home.left_out:
        sentences.append(Finding("note", "Variants of settings", home.left_out))
    return [*sentences, *_not_judged(every_arm), *_data_order(every_arm)]


def _sentence(tone: str, head: str, table: pd.DataFrame | None) -> list[Finding]:
    """The sentence that a table has for the summary, if any."""
    text = "" if table is None else clean(str(table.attrs.get("summary", "")))
    return [Finding(tone, head, text)] if text else []


def _not_judged(selection: Selection) -> list[Finding]:
    rows = selection.frames.rows("verdicts")
    blank, number = (0, 0) if rows is None else rows.blank("score")
    if not blank:
        return []
    text = f"The judge gave no score for {blank} of {number} answers; they are left out."
    return [Finding("note", "Not judged", text)]


def _data_order(selection: Selection) -> list[Finding]:
    runs = selection.frames["runs"]
    orders = runs[runs["loss"] != "start"].dropna(subset=["order"]).query("order != ''")
    alike = orders.groupby(["seed", "epochs"], dropna=False)  # more epochs are another order by what they are
    if (alike["order"].nunique() == 1).all():
        return []
    text = "Runs with the same seed saw pairs in different orders, which may cause part of any difference."
    return [Finding("bad", "Data order", text)]


# ---------------------------------------------------------------- against the start model
def _gains(selection: Selection) -> list[Finding]:
    """Better and worse than the start model, by `gains`; what has too few seeds for a verdict stands apart."""
    found = gains(*_judged(selection), selection.arms)
    if not found:
        return _without_judge(selection)
    decided = [pair for pair in found if pair.gap.decides]
    up = [pair for pair in decided if pair.differs and pair.gap.estimate.value > 0]
    down = [pair for pair in reversed(decided) if pair.differs and pair.gap.estimate.value < 0]
    open_ = [pair for pair in decided if not pair.differs]
    groups = [
        ("good", "Better than the start model", up, _correction(decided)),
        ("bad", "Worse than the start model", down, _correction(decided)),
        ("open", "Not told apart from the start model", open_, _least_seen(open_)),
        ("open", "No verdict on the start model", [p for p in found if not p.gap.decides], _too_few_seeds(found)),
    ]
    n = max(pair.gap.estimate.n for pair in found)
    basis = f" Pass rates on n = {n} prompts{_level(selection)}."
    sentences: list[Finding] = []
    for tone, head, pairs, rest in groups:
        if pairs:
            text = f"{_how_many(pairs, found)}{_points_of(pairs)}.{'' if sentences else basis}{rest}"
            sentences.append(Finding(tone, head, text))
    return sentences


def _judged(selection: Selection) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame | None]:
    return selection.frames["runs"], selection.frames["verdicts"], selection.frames.get("answers")


def _correction(decided: Sequence[Pair]) -> str:
    return f" Holm’s correction for {len(decided)} comparisons is made." if len(decided) > 1 else ""


def _least_seen(open_: Sequence[Pair]) -> str:
    """How large a gain of these would have been seen, in four of five repetitions; with several, the median."""
    needed = [pair.gap.crossed.detectable() for pair in open_ if pair.gap.crossed is not None]
    known = [points for points in needed if not math.isnan(points)]
    return f" These runs would show a gain of {np.median(known):.0f} points four times in five." if known else ""


def _too_few_seeds(found: Sequence[Pair]) -> str:
    """Why the pairs without a verdict have none."""
    seeds = sorted({pair.gap.seeds for pair in found if not pair.gap.decides})
    if seeds == [1]:
        return " One run of each: the intervals cover other prompts, not the luck of a training run. " + _ASK
    return f" Fewer than {VERDICT_SEEDS} seeds: their intervals may be too narrow. {_ASK}"


_ASK = f"A verdict needs {VERDICT_SEEDS} seeds (`--seeds 42,43,44`)."


def _how_many(pairs: Sequence[Pair], found: Sequence[Pair]) -> str:
    """The beginning of a list that names only the first of many: their number and range."""
    if len(pairs) <= MOST_NAMED:
        return ""
    ends = sorted(pair.gap.estimate.value for pair in pairs)
    return (
        f"{len(pairs)} of {len(found)} losses, from {_signed(ends[0])} to {_signed(ends[-1])} points. "
        f"The {FIRST} furthest: "
    )


def _points_of(pairs: Sequence[Pair]) -> str:
    """`SimPO +22.1 points (95 % interval +15.0 to +29.2); DPO +12.0 (+4.9 to +19.1)`: units only at the first."""
    points: list[str] = []
    for pair in pairs if len(pairs) <= MOST_NAMED else pairs[:FIRST]:
        unit, what = ("", "") if points else (" points", "95 % interval ")
        gap = pair.gap.estimate
        points.append(f"{clean(pair.ours.label)} {_signed(gap.value)}{unit}{_interval(gap, '+', what)}")
    return "; ".join(points)


def _level(selection: Selection) -> str:
    """The start model's pass rate, as the end of a sentence."""
    for arm in selection.arms:
        if arm.is_start and not math.isnan((rate := score_of(selection.frames["scores"], arm, "pass_rate")).value):
            return f"; the start model’s is {100 * rate.value:.1f} %"
    return ""


def _without_judge(selection: Selection) -> list[Finding]:
    scores = selection.frames["scores"]
    accuracies = {arm: score_of(scores, arm, "reward_accuracy").scaled(100) for arm in selection.trained}
    ranked = sorted((a for a in accuracies if not math.isnan(accuracies[a].value)), key=lambda a: -accuracies[a].value)
    if not ranked:
        return [Finding("open", "Nothing to compare", "No judged answers or held-out rewards are shown here.")]
    shares = _few([f"{clean(a.label)} {accuracies[a].value:.1f} %{_interval(accuracies[a], '')}" for a in ranked])
    n = max(accuracies[a].n for a in ranked)
    text = (
        "Answers were not judged beside a start model, so nothing is known about quality. Held-out pairs ranked right"
    )
    return [Finding("open", "No judge", f"{text}: {'; '.join(shares)} (n = {n} pairs).")]


# ---------------------------------------------------------------- against each other
def _between(selection: Selection) -> list[Finding]:
    """Which losses differ, by the pairs of the figure `who-beats-whom`."""
    pairs = all_pairs(*_judged(selection), selection.arms, selection.frames.get("comparisons"))
    between = [pair for pair in pairs if not (pair.ours.is_start or pair.theirs.is_start)]
    if not between:
        return []
    lack = _without_verdict(between)
    if not any(pair.decides for pair in between):
        return [Finding("open", "Between the losses", f"No verdict. {lack}")]
    n = max(pair.gap.estimate.n for pair in between)
    how = f"mean scores on {n} prompts, for other prompts and other seeds, Holm’s correction"
    wins = [pair.in_order for pair in between if pair.differs]
    if not wins:
        verb = "The one pair does not differ" if len(between) == 1 else f"None of the {len(between)} pairs differs"
        return [Finding("open", "Between the losses", f"{verb} by more than chance ({how}). {lack}".strip())]
    rest = len(between) - len(wins)
    decided = f"Undecided: {rest} of {len(between)} pairs" if rest else "Every pair is decided"
    return [Finding("good", "Between the losses", f"{_who_wins(wins)}. {decided} ({how}). {lack}".strip())]


def _without_verdict(pairs: Sequence[Pair]) -> str:
    """Why some pairs have none: not tuned alike, too few seeds."""
    unlike = sum(not pair.comparable for pair in pairs)
    few = sum(pair.comparable and not pair.gap.decides for pair in pairs)
    said = []
    if unlike:
        said.append(f"{_pairs(unlike, len(pairs))}not tuned alike (“Values” in the table says how).")
    if few:
        said.append(f"{_pairs(few, len(pairs))}without the {VERDICT_SEEDS} seeds that a verdict needs.")
    return " ".join(said)


def _pairs(number: int, of: int) -> str:
    return (
        f"{number} of {of} pair{'' if of == 1 else 's'}: "
        if number < of
        else "Every pair: "
        if of > 1
        else "The pair: "
    )


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
def scorecard(claims: pd.DataFrame | None) -> list[Finding]:
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
    counts += [f"{len(by_verdict[v])} {v}" for v in VERDICTS[2:-1] if v in by_verdict]
    text = f"{measured} of {len(claims)} were measured: {', '.join(counts)}."
    return [Finding("note", "The paper’s claims", text)]


# ---------------------------------------------------------------- failures and warnings
MOST_NAMED = 3  # losses in one sentence


def _failures(selection: Selection) -> list[Finding]:
    """One sentence for each reason, with the losses and seeds that it concerns; of many, the first `MOST_NAMED`."""
    seeds_of: dict[tuple[str, str, str], list[str]] = {}
    runs = selection.frames["runs"]
    left = {row["run"]: row for row in runs[runs["status"] != "finished"].to_dict("records")}
    for arm in selection.arms if left else ():
        for row in sorted((left[run] for run in arm.runs if run in left), key=lambda row: int(row["seed"])):
            reason = "" if row["reason"] is None or pd.isna(row["reason"]) else clean(str(row["reason"]), 400).strip()
            head = "Failed" if row["status"] == "failed" else "Not finished"
            seeds = seeds_of.setdefault((head, clean(arm.label), reason), [])
            seeds += [str(row["seed"])] if len(arm.runs) > 1 else []
    alike: dict[tuple[str, str], list[str]] = {}
    for (head, label, reason), seeds in seeds_of.items():
        which = f" (seed{'s' if len(seeds) > 1 else ''} {listing(seeds)})" if seeds else ""
        alike.setdefault((head, reason), []).append(f"{label}{which}")
    sentences = []
    for (head, reason), labels in alike.items():
        further = len(labels) - MOST_NAMED
        text = "; ".join(labels[:MOST_NAMED]) + (f" and {further} more" if further > 0 else "")
        text += f": {reason}" if reason else ""
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
    read = trained["trained_on"].fillna("").replace("", "pairs")
    for unit in ("pairs", "lists", "answers"):  # of pairs, also those that losses of lists or of answers read
        of_unit = trained[read.str.startswith(unit)]
        if counts := sorted({int(count) for count in of_unit["pairs"].dropna()}):
            few_many = dict.fromkeys((counts[0], counts[-1]))
            parts.append(f"{'–'.join(map(show_number, few_many))} training {unit}")
    for name, column, one, many in (
        ("heldout", "pair", "held-out pair", "held-out pairs"),
        ("answers", "prompt", "prompt", "prompts"),
    ):
        if rows := frames.rows(name):
            parts.append(_count(rows.distinct(*DISTINCT[name][0])[column].nunique(), one, many))
    if judges := (judges_of(rows) if (rows := frames.rows("verdicts")) else []):
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
    return f"{value:+z.1f}".replace("-", "−")


def _interval(e: Estimate, form: str, what: str = "95 % interval ") -> str:
    if math.isnan(e.low):
        return ""
    decimals = decimals_that_tell(e, (0.0,), 1)
    low, high = (f"{x:{form}.{decimals}f}".replace("-", "−") for x in (e.low, e.high))
    return f" ({what}{low} to {high})"
