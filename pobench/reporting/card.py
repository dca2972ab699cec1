"""The card on a report's first screen: the answer, what it rests on, and the next command that would decide more.

It is computed once from the frames and shown in three ways: by the page, in `summary.md`, and in the terminal after a run.
Each loss stands with its setting's own values. Every number comes with its n and its 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pobench.printing import size
from pobench.reporting.tables import clean, decimals_that_tell, listing
from pobench.results import health, stats
from pobench.results.arms import Arm, of_arm, score_of
from pobench.results.comparable import Comparable, Selection
from pobench.results.contrast import Pair, all_pairs, gains
from pobench.results.crossed import LEVEL, VERDICT_SEEDS
from pobench.results.few_runs import crowded, memory, timed_on, working_seconds
from pobench.results.metrics import METRICS
from pobench.results.next_command import next_steps
from pobench.types import Estimate

MOST_NAMED = 5  # losses in one sentence with their numbers; of more, it names the FIRST, and the tables have all
FIRST = 3
MOST_AT_RISK = 2  # losses whose alarms have their numbers
MOST_AT_THE_TOP = 8  # losses that the answer names


@dataclass
class Finding:
    """One sentence of the card or of the summary below it; tone: "good" | "bad" | "open" | "note"."""

    tone: str
    head: str
    text: str


@dataclass
class Card:
    """answer: one or two sentences. lines: what it rests on, in the order in which they are read."""

    answer: str
    lines: list[Finding]


def make_card(comparable: Comparable) -> Card:
    """The card of the runs that may be compared."""
    home = comparable.home
    frames = home.frames
    judged = frames["runs"], frames["verdicts"], frames.get("answers")
    over_start = gains(*judged, home.arms)
    every_pair = all_pairs(*judged, home.arms, frames.get("comparisons"))
    between = [pair for pair in every_pair if not (pair.ours.is_start or pair.theirs.is_start)]
    lines = _gains(home, over_start) if over_start else _without_judge(home)
    lines += [*_worse(between), *_cost(home), *_risks(home), *_how_sure(between)]
    if every_pair:
        steps = next_steps(*judged, frames.get("comparisons"))
        lines += [Finding("note", "Then" if place else "Next", clean(step)) for place, step in enumerate(steps)]
    return Card(_answer(home, over_start, between), lines)


# ---------------------------------------------------------------- the answer
def _answer(selection: Selection, over_start: Sequence[Pair], between: Sequence[Pair]) -> str:
    if not between:
        return (
            _answer_of_one(over_start) if len(over_start) == 1 else "Nothing is known of the quality of these losses."
        )
    tested = _tested(between)
    if not tested:
        unlike = sum(not pair.comparable for pair in between)
        if unlike == len(between):
            return "No verdict between these losses: they were not tuned alike."
        one = all(len(arm.runs) == 1 for pair in between for arm in (pair.ours, pair.theirs))
        seeds = "with one seed a loss, the luck of training is not known" if one else f"it needs {VERDICT_SEEDS} seeds"
        return f"No verdict between these losses yet: {seeds}."
    beaten = {pair.in_order[1] for pair in between if pair.differs}
    top = [arm for arm in tested if arm not in beaten] or tested
    rest = [arm for arm in _arms(between) if arm not in tested]
    sentences = [_top(top, tested, between), _top_over_start(top, over_start)]
    sentences += [f"No verdict on {listing(few([clean(arm.label) for arm in rest]))} yet."] if rest else []
    return " ".join(filter(None, sentences))


def _answer_of_one(over_start: Sequence[Pair]) -> str:
    (pair,) = over_start
    name = clean(pair.ours.label)
    if not pair.gap.decides:
        return f"No verdict on {name} yet: {'with one seed, ' if pair.gap.seeds == 1 else ''}the luck of training is not known."
    if not pair.differs:
        return f"{name} cannot be told apart from the start model."
    return f"{name} is {'better' if pair.gap.estimate.value > 0 else 'worse'} than the start model."


def _top(top: Sequence[Arm], tested: Sequence[Arm], between: Sequence[Pair]) -> str:
    """Who leads: the losses that no other one beats."""
    names = [clean(arm.label) for arm in top]
    if len(top) == 1:
        beats = {pair.in_order[1] for pair in between if pair.differs and pair.in_order[0] == top[0]}
        others = len(tested) - 1
        if len(beats) == others:
            loser = clean(next(iter(beats)).label)
            return f"{names[0]} is better than {loser if others == 1 else f'each of the {others} other losses'}."
        return f"{names[0]} is beaten by no other loss, and beats {len(beats)} of {others}."
    if len(names) > MOST_AT_THE_TOP:
        names = [*names[:MOST_AT_THE_TOP], f"{len(names) - MOST_AT_THE_TOP} more"]
    count = f"{len(top)} of {len(tested)} losses cannot be told apart at the top: " if len(top) < len(tested) else ""
    return f"{count}{listing(names)}." if count else f"{listing(names)} cannot be told apart."


def _top_over_start(top: Sequence[Arm], over_start: Sequence[Pair]) -> str:
    """How those at the top stand beside the start model."""
    better = [pair for pair in over_start if pair.ours in top and pair.differs and pair.gap.estimate.value > 0]
    if not over_start:
        return ""
    if len(better) == len(top):
        subject = "It" if len(top) == 1 else "Both" if len(top) == 2 else "All"
        return f"{subject} {'is' if len(top) == 1 else 'are'} better than the start model."
    whose = f"Only {len(better)} of them" if better else "None of them" if len(top) > 1 else "It"
    verb = "are" if len(better) > 1 else "is" if better or len(top) > 1 else "is not"
    return f"{whose} {verb} shown to be better than the start model."


def _arms(between: Iterable[Pair]) -> list[Arm]:
    """From the best to the worst."""
    return list(dict.fromkeys(arm for pair in between for arm in (pair.ours, pair.theirs)))


def _tested(between: Sequence[Pair]) -> list[Arm]:
    """The losses with a pair on which a verdict is possible."""
    decides = {arm for pair in between if pair.decides for arm in (pair.ours, pair.theirs)}
    return [arm for arm in _arms(between) if arm in decides]


# ---------------------------------------------------------------- against each other
def _worse(between: Sequence[Pair]) -> list[Finding]:
    """Each loss that another one beats, with the distance to the best that does."""
    behind: dict[Arm, Pair] = {}
    for pair in between:
        if pair.differs:
            behind.setdefault(pair.in_order[1], pair)
    if not behind:
        return []
    shown = sorted(behind.items(), key=lambda item: -abs(item[1].gap.estimate.value))
    texts: list[str] = []
    for loser, pair in shown[: FIRST + (len(shown) == FIRST + 1)]:
        gap = _negative(pair.gap.estimate)
        basis = f", n = {gap.n} prompts" if not texts else ""
        points = " points" if not texts else ""
        text = (
            f"{clean(loser.label)} {signed(gap.value)}{points}{interval(gap, '+', '' if texts else INTERVAL)} beside "
        )
        texts.append(f"{text}{clean(pair.in_order[0].label)}{basis}")
    rest = len(shown) - len(texts)
    more = f" {rest} more are beaten by one loss or several (“Who beats whom”)." if rest else ""
    return [Finding("bad", "Clearly worse", f"{'; '.join(texts)}.{more}")]


def _negative(e: Estimate) -> Estimate:
    """A distance as seen from the loser."""
    return e if e.value < 0 else Estimate(-e.value, -e.high, -e.low, e.n)


def _how_sure(between: Sequence[Pair]) -> list[Finding]:
    """What the comparisons of losses rest on, what they could show, and why some pairs have no verdict."""
    if not between:
        return []
    n = max(pair.gap.estimate.n for pair in between)
    decided = [pair for pair in between if pair.decides]
    lack = _without_verdict(between)
    if not decided:
        basis = f"Intervals are paired on n = {n} prompts and cover other prompts"
        return [Finding("open", "How sure", f"{basis}, not the luck of a training run. {lack}".strip())]
    seeds = sorted({pair.gap.seeds for pair in decided})
    holm = f"Holm’s correction for {len(decided)} pairs" if len(decided) > 1 else "one test"
    basis = f"n = {n} prompts, {' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))} seeds"
    basis += f"; 95 % intervals for other prompts and other seeds, {holm}."
    if len(decided) == 1:
        differ = "The pair differs" if decided[0].differs else "The one pair does not differ"
    else:
        count = sum(pair.differs for pair in decided)
        differ = f"{count} of {len(decided)} pairs differ" if count else f"None of the {len(decided)} pairs differs"
    text = f"{basis} {differ} by more than chance.{_seen(decided)} {lack}"
    return [Finding("note", "How sure", text.strip())]


def _seen(decided: Sequence[Pair]) -> str:
    """How large a difference these runs would show, after Holm's correction; of several pairs, the median."""
    open_ = [pair for pair in decided if not pair.differs]
    level = 1 - (1 - LEVEL) / max(len(open_), 1)
    needed = [pair.tested.detectable(level) for pair in open_ if pair.tested is not None]
    known = [points for points in needed if not math.isnan(points)]
    return f" A difference of {np.median(known):.0f} points would be seen four times in five." if known else ""


def _without_verdict(pairs: Sequence[Pair]) -> str:
    """Why some pairs have none: not tuned alike, too few seeds."""
    unlike = sum(not pair.comparable for pair in pairs)
    few = sum(pair.comparable and not pair.gap.decides for pair in pairs)
    said = []
    if unlike:
        said.append(f"{_pairs(unlike, len(pairs))}not tuned alike (“Values” in the table says how).")
    if few:
        said.append(f"{_pairs(few, len(pairs))}fewer than the {VERDICT_SEEDS} seeds that a verdict needs.")
    return " ".join(said)


def _pairs(number: int, of: int) -> str:
    return (
        f"{number} of {of} pair{'' if of == 1 else 's'}: "
        if number < of
        else "Every pair: "
        if of > 1
        else "The pair: "
    )


# ---------------------------------------------------------------- against the start model
def _gains(selection: Selection, found: Sequence[Pair]) -> list[Finding]:
    """Better and worse than the start model; what has too few seeds for a verdict stands apart. found: by `gains`."""
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
        f"{len(pairs)} of {len(found)} losses, from {signed(ends[0])} to {signed(ends[-1])} points. "
        f"The {FIRST} furthest: "
    )


def _points_of(pairs: Sequence[Pair]) -> str:
    """`SimPO +22.1 points (95 % interval +15.0 to +29.2); DPO +12.0 (+4.9 to +19.1)`: units only at the first."""
    points: list[str] = []
    for pair in pairs if len(pairs) <= MOST_NAMED else pairs[:FIRST]:
        unit, what = ("", "") if points else (" points", INTERVAL)
        gap = pair.gap.estimate
        points.append(f"{clean(pair.ours.label)} {signed(gap.value)}{unit}{interval(gap, '+', what)}")
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
    shares = few([f"{clean(a.label)} {accuracies[a].value:.1f} %{interval(accuracies[a], '')}" for a in ranked])
    n = max(accuracies[a].n for a in ranked)
    text = (
        "Answers were not judged beside a start model, so nothing is known about quality. Held-out pairs ranked right"
    )
    return [Finding("open", "No judge", f"{text}: {'; '.join(shares)} (n = {n} pairs).")]


# ---------------------------------------------------------------- cost and risks
def _cost(selection: Selection) -> list[Finding]:
    """The training time of a run, of the losses that take least and most, and the memory of all. Runs that had unlike parts of
    a machine stand apart."""
    runs = selection.frames["runs"]
    finished = runs[(runs["status"] == "finished") & (runs["loss"] != "start")]
    parts = timed_on(finished)
    counts = parts.value_counts()
    times = {
        part: _times(selection, finished[parts == part]) for part in sorted(counts.index, key=lambda p: (-counts[p], p))
    }
    known = {part: text for part, text in times.items() if text}
    if not known:
        return []
    if len(known) == 1:
        ((part, text),) = known.items()
        says = f"Training one run{f' {clean(part)}' if part else ''}: {text}"
    else:
        apart = few([f"{clean(part) or 'on what is not stored'}, {text}" for part, text in known.items()])
        says = f"Training one run: {'; '.join(apart)}. Times on unlike parts of a machine are not compared"
    most = memory(finished).max()
    says += f"; at most {size(most)} of memory." if most > 0 else "."
    beside = " Time in which other work had the processor is not counted." if crowded(finished).any() else ""
    return [Finding("note", "Cost", says + beside)]


def _times(selection: Selection, finished: pd.DataFrame) -> str:
    """`DPO 1.5 min (…) to KTO 1.9 min (…)`: the losses whose runs took least and most; "" where no time is stored."""
    minutes = {arm: stats.student(working_seconds(of_arm(finished, arm)) / 60) for arm in selection.trained}
    known = sorted((arm for arm in minutes if minutes[arm].n), key=lambda arm: minutes[arm].value)
    ends = dict.fromkeys([*known[:1], *known[-1:]])
    return " to ".join(f"{clean(arm.label)} {_minutes(minutes[arm], place == 0)}" for place, arm in enumerate(ends))


def _minutes(e: Estimate, first: bool) -> str:
    """In seconds below a minute."""
    short = e.value < 1
    shown = e.scaled(60) if short else e
    value, low, high = (f"{end:.{int(shown.value < 10)}f}" for end in (shown.value, shown.low, shown.high))
    basis = f"n = {e.n} run{'s'[: e.n != 1]}"
    ends = "" if math.isnan(e.low) else f"{INTERVAL if first else ''}{low} to {high}, "
    return f"{value} {'s' if short else 'min'} ({ends}{basis})"


def _risks(selection: Selection) -> list[Finding]:
    """Signs of collapse, each with its number beside the start model's, by the limits of `pobench.results.health`."""
    scores = selection.frames["scores"]
    estimates = {arm: {m: score_of(scores, arm, m) for m in health.METRICS} for arm in selection.arms}
    start = next((own for arm, own in estimates.items() if arm.is_start), None)
    measured = [arm for arm in selection.trained if estimates[arm]["length_tokens"].n]
    if start is None or not measured:
        return []
    found = {arm: health.alarms(estimates[arm], start) for arm in measured}
    alarming = sorted((arm for arm in measured if found[arm]), key=lambda arm: -len(found[arm]))
    texts = [
        f"{clean(arm.label)}: {', '.join(_alarm(a, estimates[arm][a.metric], start[a.metric]) for a in found[arm])}"
        for arm in alarming[:MOST_AT_RISK]
    ]
    if len(alarming) > MOST_AT_RISK:
        texts.append(f"Also {listing(few([clean(arm.label) for arm in alarming[MOST_AT_RISK:]]))}")
    n = max(estimates[arm]["length_tokens"].n for arm in measured)
    if not texts:
        text = (
            "Length, repetition, variety, cut-off answers and the winners’ log-probability stay near the start model’s"
        )
        return [Finding("note", "Risks", f"{text} (n = {n} prompts; limits under “Health of training and answers”).")]
    return [Finding("bad", "Risks", f"{'. '.join(texts)} (n = {n} prompts; “Health of training and answers”).")]


def _alarm(alarm: health.Alarm, own: Estimate, start: Estimate) -> str:
    """`answers 1.7 times as long (39.8 [35.1, 44.5] tokens, start 23.7)`."""
    metric = METRICS[alarm.metric]
    if alarm.metric == "chosen_logp_shift":  # the phrase has the number, and the start model's is 0
        return (
            f"{alarm.words} [{metric.show(own.low)}, {metric.show(own.high)}]"
            if not math.isnan(own.low)
            else alarm.words
        )
    ends = "" if math.isnan(own.low) else f" [{metric.show(own.low)}, {metric.show(own.high)}]"
    return f"{alarm.words} ({metric.show(own.value)}{ends} {metric.unit}, start {metric.show(start.value)})"


# ---------------------------------------------------------------- words
INTERVAL = "95 % interval "


def few(texts: Sequence[str]) -> list[str]:
    """The first few texts, and the number of the others."""
    rest = len(texts) - FIRST
    return list(texts) if rest <= 1 else [*texts[:FIRST], f"{rest} more"]


def signed(value: float) -> str:
    """`+3.1`, `−0.4`."""
    return f"{value:+z.1f}".replace("-", "−")


def interval(e: Estimate, form: str, what: str = INTERVAL) -> str:
    """` (95 % interval +1.2 to +3.4)`, with as many digits as tell whether an end is 0; "" where there is none."""
    if math.isnan(e.low):
        return ""
    decimals = decimals_that_tell(e, (0.0,), 1)
    low, high = (f"{x:{form}.{decimals}f}".replace("-", "−") for x in (e.low, e.high))
    return f" ({what}{low} to {high})"
