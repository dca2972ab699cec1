"""Preference pairs from a model's own answers: sample several, score them, best against worst.

The samples are kept beside the pairs, `<name>.samples.jsonl`, appended as batches complete: an interrupted call goes
on where it stopped, and the pairs can be made anew from them without a model. `<name>.recipe.json` says how both
came about.

Which of several best and worst answers make the pair: the two whose lengths in tokens are closest, then the ones
drawn first, so that length is not what tells chosen from rejected unless the demand is about length. An answer cut off
at max_new_tokens is in no pair, for its end is not the model's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pobench.files import write_text
from pobench.generate import generate_batches
from pobench.judging import PointwiseJudge
from pobench.registry import PobenchError


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn; part of the recipe."""

    samples: int = 5
    temperature: float = 0.8
    top_p: float = 0.95
    max_new_tokens: int = 512
    seed: int = 0
    precision: str = "bf16"


class Sample(NamedTuple):
    """One answer to the prompt `id`, as stored."""

    id: str
    sample: int
    text: str
    tokens: int
    finished: bool


def make_pairs(
    rows: Sequence[Mapping[str, Any]],
    judge: PointwiseJudge,
    out: Path,
    *,
    model: Any,
    tokenizer: Any,
    made_by: Mapping[str, Any],
    decoding: Decoding | None = None,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write preference pairs for the prompts `rows` to `out` (JSONL), and return the recipe.

    rows: each with `id` and `prompt` (text or messages), and what the judge reads. made_by: what names the model in
    the recipe (source, digest). progress(done, all): in answers. A pair is a row
    `{"id", "prompt": [messages], "chosen", "rejected", "meta"}`. Raises PobenchError when rows are faulty, or when
    the samples beside `out` were drawn from another model, other prompts or with other settings.
    """
    decoding = decoding or Decoding()
    _check_rows(rows)
    asked = {
        "model": dict(made_by),
        "decoding": asdict(decoding),
        "prompts": {"count": len(rows), "sha256": _digest([(r["id"], messages(r["prompt"])) for r in rows])},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    store = out.with_suffix(".samples.jsonl")
    drawn = _open_samples(store, asked)
    have = {(s.id, s.sample) for s in drawn}
    total = len(rows) * decoding.samples
    batches = generate_batches(
        model,
        tokenizer,
        [messages(row["prompt"]) for row in rows],
        **asdict(decoding),
        batch_size=batch_size,
        skip=lambda prompt, sample: (rows[prompt]["id"], sample) in have,
    )
    for batch in batches:
        fresh = [Sample(rows[a.prompt]["id"], a.sample, a.text, a.tokens, a.finished) for a in batch]
        _append(store, (s._asdict() for s in fresh))
        drawn += fresh
        if progress is not None:
            progress(len(drawn), total)
    pairs, counts = best_against_worst(rows, drawn, judge)
    recipe = {**asked, "judge": judge.name, "rule": "best against worst, closest in length", "counts": counts}
    write_text(out, "".join(_line(pair) for pair in pairs))
    write_text(out.with_suffix(".recipe.json"), json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
    return recipe


def best_against_worst(
    rows: Sequence[Mapping[str, Any]], samples: Iterable[Sample], judge: PointwiseJudge
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The pairs, in the order of `rows`, and what became of every prompt and answer.

    Counts: prompts, answers, unfinished and unscored answers, identical answers (a text counted once a prompt), tied
    prompts (all answers score the same, or fewer than two are left), pairs; mean_score over all answers that have a
    score (unfinished ones too) and by kind, where the rows have kinds.
    """
    by_prompt: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda s: (s.id, s.sample)):
        by_prompt[sample.id].append(sample)
    pairs: list[dict[str, Any]] = []
    counts: Counter[str] = Counter({k: 0 for k in ("answers", "unfinished", "unscored", "identical", "tied", "pairs")})
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        answers = by_prompt[row["id"]]
        scored: dict[str, tuple[float, Sample]] = {}
        kind_scores = scores[row.get("kind", "")]
        for answer in answers:
            score = judge.score(row, answer.text, answer.finished)
            counts["answers"] += 1
            counts["unfinished"] += not answer.finished
            if math.isnan(score):
                counts["unscored"] += 1
                continue
            kind_scores.append(score)
            if answer.finished:
                counts["identical"] += answer.text in scored
                scored.setdefault(answer.text, (score, answer))
        high = max((score for score, _ in scored.values()), default=math.nan)
        low = min((score for score, _ in scored.values()), default=math.nan)
        if not high > low:
            counts["tied"] += 1
            continue
        best = [a for score, a in scored.values() if score == high]
        worst = [a for score, a in scored.values() if score == low]
        chosen, rejected = min(
            ((b, w) for b in best for w in worst),
            key=lambda pair: (abs(pair[0].tokens - pair[1].tokens), pair[0].sample, pair[1].sample),
        )
        meta = {k: row[k] for k in ("kind", "topic") if k in row} | {
            "chosen_score": high,
            "rejected_score": low,
            "chosen_tokens": chosen.tokens,
            "rejected_tokens": rejected.tokens,
        }
        prompt = messages(row["prompt"])
        pairs.append(
            {"id": row["id"], "prompt": prompt, "chosen": chosen.text, "rejected": rejected.text, "meta": meta}
        )
    every = [s for kind in scores.values() for s in kind]
    counted: dict[str, Any] = {"prompts": len(rows), **counts, "pairs": len(pairs), "mean_score": _mean(every)}
    if any(scores.keys()):
        made = Counter(pair["meta"].get("kind", "") for pair in pairs)
        counted["by_kind"] = {k: {"mean_score": _mean(v), "pairs": made[k]} for k, v in sorted(scores.items())}
    return pairs, counted


def messages(prompt: str | Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """A prompt as chat messages; a plain text is what the user says."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": m["role"], "content": m["content"]} for m in prompt]


def _check_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    faults = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        missing = [key for key in ("id", "prompt") if not row.get(key)]
        faults += [f"row {number}: no {key!r}" for key in missing]
        if not missing and row["id"] in seen:
            faults.append(f"row {number}: id {row['id']!r} occurs twice")
        seen.add(row.get("id", ""))
    if not rows:
        faults.append("there are none")
    if faults:
        raise PobenchError("prompts to sample from:\n" + "\n".join(f"  {f}" for f in faults))


def _mean(values: Sequence[float]) -> float | None:
    """None (JSON's null) where there is nothing to average."""
    return round(sum(values) / len(values), 4) if values else None


# ---------------------------------------------------------------- the samples file


def _open_samples(path: Path, asked: Mapping[str, Any]) -> list[Sample]:
    """The samples that `path` holds already; made with its first line, the settings, where there is none."""
    if not path.is_file():
        write_text(path, _line({"samples_of": asked}))
        return []
    whole, _, torn = path.read_text(encoding="utf-8").rpartition("\n")
    if torn:  # a line that was being written when the last call was cut off
        write_text(path, whole + "\n")
    try:
        first, *rest = [json.loads(line) for line in whole.splitlines()]
        found = first["samples_of"]
        samples = [Sample(**line) for line in rest]
    except (ValueError, KeyError, TypeError) as error:
        raise PobenchError(f"{str(path)!r} is no file of samples ({error}); remove it to start anew") from error
    differing = sorted(k for k in asked if json.loads(json.dumps(asked[k])) != found.get(k))
    if differing:
        was, now = ({k: side.get(k) for k in differing} for side in (found, asked))
        raise PobenchError(
            f"{str(path)!r} holds samples drawn otherwise ({', '.join(differing)}):\n  then {json.dumps(was)}\n"
            f"  now  {json.dumps(now)}\nWrite to another file, or remove this one to start anew"
        )
    return samples


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _append(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(_line(v) for v in values))
        stream.flush()
        os.fsync(stream.fileno())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
