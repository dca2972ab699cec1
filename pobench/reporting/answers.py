"""Models' answers: a few on the page as text, as many as fit packed into it for its reader, and all as files beside it.

The page's script (`reports/answers.js`) unpacks what `pack_answers` packs and reads what `write_answers` writes.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pobench.files import write_bytes
from pobench.reporting.looks import look_of
from pobench.reporting.tables import clean, show_number
from pobench.results.arms import Arm, arms_of, by_main_judge, main_judge, of_arm
from pobench.results.comparable import Comparable, Selection
from pobench.results.derived import Frames
from pobench.results.head_to_head import compares

SAMPLE_PROMPTS = 4
LONGEST_ANSWER = 1200  # characters of an answer shown as text
LONGEST_PACKED = 20_000  # characters of an answer packed into the page
MOST_PACKED = 1_000_000  # bytes that all packed answers of a page take


# ---------------------------------------------------------------- a few as text
@dataclass
class Sample:
    """One answer on the page."""

    label: str
    colour: str
    text: str
    hidden: int  # characters not shown
    mark: str  # "pass" | "fail" | a score | ""
    tokens: str
    finished: bool


@dataclass
class SamplePrompt:
    prompt: str
    kind: str
    instruction: str
    answers: list[Sample]


def sample_answers(selection: Selection, count: int = SAMPLE_PROMPTS) -> list[SamplePrompt]:
    """The answers to a few prompts, side by side. A fixed rule picks them: of the prompts that most models answered, those
    whose id has the smallest SHA-256; of each model, the lowest seed's first sample."""
    if selection.frames["answers"]["text"].isna().all():  # also where there are no answers
        return []
    firsts = _first_answers(selection)
    judged = _judged(selection.frames["verdicts"], main_judge(selection.frames["verdicts"]))
    shown = []
    for prompt in _answered_by_most(firsts.values())[:count]:
        rows = {arm: frame.loc[prompt] for arm, frame in firsts.items() if prompt in frame.index}
        first = next(iter(rows.values()))
        samples = [
            _sample(arm, row, judged.get((row["run"], prompt, row["sample"]), UNJUDGED).score)
            for arm, row in rows.items()
        ]
        shown.append(
            SamplePrompt(clean(str(prompt)), _text(first, "kind"), clean(_raw(first, "instruction"), 2000), samples)
        )
    return shown


def _first_answers(selection: Selection) -> dict[Arm, pd.DataFrame]:
    """Arm → the first answers of its lowest seed, by prompt; arms without answers are left out."""
    runs, answers = selection.frames["runs"], selection.frames["answers"]
    firsts = {}
    for arm in selection.arms:
        members = of_arm(runs, arm).sort_values(["seed", "run"], kind="stable")["run"]
        run = next((r for r in members if (answers["run"] == r).any()), None)
        if run is not None:
            firsts[arm] = answers[answers["run"] == run].drop_duplicates("prompt").set_index("prompt")
    return firsts


def _answered_by_most(firsts: Iterable[pd.DataFrame]) -> list[Any]:
    """The prompts that most models answered, ordered by the SHA-256 of their id."""
    counts = Counter(prompt for frame in firsts for prompt in frame.index)
    most = max(counts.values(), default=0)
    return sorted((p for p, n in counts.items() if n == most), key=_digest)


def _digest(prompt: Any) -> str:
    return hashlib.sha256(_bytes(prompt)).hexdigest()


def _sample(arm: Arm, row: pd.Series, verdict: float) -> Sample:
    text = _raw(row, "text")
    mark = "" if pd.isna(verdict) else {1.0: "pass", 0.0: "fail"}.get(float(verdict), f"{float(verdict):.2f}")
    tokens = row.get("tokens")
    ended = row.get("finished")
    return Sample(
        clean(arm.label),
        look_of(arm.loss).colour,
        clean(text[:LONGEST_ANSWER]),
        max(0, len(text) - LONGEST_ANSWER),
        mark,
        "" if tokens is None or pd.isna(tokens) else f"{int(tokens)}",
        not (ended is not None and not pd.isna(ended) and not bool(ended)),
    )


def _raw(row: pd.Series, column: str) -> str:
    return _or_empty(row.get(column))


def _text(row: pd.Series, column: str) -> str:
    return clean(_raw(row, column), 200)


def _bytes(text: Any) -> bytes:
    return str(text).encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------- packed into the page
class Packed(NamedTuple):
    """Answers for the page's reader. content: JSON, gzipped, in base64. note: how many answers these are, of how many. name:
    of a benchmark's, the folder of their files (`write_answers`)."""

    content: str
    note: str
    name: str = ""


def pack_answers(selection: Selection, limit: int = MOST_PACKED) -> Packed | None:
    """Each arm's first answers (the lowest seed's, one a prompt) to as many prompts as `limit` bytes hold; None without texts.

    Prompts are taken by `_answered_by_most`, those that fewer models answered last. The JSON has `judge` and `compares`;
    `prompts`: [id, kind, instruction]; `arms`: label, loss, colour, run, and the columns of `_columns`, one value a
    prompt; `battles`: verdicts on two arms' answers, where a judge compared them.
    """
    if selection.frames["answers"]["text"].isna().all():
        return None
    firsts = _first_answers(selection)
    most = _answered_by_most(firsts.values())
    every = {prompt for frame in firsts.values() for prompt in frame.index}
    prompts = most + sorted(every - set(most), key=_digest)
    content, count = _fitting(prompts, lambda kept: _payload(selection, firsts, kept), limit)
    kept = prompts[:count]
    held = sum(int(frame.index.isin(kept).sum()) for frame in firsts.values())
    stored = int(selection.frames["answers"]["text"].notna().sum())
    models, asked = _count(len(firsts), "model"), _count(len(prompts), "prompt")
    whose = f"of {models} the lowest seed’s first sample, to {show_number(count)} of {asked}"
    note = f"This page holds {show_number(held)} of {show_number(stored)} answers: {whose}."
    return Packed(content, note) if count else None


def _fitting(
    prompts: Sequence[Any], payload: Callable[[Sequence[Any]], Mapping[str, Any]], limit: int
) -> tuple[str, int]:
    """The payload of as many of the prompts as `limit` bytes hold, packed, and how many these are."""
    count, content = len(prompts), _packed(payload(prompts))
    while len(content) > limit and count:
        count = min(count - 1, int(count * 0.97 * limit / len(content)))
        content = _packed(payload(prompts[:count]))
    return content, count


def pack_benchmarks(selection: Selection, limit: int = MOST_PACKED) -> list[Packed]:
    """Of each benchmark whose answers a judge read beside a baseline's, and of each of its judges: the baseline's answers and
    each arm's (the lowest seed's), as `pack_answers` packs them, in `limit` bytes together.

    The JSON has `against`: "baseline", which is also the `loss` of the baseline's entry among the `arms`; their `score` is 1
    where the arm's answer won against it, and `reason` the judge's words.
    """
    rows = selection.frames.rows("benchmark_answers")
    if rows is None or not len(rows):
        return []
    runs, stored = selection.frames["runs"], set(rows.runs)
    firsts = {}
    for arm in selection.arms:
        members = of_arm(runs, arm).sort_values(["seed", "run"], kind="stable")["run"]
        run = next((r for r in members if r in stored), None)
        if run is not None:
            firsts[arm] = rows.of([run])
    named = sorted({key for own in firsts.values() for key in zip(own["benchmark"], own["judge"], strict=True)})
    packed = [_pack_benchmark(firsts, benchmark, judge, limit // len(named)) for benchmark, judge in named]
    return [one for one in packed if one is not None]


def _pack_benchmark(firsts: Mapping[Arm, pd.DataFrame], benchmark: str, judge: str, limit: int) -> Packed | None:
    """One benchmark as one judge saw it. firsts: arm → its rows of `benchmark_answers`."""
    asked = {
        arm: own[(own["benchmark"] == benchmark) & (own["judge"] == judge)]
        .drop_duplicates("question")
        .set_index("question")
        for arm, own in firsts.items()
    }
    asked = {arm: own for arm, own in asked.items() if len(own)}
    baseline = pd.concat(asked.values())
    baseline = baseline[~baseline.index.duplicated()]
    questions = sorted(baseline.index, key=_digest)

    def payload(kept: Sequence[Any]) -> dict[str, Any]:
        told = baseline.loc[list(kept)]
        arms: list[dict[str, Any]] = [
            {**_baseline(benchmark), "run": "", "text": _cut(told["baseline"], LONGEST_PACKED)}
        ]
        for arm, own in asked.items():
            columns = _beside_baseline(own.reindex(list(kept)), LONGEST_PACKED)
            arms.append({**_about(arm), "run": str(own["run"].iloc[0]), **columns})
        facts = zip(told.index, told["kind"], told["prompt"], strict=True)
        prompts = [[_valid(str(name)), _valid(_or_empty(kind)), _valid(text)] for name, kind, text in facts]
        about = {"judge": _valid(judge), "compares": True, "against": "baseline"}
        return {**about, "prompts": prompts, "arms": arms, "battles": []}

    content, count = _fitting(questions, payload, limit)
    whose = f"the baseline’s answers and those of {_count(len(asked), 'model')}, of each its lowest seed’s"
    note = f"{clean(benchmark)}, {show_number(count)} of {_count(len(questions), 'question')}: {whose}."
    return Packed(content, note, _benchmark_name(benchmark, judge)) if count else None


def _baseline(benchmark: str) -> dict[str, str]:
    """What is said of a baseline among the models."""
    return {"label": f"Baseline of {clean(benchmark)}", "loss": "baseline", "colour": look_of("start").colour}


def _beside_baseline(rows: pd.DataFrame, longest: int) -> dict[str, list[Any]]:
    """Answers to a benchmark as columns: text, the score against the baseline, the judge's reason. rows: by question."""
    columns: dict[str, list[Any]] = {
        "text": _cut(rows["text"], longest),
        "score": [_number(score) for score in rows["score"]],
        "reason": [_valid(_or_empty(reason)) or None for reason in rows["reason"]],
    }
    return _filled(columns)


def _cut(texts: Iterable[Any], longest: int) -> list[Any]:
    return [None if text is None or pd.isna(text) else _valid(str(text)[:longest]) for text in texts]


def _count(number: int, noun: str) -> str:
    return f"{show_number(number)} {noun}{'' if number == 1 else 's'}"


def _packed(payload: Mapping[str, Any]) -> str:
    return base64.b64encode(gzip.compress(_json(payload), 9, mtime=0)).decode("ascii")


def _json(data: Any) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def _payload(selection: Selection, firsts: Mapping[Arm, pd.DataFrame], prompts: Sequence[Any]) -> dict[str, Any]:
    verdicts = selection.frames["verdicts"]
    judged = _judged(verdicts, main_judge(selection.frames["verdicts"]))
    arms = []
    for arm, frame in firsts.items():
        run = str(frame["run"].iloc[0])
        columns = _columns(frame.reindex(prompts), judged, LONGEST_PACKED)
        arms.append({**_about(arm), "run": run, **columns})
    return {
        **_judge(verdicts),
        "prompts": _prompts(firsts.values(), prompts),
        "arms": arms,
        "battles": _battles(selection, firsts, prompts),
    }


def _judge(verdicts: pd.DataFrame) -> dict[str, Any]:
    """The main judge's name, and whether its scores are P(better than the start model's answer)."""
    name = main_judge(verdicts)
    return {"judge": _valid(name), "compares": len(verdicts) > 0 and compares(verdicts)}


def _about(arm: Arm) -> dict[str, str]:
    return {"label": clean(arm.label), "loss": _valid(arm.loss), "colour": look_of(arm.loss).colour}


def _prompts(frames: Iterable[pd.DataFrame], prompts: Sequence[Any]) -> list[list[str]]:
    """[id, kind, instruction] of each prompt."""
    facts: dict[Any, list[str]] = {}
    for frame in frames:
        for prompt, kind, instruction in frame[["kind", "instruction"]].itertuples():
            facts.setdefault(prompt, [_valid(str(prompt)), _valid(_or_empty(kind)), _valid(_or_empty(instruction))])
    return [facts[prompt] for prompt in prompts]


class Verdict(NamedTuple):
    """The main judge's on an answer. flipped: whether the order of the two answers decided. reason: what it wrote."""

    score: float
    flipped: float
    reason: Any = None


UNJUDGED = Verdict(math.nan, math.nan)


def _columns(answers: pd.DataFrame, judged: Mapping[tuple[Any, Any, Any], Verdict], longest: int) -> dict[str, Any]:
    """The answers as columns, null where there is none: text, score, flipped and reason (of the main judge), tokens, finished;
    cut: place of each answer that is longer than `longest` characters → how many are left out. answers: by prompt."""
    texts = [None if pd.isna(text) else str(text) for text in _values(answers["text"])]
    keys = zip(_values(answers["run"]), answers.index.tolist(), _values(answers["sample"]), strict=True)
    verdicts = [judged.get(key, UNJUDGED) for key in keys]
    columns: dict[str, list[Any]] = {
        "text": [None if text is None else _valid(text[:longest]) for text in texts],
        "score": [_number(verdict.score) for verdict in verdicts],
        "flipped": [_number(verdict.flipped) for verdict in verdicts],
        "reason": [_valid(_or_empty(verdict.reason)) or None for verdict in verdicts],
        "tokens": [_number(tokens) for tokens in _values(answers["tokens"])],
        "finished": [None if pd.isna(ended) else int(bool(ended)) for ended in _values(answers["finished"])],
    }
    cut = {str(place): len(text) - longest for place, text in enumerate(texts) if text and len(text) > longest}
    return {**_filled(columns), **({"cut": cut} if cut else {})}


def _filled(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """The columns that have a value."""
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def _battles(selection: Selection, firsts: Mapping[Arm, pd.DataFrame], prompts: Sequence[Any]) -> list[dict[str, Any]]:
    """The main judge's verdicts on two arms' packed answers: first and second, places among the arms; score, P(the first is
    better), flipped and reason, one value a prompt."""
    comparisons, verdicts = selection.frames.get("comparisons"), selection.frames["verdicts"]
    if comparisons is None or comparisons.empty:
        return []
    place = {str(frame["run"].iloc[0]): number for number, frame in enumerate(firsts.values())}
    main = by_main_judge(comparisons, verdicts)
    main = main[main["run"].isin(list(place)) & main["opponent"].isin(list(place))]
    battles = []
    for (run, opponent), rows in main.groupby(["run", "opponent"], sort=True):
        own = rows.sort_values("sample", kind="stable").drop_duplicates("prompt").set_index("prompt").reindex(prompts)
        verdict = {name: [_number(value) for value in own[name]] for name in ("score", "flipped")}
        reasons = _filled({"reason": [_valid(_or_empty(reason)) or None for reason in own["reason"]]})
        battles.append({"first": place[str(run)], "second": place[str(opponent)], **verdict, **reasons})
    return battles


def _judged(verdicts: pd.DataFrame, judge: str) -> dict[tuple[Any, Any, Any], Verdict]:
    """(run, prompt, sample) → the judge's verdict."""
    if verdicts.empty:
        return {}
    judged = verdicts[verdicts["judge"] == judge].drop_duplicates(["run", "prompt", "sample"])
    columns = [_values(judged[name]) for name in ("run", "prompt", "sample", *Verdict._fields)]
    return {(run, prompt, sample): Verdict(*verdict) for run, prompt, sample, *verdict in zip(*columns, strict=True)}


def _values(column: pd.Series) -> list[Any]:
    """As Python has them; a column of text is slow to go through."""
    return column.to_numpy(object).tolist()  # type: ignore[no-any-return]


def _number(value: Any) -> float | int | None:
    """A number in few characters; None where it is missing."""
    if value is None or pd.isna(value) or not math.isfinite(value):
        return None
    number = round(float(value), 4)
    return int(number) if number == int(number) else number


def _or_empty(value: Any) -> str:
    return "" if value is None or (not isinstance(value, str) and pd.isna(value)) else str(value)


def _valid(text: str) -> str:
    """Text with broken UTF-8 as �; everything else as it is, for the page's script shows it safely and exports it whole."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---------------------------------------------------------------- files beside the page
INDEX = "index.json"
LARGEST = 1_000_000  # characters of an answer in a file
ANSWER_COLUMNS = ("prompt", "sample", "kind", "instruction", "text", "tokens", "finished")
VERDICT_COLUMNS = ("prompt", "sample", "judge", *Verdict._fields)


class AnswerFiles:
    """A folder of answers while it is written: a file a model, then the index.

    prompts: id → [id, kind, instruction], in the order in which they are met. Columns of a file have one value a prompt, up to
    the last that was met when it was written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prompts: dict[Any, list[str]] = {}
        self._arms: list[dict[str, str]] = []

    def meet(self, asked: pd.DataFrame) -> None:
        """asked: id, kind and instruction of distinct prompts."""
        for prompt, kind, instruction in asked.itertuples(index=False):
            if prompt not in self.prompts:
                self.prompts[prompt] = [_valid(str(prompt)), _valid(_or_empty(kind)), _valid(_or_empty(instruction))]

    def write(self, about: Mapping[str, str], file: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """A model's file. about: what the index says of it. entries: of each run and sample its columns."""
        write_bytes(self.folder / file, _json({"answers": entries}))
        self._arms.append({**about, "file": file})

    def close(self, about: Mapping[str, Any]) -> Path:
        index = {**about, "prompts": [*self.prompts.values()], "arms": self._arms}
        write_bytes(self.folder / INDEX, _json(index))
        return self.folder / INDEX


def write_answers(comparable: Comparable, folder: Path, runs: Set[str] | None = None) -> dict[str, Path]:
    """Write the answers of every arm, arm by arm: `index.json` with the prompts and the arms, and a file an arm; below, a
    folder of the same for each benchmark whose answers stand beside a baseline's. runs: only arms with one of these. Returns
    the indices that were written: "" → of the setting's own prompts, `Packed.name` → of a benchmark.

    An index has `judge`, `compares`, `against` (a benchmark's) and `prompts` as packed answers have them, and `arms`: label,
    loss, colour, file. An arm's file has `answers`: for each run and sample its run, seed, sample, and the columns of
    `_columns`, one value a prompt of the index; what is missing at their end has no answer.
    """
    arms = arms_of(comparable.frames["runs"], every_round=True)
    wanted = [arm for arm in arms if runs is None or not runs.isdisjoint(arm.runs)]
    found = {"": _write_own(comparable.frames, wanted, folder), **_write_benchmarks(comparable.frames, wanted, folder)}
    return {name: index for name, index in found.items() if index is not None}


def _write_own(frames: Frames, arms: Sequence[Arm], folder: Path) -> Path | None:
    """The answers to the setting's own prompts; None where none is stored."""
    answers, verdicts, files = frames.rows("answers"), frames.rows("verdicts"), AnswerFiles(folder)
    assert answers is not None and verdicts is not None, "a group of runs has both frames"
    judge, seeds = main_judge(verdicts), _seeds(frames)
    comparing = False
    for arm in arms:
        own = answers.of(arm.runs, ANSWER_COLUMNS)
        own = own[own["text"].notna()]
        if own.empty:
            continue
        given = verdicts.of(arm.runs, (*VERDICT_COLUMNS, "against"))
        comparing |= len(given) > 0 and bool((given.loc[given["judge"] == judge, "against"] == "start").any())
        judged = _judged(given, judge)
        files.meet(own.drop_duplicates("prompt")[["prompt", "kind", "instruction"]])
        entries = []
        for (run, sample), rows in own.groupby(["run", "sample"], sort=True):
            by_prompt = rows.drop_duplicates("prompt").set_index("prompt").reindex(list(files.prompts))
            about = {"run": _valid(str(run)), "seed": seeds[run], "sample": int(sample)}
            entries.append({**about, **_columns(by_prompt, judged, LARGEST)})
        files.write(_about(arm), file_of(arm), entries)
    return files.close({"judge": _valid(judge), "compares": comparing}) if files.prompts else None


def _write_benchmarks(frames: Frames, arms: Sequence[Arm], folder: Path) -> dict[str, Path]:
    """The answers to the questions of benchmarks, and their baselines': a folder for each benchmark and judge."""
    rows, seeds = frames.rows("benchmark_answers"), _seeds(frames)
    if rows is None or not len(rows):
        return {}
    written: dict[tuple[str, str], AnswerFiles] = {}
    baselines: dict[tuple[str, str], dict[Any, Any]] = {}
    for arm in arms:
        own = rows.of(arm.runs)
        for (benchmark, judge), of_judge in own.groupby(["benchmark", "judge"], sort=True):
            key = str(benchmark), str(judge)
            files = written.setdefault(key, AnswerFiles(folder / _benchmark_name(*key)))
            files.meet(of_judge.drop_duplicates("question")[["question", "kind", "prompt"]])
            told = baselines.setdefault(key, {})
            for question, text in zip(of_judge["question"], of_judge["baseline"], strict=True):
                told.setdefault(question, text)
            entries = []
            for run, part in of_judge.groupby("run", sort=True):
                by_question = part.drop_duplicates("question").set_index("question").reindex(list(files.prompts))
                about = {"run": _valid(str(run)), "seed": seeds[run]}
                entries.append({**about, **_beside_baseline(by_question, LARGEST)})
            files.write(_about(arm), file_of(arm), entries)
    indices = {}
    for (benchmark, judge), files in written.items():
        texts = [baselines[benchmark, judge].get(question) for question in files.prompts]
        files.write(_baseline(benchmark), "baseline.json", [{"run": "", "seed": -1, "text": _cut(texts, LARGEST)}])
        about = {"judge": _valid(judge), "compares": True, "against": "baseline"}
        indices[_benchmark_name(benchmark, judge)] = files.close(about)
    return indices


def _seeds(frames: Frames) -> dict[Any, int]:
    runs = frames["runs"]
    return {run: int(seed) for run, seed in zip(runs["run"], runs["seed"], strict=True)}


def file_of(arm: Arm) -> str:
    """The name of an arm's file: the loss and what tells its arms apart."""
    return f"{_plain(arm.loss) or 'loss'}-{_short(arm.id)}.json"


def _benchmark_name(benchmark: str, judge: str) -> str:
    """The name of the folder of a benchmark's answers as one judge saw them."""
    return f"{_plain(benchmark) or 'benchmark'}-{_short(f'{benchmark} {judge}')}"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:40]


def _short(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()[:8]
