"""All metrics: each with its name, direction, unit and definition beside the few lines that compute it.

They turn the frames of one run (or of one loss's runs with several seeds) and of its start model into the rows of
`scores.json`. Prompts and pairs are the clusters of every interval; see `pobench.results.stats`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from pobench.columns import FRAMES
from pobench.files import nan_as_null
from pobench.results import stats
from pobench.results.arms import arms_of, main_first
from pobench.results.groups import prompts_of
from pobench.results.stats import Floats
from pobench.results.vectors import Names, Vectors, asked_in, groups_of_pairs, groups_of_prompts, in_memory, table_of
from pobench.types import Estimate

Better = Literal["higher", "lower", ""]
Frames = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Metric:
    """The description of a metric, and the function that computes it. definition: the text that the report prints."""

    name: str
    title: str
    better: Better
    unit: str  # of the printed number
    scale: float  # printed number = stored value × scale
    format: str  # of the printed number
    definition: str
    function: Callable[[Evidence], Estimate] = field(repr=False)
    judged: bool  # by a judge: with several judges, one number each
    start: bool  # makes sense for the start model itself

    def show(self, value: float) -> str:
        """The number as a table prints it: `"52.3"`; nan is a dash."""
        return "–" if math.isnan(value) else f"{value * self.scale:{self.format}}".replace("-", "−")


METRICS: dict[str, Metric] = {}


def _metric(
    name: str,
    title: str,
    better: Better,
    unit: str,
    format: str,
    *,
    scale: float = 1.0,
    judged: bool = False,
    start: bool = True,
) -> Callable[[Callable[[Evidence], Estimate]], Callable[[Evidence], Estimate]]:
    """The docstring of the decorated function is the metric's definition."""

    def declare(function: Callable[[Evidence], Estimate]) -> Callable[[Evidence], Estimate]:
        definition = " ".join((function.__doc__ or "").split())
        METRICS[name] = Metric(name, title, better, unit, scale, format, definition, function, judged, start)
        return function

    return declare


def metric(name: str) -> Metric | None:
    """The declaration of `name`; `pass_rate@gpt-4` is the pass rate of the judge gpt-4. None if nothing is declared."""
    base, _, judge = name.partition("@")
    plain = METRICS.get(base)
    return replace(plain, name=name, title=f"{plain.title} ({judge})") if plain and judge else plain


# ---------------------------------------------------------------- what the metrics read
@dataclass
class Evidence:
    """The vectors of one run, or of one loss's runs, from which metrics are computed, with one judge's verdicts. start: the
    start model's."""

    runs: Sequence[Vectors]
    judge: str = ""
    start: Evidence | None = None
    seed: int = 0

    def pairs(self, name: str, bounds: stats.Bounds | None = None) -> Estimate:
        """The mean over held-out pairs."""
        own = [(v.names("pair"), v.numbers("pair", name)) for v in self.runs if "pair" in v]
        return self._mean(own, groups_of_pairs, bounds)

    def prompts(self, name: str, bounds: stats.Bounds | None = None) -> Estimate:
        """The mean over prompts, which may come in groups, of the mean over their answers."""
        own = [(v.names("prompt"), v.numbers("prompt", name)) for v in self.runs if "prompt" in v]
        return self._mean(own, self._groups, bounds)

    def verdicts(self, name: str, bounds: stats.Bounds | None = None) -> Estimate:
        """The same of the judge's verdicts."""
        return self._mean(self._judged(name), self._groups, bounds)

    def beside_start(self, compare: Callable[[Floats, Floats], Floats], bounds: stats.Bounds) -> Estimate:
        """The mean of a comparison with the start model's score, over the prompts that both have a score for."""
        assert self.start is not None
        theirs = self.start.score_of_prompts
        own = [
            (names, compare(score, theirs.reindex(names.array.astype(object)).to_numpy()))
            for names, score in self._judged("score")
        ]
        return self._mean(own, self._groups, bounds)

    @cached_property
    def score_of_prompts(self) -> pd.Series:
        """prompt → mean score, over samples and then over runs."""
        parts = [pd.Series(score, names.array.astype(object)).dropna() for names, score in self._judged("score")]
        return pd.concat(parts).groupby(level=0).mean() if parts else pd.Series(dtype=float)

    @property
    def compares(self) -> bool:
        """Whether the judge set answers beside others."""
        return any(v.compares(self.judge) for v in self.runs)

    def _judged(self, name: str) -> list[tuple[Names, Floats]]:
        units = [(v, unit) for v in self.runs if (unit := v.judged_by(self.judge)) is not None]
        return [(v.names(unit), v.numbers(unit, name)) for v, unit in units]

    def _groups(self, names: Names) -> Any:
        return groups_of_prompts(names, asked_in(self.runs))

    def _mean(
        self, columns: Sequence[tuple[Names, Floats]], groups: Callable[[Names], Any], bounds: stats.Bounds | None
    ) -> Estimate:
        table, group = table_of(columns, groups)
        return stats.mean_of_table(table, group, bounds=bounds, seed=self.seed)


# ---------------------------------------------------------------- quality, by a judge
@_metric("pass_rate", "Pass rate", "higher", "%", ".1f", scale=100, judged=True)
def pass_rate(e: Evidence) -> Estimate:
    """Mean score of the judge, in [0, 1]: over the samples of a prompt, then over prompts. For a checkable demand it is
    the share of answers that meet it. A judge that compares two answers gives none."""
    return Estimate.missing() if e.compares else e.verdicts("score", stats.UNIT)


@_metric("grade", "Graded score", "higher", "%", ".1f", scale=100, judged=True)
def grade(e: Evidence) -> Estimate:
    """Mean grade of a judge that grades beside pass or fail, in [0, 1]: over the samples of a prompt, then over prompts.
    For an instruction with several demands it is the share of demands met."""
    return e.verdicts("grade", stats.UNIT)


@_metric("pass_rate_gain", "Gain over start", "higher", "points", "+.1f", scale=100, judged=True, start=False)
def pass_rate_gain(e: Evidence) -> Estimate:
    """Pass rate minus the start model's, prompt by prompt. Zero inside the interval: no gain is shown. Of a judge that
    compares: its probability that the answer is better than the start model's, minus a half."""
    return e.beside_start(np.subtract, stats.SIGNED)


@_metric("win_rate", "Wins over start", "higher", "%", ".1f", scale=100, judged=True, start=False)
def win_rate(e: Evidence) -> Estimate:
    """Share of prompts whose mean score exceeds the start model's on the same prompt; a tie counts half. 50 % is no
    change."""
    return e.beside_start(stats.outcomes, stats.UNIT)


@_metric("position_flips", "Position flips", "lower", "%", ".1f", scale=100, judged=True, start=False)
def position_flips(e: Evidence) -> Estimate:
    """Share of comparisons with the start model's answer in which the judge names the other answer when their order is
    swapped. There the position decides, and the mean of both orders is close to even."""
    return e.verdicts("flipped", stats.UNIT)


@_metric("longer_wins", "Longer than start", "", "%", ".1f", scale=100, judged=True, start=False)
def longer_wins(e: Evidence) -> Estimate:
    """Share of the same comparisons that the longer answer would win, in characters; a tie counts half. A judge
    whose wins are close to it may be judging length."""
    return e.verdicts("longer", stats.UNIT)


# ---------------------------------------------------------------- health of the answers
@_metric("length_tokens", "Length", "", "tokens", ".1f")
def length_tokens(e: Evidence) -> Estimate:
    """Tokens of an answer, its end-of-turn token included: mean over a prompt's samples, then over prompts."""
    return e.prompts("tokens")


@_metric("length_words", "Length in words", "", "words", ".0f")
def length_words(e: Evidence) -> Estimate:
    """Words of an answer (runs of non-blank characters): mean over a prompt's samples, then over prompts."""
    return e.prompts("words")


@_metric("repetition", "Repetition", "lower", "%", ".1f", scale=100)
def repetition(e: Evidence) -> Estimate:
    """Share of an answer's 4-grams that already stood earlier in the same answer: 1 − distinct 4-grams / 4-grams, on
    case-folded words; mean over a prompt's samples, then over prompts. Answers of fewer than four words have none and
    do not count."""
    return e.prompts("repeated", stats.UNIT)


@_metric("distinct_2", "Distinct bigrams", "higher", "%", ".1f", scale=100)
def distinct_2(e: Evidence) -> Estimate:
    """Distinct bigrams of case-folded words / bigrams, over all answers of one run to one prompt together; mean over
    prompts. It falls when samples resemble each other, and also with length: compare at equal numbers of samples."""
    return e.prompts("distinct_2", stats.UNIT)


@_metric("unfinished", "Unfinished", "lower", "%", ".1f", scale=100)
def unfinished(e: Evidence) -> Estimate:
    """Share of answers cut off at the token limit before the model ended them."""
    return e.prompts("unfinished", stats.UNIT)


# ---------------------------------------------------------------- held-out pairs
@_metric("reward_accuracy", "Reward accuracy", "higher", "%", ".1f", scale=100, start=False)
def reward_accuracy(e: Evidence) -> Estimate:
    """Share of held-out pairs whose chosen answer has the higher reward, by the loss's own reward; a tie counts
    half."""
    return e.pairs("accuracy", stats.UNIT)


@_metric("margin", "Reward margin", "", "own unit", ".3g", start=False)
def margin(e: Evidence) -> Estimate:
    """Chosen minus rejected reward, mean over held-out pairs, in the loss's own unit: not comparable between losses."""
    return e.pairs("margin")


@_metric("kl_winners", "KL on winners", "", "nats/token", ".3f", start=False)
def kl_winners(e: Evidence) -> Estimate:
    """Estimate of KL(reference ‖ policy) on held-out winners: (reference − policy log-probability of the chosen answer)
    per token, mean over pairs. Winners are no samples of the reference, so it may fall below zero."""
    return e.pairs("kl")


@_metric("chosen_logp_per_token", "Chosen log-prob", "", "nats/token", ".3f")
def chosen_logp_per_token(e: Evidence) -> Estimate:
    """Log-probability of the chosen answer per token, mean over held-out pairs."""
    return e.pairs("chosen")


@_metric("rejected_logp_per_token", "Rejected log-prob", "", "nats/token", ".3f")
def rejected_logp_per_token(e: Evidence) -> Estimate:
    """Log-probability of the rejected answer per token, mean over held-out pairs."""
    return e.pairs("rejected")


@_metric("chosen_logp_shift", "Chosen shift", "", "nats/token", "+.3f", start=False)
def chosen_logp_shift(e: Evidence) -> Estimate:
    """Policy minus reference log-probability of the chosen answer per token, mean over held-out pairs: what training
    did to the winners (the negative of the KL on winners)."""
    return e.pairs("chosen_shift")


@_metric("rejected_logp_shift", "Rejected shift", "", "nats/token", "+.3f", start=False)
def rejected_logp_shift(e: Evidence) -> Estimate:
    """Policy minus reference log-probability of the rejected answer per token, mean over held-out pairs: what training
    did to the losers."""
    return e.pairs("rejected_shift")


@_metric("length_correlation", "ρ(log-prob, length)", "", "Spearman’s ρ", ".2f")
def length_correlation(e: Evidence) -> Estimate:
    """Spearman’s rank correlation between the log-probability per token of the held-out chosen answers and their length
    in tokens. Far above the start model’s: the loss has learned to favour length."""
    runs = [v for v in e.runs if "pair" in v]
    if not runs:
        return Estimate.missing()
    likely, lengths = (np.concatenate([v.numbers("pair", name) for v in runs]) for name in ("chosen", "chosen_length"))
    of_run = np.repeat(np.arange(len(runs)), [len(v.names("pair").array) for v in runs])
    names = pd.Series(np.concatenate([v.names("pair").array for v in runs]).astype(object), dtype=object)
    return stats.spearman(likely, lengths, of_run, prompts_of(names), seed=e.seed)


# ---------------------------------------------------------------- rows of scores.json
def score(frames: Frames, start: Frames | None = None, *, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of `scores.json` of one run: metric, value, low, high, n, better.

    frames: `heldout`, `answers`, `verdicts` of one run (or of several that differ in nothing but the seed); any may be
    absent or empty. start: the same of its start model; None when the run IS the start model. A metric without a
    measurement has None in value, low and high, and n = 0. With several judges the main one has the plain names, the
    others `pass_rate@<judge>` and so on.
    """
    beside = None if start is None else list(in_memory(start).values())
    return score_vectors(list(in_memory(frames).values()), beside, seed=seed)


def score_vectors(
    runs: Sequence[Vectors], start: Sequence[Vectors] | None, only: Collection[str] | None = None, *, seed: int = 0
) -> list[dict[str, Any]]:
    """`score` of vectors. only: these metrics, with all judges' where one is judged; default: all."""
    runs, rows = sorted(runs, key=lambda v: v.run), []
    for name, m, judge in _measured(runs, start is None):
        if only is None or name in only:
            beside = None if start is None else Evidence(start, judge, seed=seed)
            estimate = m.function(Evidence(runs, judge, beside, seed))
            numbers = {k: nan_as_null(float(getattr(estimate, k))) for k in ("value", "low", "high")}
            rows.append({"metric": name, **numbers, "n": estimate.n, "better": m.better})
    return rows


def _measured(runs: Sequence[Vectors], start: bool) -> Iterator[tuple[str, Metric, str]]:
    """(its name in the rows, the metric, the judge) of all that these runs may have."""
    judges = sorted({judge for v in runs for judge in v.judges}, key=main_first)
    for place, judge in enumerate(judges or [""]):
        for m in METRICS.values():
            if not (place and not m.judged) and (m.start or not start):
                yield f"{m.name}@{judge}" if place else m.name, m, judge


def complete(frames: Frames, *, seed: int = 0) -> pd.DataFrame:
    """The `scores` frame with what it lacks: rows for finished runs that have none, and one set of rows, under
    `Arm.id`, for every loss that was trained with several seeds."""
    scores = frames.get("scores")
    stored = FRAMES["scores"].of(() if scores is None else scores)
    known = set(stored["run"].dropna())
    lacking = list(scored_sets(frames["runs"], known))
    if not lacking:
        return stored.reset_index(drop=True)
    vectors = in_memory(frames)
    added = [
        {"run": name, **row}
        for name, members, starts in lacking
        for row in score_vectors(
            [vectors[run] for run in members if run in vectors],
            None if starts is None else [vectors[run] for run in starts if run in vectors],
            seed=seed,
        )
    ]
    return FRAMES["scores"].of(pd.concat([f for f in (stored, pd.DataFrame(added)) if len(f)], ignore_index=True))


class Scored(NamedTuple):
    """What has a row for each metric. name: a run, or an arm of several. starts: the start models of its runs, None of a start
    model itself."""

    name: str
    runs: tuple[str, ...]
    starts: tuple[str, ...] | None


def scored_sets(runs: pd.DataFrame, known: Collection[str] = ()) -> Iterator[Scored]:
    """Every finished run, and every arm of several, whose name is not among `known`; arm by arm. A start model of
    which no run is stored does not count as one."""
    finished, there = runs[runs["status"] == "finished"], set(runs["run"])
    columns = finished.reindex(columns=["run", "start"])
    start_of = {str(run): start for run, start in zip(columns["run"], columns["start"], strict=True)}
    for arm in arms_of(finished, every_round=True):
        sets: list[tuple[str, tuple[str, ...]]] = [(run, (run,)) for run in arm.runs if run not in known]
        sets += [(arm.id, arm.runs)] if len(arm.runs) > 1 and arm.id not in known else []
        for name, members in sets:
            starts = {str(start) for run in members if (start := start_of.get(run)) in there}
            yield Scored(name, members, None if arm.is_start else tuple(sorted(starts)))
