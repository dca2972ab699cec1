"""All metrics: each with its name, direction, unit and definition beside the few lines that compute it.

They turn the frames of one run (or of one loss's runs with several seeds) and of its start model into the rows of
`scores.json`. Prompts and pairs are the clusters of every interval; see `pobench.results.stats`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from pobench.columns import FRAMES
from pobench.files import nan_as_null
from pobench.results import pair_values, stats
from pobench.results.arms import arms_of, judges_of
from pobench.results.groups import labels, prompt_groups, prompts_of
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
    """The frames of one run, or of one loss's runs, from which metrics are computed. start: the start model's."""

    heldout: pd.DataFrame
    answers: pd.DataFrame
    verdicts: pd.DataFrame  # of one judge
    start: Evidence | None = None
    seed: int = 0

    def pairs(self, values: Any, bounds: stats.Bounds | None = None) -> Estimate:
        """The mean over held-out pairs."""
        pairs, runs = self.heldout["pair"], self.heldout["run"]
        return stats.mean(values, pairs, runs, prompts_of(pairs), bounds=bounds, seed=self.seed)

    def prompts(self, values: Any, bounds: stats.Bounds | None = None) -> Estimate:
        """The mean over prompts of the mean over their answers; values: of each answer."""
        return self.over_prompts(values, self.answers["prompt"], self.answers["run"], bounds)

    def over_prompts(self, values: Any, prompts: pd.Series, runs: pd.Series, bounds: stats.Bounds | None) -> Estimate:
        """The mean over prompts, which may come in groups; values, prompts, runs: of each observation."""
        return stats.mean(values, prompts, runs, labels(prompts, self.groups), bounds=bounds, seed=self.seed)

    @cached_property
    def groups(self) -> pd.Series | None:
        """prompt → its topic, see `prompt_groups`."""
        return prompt_groups(self.answers)

    @cached_property
    def prompt_scores(self) -> pd.Series:
        """(run, prompt) → mean score over the prompt's samples, without those that have none."""
        return self.verdicts.groupby(["run", "prompt"], sort=True)["score"].mean().dropna()

    @cached_property
    def beside_start(self) -> pd.DataFrame:
        """run, prompt, ours, theirs: the prompts that both have a score for."""
        assert self.start is not None
        theirs = self.start.prompt_scores.groupby("prompt").mean().rename("theirs")
        return self.prompt_scores.rename("ours").reset_index().merge(theirs.reset_index(), on="prompt")

    @cached_property
    def words(self) -> list[list[str]]:
        return [str(text).casefold().split() for text in self.answers["text"]]


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def repeated_share(words: list[str]) -> float:
    """The share of 4-grams that stood earlier among the words; nan below four words."""
    grams = _ngrams(words, 4)
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


# ---------------------------------------------------------------- quality, by a judge
@_metric("pass_rate", "Pass rate", "higher", "%", ".1f", scale=100, judged=True)
def pass_rate(e: Evidence) -> Estimate:
    """Mean score of the judge, in [0, 1]: over the samples of a prompt, then over prompts. For a checkable demand it is
    the share of answers that meet it. A judge that compares two answers gives none."""
    if (e.verdicts["against"] != "").any():
        return Estimate.missing()
    scores = e.prompt_scores.reset_index()
    return e.over_prompts(scores["score"], scores["prompt"], scores["run"], stats.UNIT)


@_metric("grade", "Graded score", "higher", "%", ".1f", scale=100, judged=True)
def grade(e: Evidence) -> Estimate:
    """Mean grade of a judge that grades beside pass or fail, in [0, 1]: over the samples of a prompt, then over prompts.
    For an instruction with several demands it is the share of demands met."""
    return e.over_prompts(e.verdicts["grade"], e.verdicts["prompt"], e.verdicts["run"], stats.UNIT)


@_metric("pass_rate_gain", "Gain over start", "higher", "points", "+.1f", scale=100, judged=True, start=False)
def pass_rate_gain(e: Evidence) -> Estimate:
    """Pass rate minus the start model's, prompt by prompt. Zero inside the interval: no gain is shown. Of a judge that
    compares: its probability that the answer is better than the start model's, minus a half."""
    both = e.beside_start
    return e.over_prompts(both["ours"] - both["theirs"], both["prompt"], both["run"], stats.SIGNED)


@_metric("win_rate", "Wins over start", "higher", "%", ".1f", scale=100, judged=True, start=False)
def win_rate(e: Evidence) -> Estimate:
    """Share of prompts whose mean score exceeds the start model's on the same prompt; a tie counts half. 50 % is no
    change."""
    both = e.beside_start
    return e.over_prompts(stats.outcomes(both["ours"], both["theirs"]), both["prompt"], both["run"], stats.UNIT)


@_metric("position_flips", "Position flips", "lower", "%", ".1f", scale=100, judged=True, start=False)
def position_flips(e: Evidence) -> Estimate:
    """Share of comparisons with the start model's answer in which the judge names the other answer when their order is
    swapped. There the position decides, and the mean of both orders is close to even."""
    return e.over_prompts(e.verdicts["flipped"], e.verdicts["prompt"], e.verdicts["run"], stats.UNIT)


@_metric("longer_wins", "Longer than start", "", "%", ".1f", scale=100, judged=True, start=False)
def longer_wins(e: Evidence) -> Estimate:
    """Share of the same comparisons that the longer answer would win, in characters; a tie counts half. A judge
    whose wins are close to it may be judging length."""
    return e.over_prompts(e.verdicts["longer"], e.verdicts["prompt"], e.verdicts["run"], stats.UNIT)


# ---------------------------------------------------------------- health of the answers
@_metric("length_tokens", "Length", "", "tokens", ".1f")
def length_tokens(e: Evidence) -> Estimate:
    """Tokens of an answer, its end-of-turn token included: mean over a prompt's samples, then over prompts."""
    return e.prompts(e.answers["tokens"])


@_metric("length_words", "Length in words", "", "words", ".0f")
def length_words(e: Evidence) -> Estimate:
    """Words of an answer (runs of non-blank characters): mean over a prompt's samples, then over prompts."""
    return e.prompts([len(words) for words in e.words])


@_metric("repetition", "Repetition", "lower", "%", ".1f", scale=100)
def repetition(e: Evidence) -> Estimate:
    """Share of an answer's 4-grams that already stood earlier in the same answer: 1 − distinct 4-grams / 4-grams, on
    case-folded words; mean over a prompt's samples, then over prompts. Answers of fewer than four words have none and
    do not count."""
    return e.prompts([repeated_share(words) for words in e.words], stats.UNIT)


@_metric("distinct_2", "Distinct bigrams", "higher", "%", ".1f", scale=100)
def distinct_2(e: Evidence) -> Estimate:
    """Distinct bigrams of case-folded words / bigrams, over all answers of one run to one prompt together; mean over
    prompts. It falls when samples resemble each other, and also with length: compare at equal numbers of samples."""
    rows = []
    for (run, prompt), index in e.answers.reset_index(drop=True).groupby(["run", "prompt"]).indices.items():
        grams = [gram for i in index for gram in _ngrams(e.words[i], 2)]
        if grams:
            rows.append((run, prompt, len(set(grams)) / len(grams)))
    runs, prompts, shares = zip(*rows, strict=True) if rows else ((), (), ())
    return e.over_prompts(shares, pd.Series(prompts, dtype=object), pd.Series(runs, dtype=object), stats.UNIT)


@_metric("unfinished", "Unfinished", "lower", "%", ".1f", scale=100)
def unfinished(e: Evidence) -> Estimate:
    """Share of answers cut off at the token limit before the model ended them."""
    ended = pd.to_numeric(e.answers["finished"].astype("object").map({True: 1.0, False: 0.0}), errors="coerce")
    return e.prompts(1.0 - ended, stats.UNIT)


# ---------------------------------------------------------------- held-out pairs
@_metric("reward_accuracy", "Reward accuracy", "higher", "%", ".1f", scale=100, start=False)
def reward_accuracy(e: Evidence) -> Estimate:
    """Share of held-out pairs whose chosen answer has the higher reward, by the loss's own reward; a tie counts
    half."""
    return e.pairs(stats.outcomes(e.heldout["chosen_reward"], e.heldout["rejected_reward"]), stats.UNIT)


@_metric("margin", "Reward margin", "", "own unit", ".3g", start=False)
def margin(e: Evidence) -> Estimate:
    """Chosen minus rejected reward, mean over held-out pairs, in the loss's own unit: not comparable between losses."""
    return e.pairs(pair_values.margin(e.heldout))


@_metric("kl_winners", "KL on winners", "", "nats/token", ".3f", start=False)
def kl_winners(e: Evidence) -> Estimate:
    """Estimate of KL(reference ‖ policy) on held-out winners: (reference − policy log-probability of the chosen answer)
    per token, mean over pairs. Winners are no samples of the reference, so it may fall below zero."""
    return e.pairs(pair_values.kl(e.heldout))


@_metric("chosen_logp_per_token", "Chosen log-prob", "", "nats/token", ".3f")
def chosen_logp_per_token(e: Evidence) -> Estimate:
    """Log-probability of the chosen answer per token, mean over held-out pairs."""
    return e.pairs(pair_values.per_token(e.heldout, "chosen"))


@_metric("rejected_logp_per_token", "Rejected log-prob", "", "nats/token", ".3f")
def rejected_logp_per_token(e: Evidence) -> Estimate:
    """Log-probability of the rejected answer per token, mean over held-out pairs."""
    return e.pairs(pair_values.per_token(e.heldout, "rejected"))


@_metric("chosen_logp_shift", "Chosen shift", "", "nats/token", "+.3f", start=False)
def chosen_logp_shift(e: Evidence) -> Estimate:
    """Policy minus reference log-probability of the chosen answer per token, mean over held-out pairs: what training
    did to the winners (the negative of the KL on winners)."""
    return e.pairs(pair_values.change_per_token(e.heldout, "chosen"))


@_metric("rejected_logp_shift", "Rejected shift", "", "nats/token", "+.3f", start=False)
def rejected_logp_shift(e: Evidence) -> Estimate:
    """Policy minus reference log-probability of the rejected answer per token, mean over held-out pairs: what training
    did to the losers."""
    return e.pairs(pair_values.change_per_token(e.heldout, "rejected"))


@_metric("length_correlation", "ρ(log-prob, length)", "", "Spearman’s ρ", ".2f")
def length_correlation(e: Evidence) -> Estimate:
    """Spearman’s rank correlation between the log-probability per token of the held-out chosen answers and their length
    in tokens. Far above the start model’s: the loss has learned to favour length."""
    held = e.heldout.sort_values(["run", "pair"])
    likely, groups = pair_values.winner(held), prompts_of(held["pair"])
    return stats.spearman(likely, held["chosen_length"], held["run"], groups, seed=e.seed)


# ---------------------------------------------------------------- rows of scores.json
_NEEDS = {
    "heldout": (
        *("run", "pair", "chosen_logp", "rejected_logp", "chosen_length", "rejected_length", "reference_chosen_logp"),
        *("reference_rejected_logp", "chosen_reward", "rejected_reward"),
    ),
    "answers": ("run", "prompt", "sample", "kind", "topic", "text", "tokens", "finished"),
    "verdicts": ("run", "prompt", "sample", "judge", "score", "grade", "against", "flipped", "longer"),
}


def _frame(frames: Frames, name: str) -> pd.DataFrame:
    """The frame with every column the metrics read; numbers as floats, infinities as missing."""
    frame = frames.get(name)
    frame = pd.DataFrame() if frame is None else frame.reset_index(drop=True)
    frame = frame.reindex(columns=list(_NEEDS[name]))
    types = {column.name: column.type for column in FRAMES[name].columns}
    for column in frame.columns:
        if types[column] == "text":
            values = frame[column].to_numpy(object)
            texts = [value if type(value) is str else "" if pd.isna(value) else str(value) for value in values]
            frame[column] = pd.Series(texts, index=frame.index, dtype=object)  # text may be broken Unicode
        elif types[column] != "bool":
            frame[column] = (
                pd.to_numeric(frame[column], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
            )
    for length in ("chosen_length", "rejected_length"):
        if length in frame:
            frame[length] = frame[length].where(frame[length] > 0)
    return frame


def score(frames: Frames, start: Frames | None = None, *, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of `scores.json` of one run: metric, value, low, high, n, better.

    frames: `heldout`, `answers`, `verdicts` of one run (or of several that differ in nothing but the seed); any may be
    absent or empty. start: the same of its start model; None when the run IS the start model. A metric without a
    measurement has None in value, low and high, and n = 0. With several judges the main one has the plain names, the
    others `pass_rate@<judge>` and so on.
    """
    beside = None if start is None else Beside(_frame(start, "verdicts"))
    return _score({name: _frame(frames, name) for name in _NEEDS}, beside, seed)


class Beside:
    """The start model's scores, which every loss is compared with. verdicts: of the start model, by `_frame`."""

    def __init__(self, verdicts: pd.DataFrame) -> None:
        self.verdicts, self._by_judge = verdicts, dict[str, Evidence]()

    def of(self, judge: str) -> Evidence:
        """By one judge."""
        if judge not in self._by_judge:
            nothing, own = self.verdicts.iloc[:0], self.verdicts[self.verdicts["judge"] == judge]
            self._by_judge[judge] = Evidence(nothing, nothing, own)
        return self._by_judge[judge]


def _score(frames: Mapping[str, pd.DataFrame], beside: Beside | None, seed: int) -> list[dict[str, Any]]:
    """The rows of `score`. frames: by `_frame`. beside: None for the start model."""
    heldout, answers, verdicts = (frames[name] for name in ("heldout", "answers", "verdicts"))
    rows = []
    for place, judge in enumerate(judges_of(verdicts) or [""]):
        start = None if beside is None else beside.of(judge)
        evidence = Evidence(heldout, answers, verdicts[verdicts["judge"] == judge], start, seed)
        for m in METRICS.values():
            if (place and not m.judged) or (beside is None and not m.start):
                continue
            estimate = m.function(evidence)
            numbers = {k: nan_as_null(float(getattr(estimate, k))) for k in ("value", "low", "high")}
            name = f"{m.name}@{judge}" if place else m.name
            rows.append({"metric": name, **numbers, "n": estimate.n, "better": m.better})
    return rows


def complete(frames: Frames, *, seed: int = 0) -> pd.DataFrame:
    """The `scores` frame with what it lacks: rows for finished runs that have none, and one set of rows, under
    `Arm.id`, for every loss that was trained with several seeds."""
    runs = frames["runs"]
    finished = runs[runs["status"] == "finished"]
    scores = frames.get("scores")
    stored = FRAMES["scores"].of(() if scores is None else scores)
    scored = set(stored["run"].dropna())
    start_of = {str(r["run"]): r.get("start") for r in finished.to_dict("records")}
    typed = {name: _frame(frames, name) for name in _NEEDS}
    starts: dict[tuple[Any, ...], Beside] = {}
    added: list[dict[str, Any]] = []
    for arm in arms_of(finished):
        groups = [(run, [run]) for run in arm.runs if run not in scored]
        groups += [(arm.id, list(arm.runs))] if len(arm.runs) > 1 and arm.id not in scored else []
        for name, members in groups:
            own = None if arm.is_start else tuple(start_of.get(member) for member in members)
            if own is not None and own not in starts:
                starts[own] = Beside(_of_runs(typed["verdicts"], own))
            rows = {need: _of_runs(frame, members) for need, frame in typed.items()}
            added += [{"run": name, **row} for row in _score(rows, None if own is None else starts[own], seed)]
    if not added:
        return stored.reset_index(drop=True)
    return FRAMES["scores"].of(pd.concat([f for f in (stored, pd.DataFrame(added)) if len(f)], ignore_index=True))


def _of_runs(frame: pd.DataFrame, runs: Sequence[Any]) -> pd.DataFrame:
    return frame[frame["run"].isin(runs)].reset_index(drop=True)
