"""Make preferences from a model's answers to a prompt: the best against the worst by a judge's ranking, or a human answer
against each of them.

    a pointwise judge     ranks by its score; a reward model by the reward
    a pairwise judge      ranks by the mean probability to win against the other answers to the prompt; PairRM by its scores

If several answers are best or worst, the pair takes the two with the closest lengths in tokens, then the ones sampled
first. This keeps length from separating chosen and rejected answers. An unfinished answer is never in a pair.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

from pobench.data.rows import messages
from pobench.errors import PobenchError
from pobench.judging import PairwiseJudge, PointwiseJudge, grades
from pobench.judging.pairwise import Comparison, Progress, judge_many

Row = Mapping[str, Any]
Read = Callable[[Sequence[int], Progress | None], Sequence[Any]]  # places → a value for each
Texts = Callable[[Sequence[int], Read], Sequence[Any]]  # lengths of what is read, and how → a value for each
ReadAll = Callable[[Progress | None, Sequence[int], Read], Sequence[Any]]  # `Texts` that tells how far it is


class Sample(NamedTuple):
    """One answer to the prompt `id`, as stored. tokens: generated, the end-of-turn token included."""

    id: str
    sample: int
    text: str
    tokens: int
    finished: bool


class Ranked(NamedTuple):
    """A prompt's row, the two answers of its pair, and every answer with its score (nan: none)."""

    row: Row
    chosen: Sample
    rejected: Sample
    answers: tuple[Sample, ...]
    scores: tuple[float, ...]

    def plain(self) -> dict[str, Any]:
        """`{"id", "prompt": messages, "chosen": text, "rejected": text, "meta"}`."""
        both = {"chosen": self.chosen, "rejected": self.rejected}
        meta = {key: self.row[key] for key in ("kind", "topic") if key in self.row}
        meta |= {f"{side}_score": self.scores[self.answers.index(answer)] for side, answer in both.items()}
        meta |= {f"{side}_tokens": answer.tokens for side, answer in both.items()}
        texts = {side: answer.text for side, answer in both.items()}
        return {"id": self.row["id"], "prompt": messages(self.row["prompt"]), **texts, "meta": meta}

    def published(self) -> dict[str, Any]:
        """The row in the columns of the published on-policy data sets: both conversations, and all answers with scores."""
        scores = [None if math.isnan(score) else score for score in self.scores]
        generated = {"all_generated_responses": [answer.text for answer in self.answers], "all_rm_scores": scores}
        return _published(self.row, generated, self.chosen.text, self.rejected.text)


class HumanOverOwn(NamedTuple):
    """A prompt's row with its `human_answer`, and an answer of the model's own, which stands below it."""

    row: Row
    own: Sample

    def published(self) -> dict[str, Any]:
        """The row as of a `Ranked`, without what a judge says."""
        return _published(self.row, {}, self.row["human_answer"], self.own.text)


def _published(row: Row, generated: Mapping[str, Any], chosen: str, rejected: str) -> dict[str, Any]:
    prompt = messages(row["prompt"])
    return {
        "id": row["id"],
        "prompt_id": row["id"],
        "prompt": prompt[-1]["content"],
        **generated,
        "chosen": [*prompt, {"role": "assistant", "content": chosen}],
        "rejected": [*prompt, {"role": "assistant", "content": rejected}],
    }


def human_over_own(rows: Sequence[Row], samples: Iterable[Sample]) -> tuple[list[HumanOverOwn], dict[str, Any]]:
    """A pair for every different usable answer to a prompt, in the order of `rows`, and counts of prompts and answers.

    rows: each with `human_answer`. Counts: prompts; answers; unfinished and empty answers; identical ones, to the human answer
    or to an earlier one, without outer white space; pairs.
    """
    by_prompt = _by_prompt(samples)
    counts = Counter({k: 0 for k in ("answers", "unfinished", "empty", "identical", "pairs")})
    pairs = []
    for row in rows:
        seen = {row["human_answer"].strip()}
        for sample in by_prompt[row["id"]]:
            text = sample.text.strip()
            counts.update(answers=1, unfinished=not sample.finished, empty=not text)
            if not _usable(sample):
                continue
            counts["identical" if text in seen else "pairs"] += 1
            if text not in seen:
                pairs.append(HumanOverOwn(row, sample))
            seen.add(text)
    return pairs, {"prompts": len(rows), **counts}


def _by_prompt(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    by_prompt: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: (s.id, s.sample)):
        by_prompt[sample.id].append(sample)
    return by_prompt


def best_against_worst(
    rows: Sequence[Row],
    samples: Iterable[Sample],
    judge: PointwiseJudge | PairwiseJudge,
    progress: Progress | None = None,
    read_all: ReadAll | None = None,
) -> tuple[list[Ranked], dict[str, Any]]:
    """The pairs in the order of `rows`, and counts of prompts and answers. read_all: how a judge that takes many texts reads
    them; None: all at once.

    Counts: prompts; answers; unfinished, empty, unscored and identical answers (equal texts of one prompt, without outer
    white space); tied prompts (equal scores, or fewer than two answers left); pairs. A pairwise judge adds comparisons, and
    unread: how many gave no verdict. A pointwise judge adds mean_score over all scored answers, unfinished ones included,
    and the same by kind if the rows have kinds. Raises PobenchError if the judge can neither score nor compare.
    """
    by_prompt = _by_prompt(samples)
    answers = [(row, sample) for row in rows for sample in by_prompt[row["id"]]]
    graded = grades(judge)
    candidates = answers if graded else [(row, sample) for row, sample in answers if _usable(sample)]
    scored, counted = _scores(judge, candidates, partial(read_all or _at_once, progress))
    counts: Counter[str] = Counter(
        {k: 0 for k in ("answers", "unfinished", "empty", "unscored", "identical", "tied", "pairs")}
    )
    pairs = []
    for row in rows:
        own_answers = by_prompt[row["id"]]
        scores = [scored.get(sample, math.nan) for sample in own_answers]
        distinct: dict[str, tuple[float, Sample]] = {}
        for score, sample in zip(scores, own_answers, strict=True):
            counts["answers"] += 1
            counts["unfinished"] += not sample.finished
            counts["empty"] += not sample.text.strip()
            counts["unscored"] += sample in scored and math.isnan(score)
            if _usable(sample):
                counts["identical"] += sample.text.strip() in distinct
                distinct.setdefault(sample.text.strip(), (score, sample))
        extremes = _choose([scored_sample for scored_sample in distinct.values() if not math.isnan(scored_sample[0])])
        counts["tied" if extremes is None else "pairs"] += 1
        if extremes is not None:
            pairs.append(Ranked(row, *extremes, tuple(own_answers), tuple(scores)))
    summary: dict[str, Any] = {"prompts": len(rows), **counts, **counted}
    return pairs, summary | (_means(rows, by_prompt, scored, pairs) if graded else {})


def _usable(sample: Sample) -> bool:
    """Whether the answer may be in a pair: it is finished and not empty."""
    return sample.finished and bool(sample.text.strip())


def _choose(scored: Sequence[tuple[float, Sample]]) -> tuple[Sample, Sample] | None:
    """The best and the worst answer; None if all scores are equal or there are no answers."""
    high = max((score for score, _ in scored), default=math.nan)
    low = min((score for score, _ in scored), default=math.nan)
    if not high > low:
        return None
    ends = [(b, w) for above, b in scored if above == high for below, w in scored if below == low]
    return min(ends, key=lambda pair: (abs(pair[0].tokens - pair[1].tokens), pair[0].sample, pair[1].sample))


def _means(
    rows: Sequence[Row], by_prompt: Mapping[str, list[Sample]], scored: Mapping[Sample, float], pairs: Sequence[Ranked]
) -> dict[str, Any]:
    """mean_score, and by_kind if the rows have kinds."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        kinds[row.get("kind", "")] += [scored[s] for s in by_prompt[row["id"]] if not math.isnan(scored[s])]
    every: dict[str, Any] = {"mean_score": _mean([score for scores in kinds.values() for score in scores])}
    if any(kinds):
        made = Counter(pair.row.get("kind", "") for pair in pairs)
        every["by_kind"] = {k: {"mean_score": _mean(v), "pairs": made[k]} for k, v in sorted(kinds.items())}
    return every


def _mean(values: Sequence[float]) -> float | None:
    """The mean to four digits; None (null in JSON) without values."""
    return round(sum(values) / len(values), 4) if values else None


# ---------------------------------------------------------------- a number for every answer
Asked = Sequence[tuple[Row, Sample]]


def comparisons(answers: Asked) -> list[tuple[str, Comparison]]:
    """The comparisons for a pairwise judge, with the prompt's id: every two different answers to one prompt."""
    rows = {row["id"]: row for row, _ in answers}
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for row, sample in answers:
        if _usable(sample):
            texts[row["id"]].setdefault(sample.text.strip(), sample.text)
    return [
        (id, Comparison(rows[id]["prompt"], *two))
        for id, distinct in texts.items()
        for two in combinations(distinct.values(), 2)
    ]


def _at_once(progress: Progress | None, lengths: Sequence[int], read: Read) -> Sequence[Any]:
    return read(range(len(lengths)), progress)


def _compared(
    pairs: Sequence[tuple[str, Comparison]],
    read: Callable[..., Sequence[Any]],
    read_all: Texts,
) -> Sequence[Any]:
    """What `read` gives for every comparison."""
    lengths = [len(two.a) + len(two.b) for _, two in pairs]
    return read_all(lengths, lambda places, progress: read([pairs[i][1] for i in places], progress))


def _scores(judge: Any, answers: Asked, read_all: Texts) -> tuple[dict[Sample, float], dict[str, int]]:
    """A score for every answer (higher is better among answers to one prompt; nan: none), and the counts of comparisons."""
    if hasattr(judge, "rewards"):  # many at once
        asked = [(row["prompt"], sample.text) for row, sample in answers]
        rewards = read_all(
            [len(text) for _, text in asked],
            lambda places, progress: judge.rewards([asked[i] for i in places], progress),
        )
        return dict(zip([sample for _, sample in answers], rewards, strict=True)), {}
    if isinstance(judge, PointwiseJudge):
        return {sample: judge.score(row, sample.text, sample.finished) for row, sample in answers}, {}
    if not isinstance(judge, PairwiseJudge):
        raise PobenchError(f"judge {judge.name!r} neither scores an answer nor compares two, so it can rank none")
    comparisons_by_id = comparisons(answers)
    if hasattr(judge, "margins"):
        return _summed_margins(answers, comparisons_by_id, _compared(comparisons_by_id, judge.margins, read_all))
    won: dict[tuple[str, str], list[float]] = {
        (id, text.strip()): [] for id, two in comparisons_by_id for text in (two.a, two.b)
    }

    def probabilities(shown: Sequence[Comparison], progress: Progress | None) -> list[float]:
        return [verdict.probability for verdict in judge_many(judge, shown, progress)]

    found = _compared(comparisons_by_id, probabilities, read_all)
    for (id, two), probability in zip(comparisons_by_id, found, strict=True):
        if not math.isnan(probability):
            won[id, two.b.strip()].append(probability)
            won[id, two.a.strip()].append(1 - probability)
    unread = len(comparisons_by_id) - sum(map(len, won.values())) // 2
    keys = {sample: (sample.id, sample.text.strip()) for _, sample in answers}
    scores = {
        sample: _share(won[key]) for sample, key in keys.items() if key in won
    }  # an only answer has no comparison
    return scores, {"comparisons": len(comparisons_by_id), "unread": unread}


def _summed_margins(
    answers: Asked, compared: Sequence[tuple[str, Comparison]], margins: Sequence[float]
) -> tuple[dict[Sample, float], dict[str, int]]:
    """An answer's margins over all answers to its prompt, summed, over their number: `rank` of the package llm-blender.

    An answer that was drawn twice counts twice among the others. An only answer has no score.
    """
    drawn = Counter((sample.id, sample.text.strip()) for _, sample in answers)
    among = Counter(sample.id for _, sample in answers)
    scores: dict[tuple[str, str], float] = defaultdict(float)
    for (id, two), margin in zip(compared, margins, strict=True):
        a, b = (id, two.a.strip()), (id, two.b.strip())
        scores[a] -= drawn[b] * margin / among[id]
        scores[b] += drawn[a] * margin / among[id]
    keys = {sample: (sample.id, sample.text.strip()) for _, sample in answers}
    found = {sample: round(scores[key], 9) for sample, key in keys.items() if key in scores}
    return found, {"comparisons": len(compared), "unread": 0}


def _share(wins: Sequence[float]) -> float:
    """The mean, rounded so that equal means compare equal; nan without values."""
    return round(math.fsum(wins) / len(wins), 9) if wins else math.nan
