"""Benchmarks of a trained model: its answers, a judge's verdicts on them, the score; each layered on a stored run.

    <run>/benchmarks/<name>/<12 hex>/            config.yaml, manifest.json, answers.jsonl
    <run>/benchmarks/<name>/<12 hex>/<12 hex>/   config.yaml, manifest.json, verdicts.jsonl, score.json

The first digits are made from the questions, the chat template and tokenizer, the decoding and the precision; the second
from the judge, the questions' own rows and the benchmark's code. So another decoding makes new answers beside the old
ones, and another judge new verdicts on the same answers. A manifest holds these causes, the weights that answered (of
verdicts: the digest of the answers), and the sha256 of each file; a file that does not match is made anew.

A benchmark is no part of a training job's identity. Answers are appended as they are generated and verdicts are paid for
once, so the same command continues an interrupted pass.

A benchmark is a class in one file of this folder, found by name; its fields are its settings:

    @register_benchmark("alpaca_eval")
    class AlpacaEval(Judged): …
"""

from __future__ import annotations

import datetime
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pobench.data.chat import Chat
from pobench.errors import PobenchError
from pobench.files import checked_bytes, nan_as_null, write_json, write_text
from pobench.identity import code_digest, name_of
from pobench.judging.benchmarks.verdict_files import Scored, fingerprint
from pobench.judging.client import Client, Reply, Request
from pobench.model.generate import Answer, Decoding, generate_batches
from pobench.progress import Advance, progress
from pobench.registry import benchmarks
from pobench.results.manifest import claim, finish, holds, manifest
from pobench.types import NonNegative, UnitInterval

Ask = Callable[[Sequence[Request]], list[Reply]]
OTHER_WEIGHTS = "it was made by other weights than the run has now"


class Question(NamedTuple):
    """What is asked: user turns, one after the other. row: as its file has it. temperature: of the answers."""

    id: str
    turns: tuple[str, ...]
    row: Mapping[str, Any]
    temperature: float


class Answered(NamedTuple):
    """A question with one answer a turn. tokens, finished: of each turn."""

    question: Question
    turns: tuple[str, ...]
    tokens: tuple[int, ...]
    finished: tuple[bool, ...]


class Spoken(NamedTuple):
    """What decides a run's answers besides the benchmark. rendering: `Chat.digest`. precision: "bf16" or "fp32". weights:
    digest of the trained weights; None of the start model, whose run is named by them."""

    rendering: str
    precision: str
    weights: str | None = None


@dataclass
class Speaker:
    """The model under test, loaded when it is first needed. name: of its run. load: () → the model in the precision of
    `spoken`, and its chat."""

    name: str
    load: Callable[[], tuple[Any, Chat]]
    spoken: Spoken
    batch_size: int = 64
    say: Callable[[str], None] = field(default=lambda text: None)

    @cached_property
    def _loaded(self) -> tuple[Any, Chat]:
        return self.load()

    @property
    def model(self) -> Any:
        return self._loaded[0]

    @property
    def chat(self) -> Chat:
        return self._loaded[1]

    def progress(self, title: str, total: float, unit: str) -> AbstractContextManager[Advance]:
        return progress(f"{self.name.rpartition('/')[2]}: {title}", total, unit)


class Benchmark(BaseModel):
    """What every benchmark offers; its fields are the settings below `benchmarks.<name>` of a setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = ""  # given by the registry
    limited: ClassVar[str] = "the first {limit} questions"  # what a limit means here

    limit: int | None = Field(None, ge=1)  # questions asked; None: all. Shown wherever the result is

    @abstractmethod
    def faults(self) -> list[str]:
        """What is missing before it can run: files, packages, keys; one plain sentence each."""

    @abstractmethod
    def done(self, run: Path, spoken: Spoken) -> bool:
        """Whether nothing is left to do for the run in this folder: all is stored, whole, and made by these weights."""

    @abstractmethod
    def evaluate(self, run: Path, speaker: Speaker) -> None:
        """Do what is left. Raises PobenchError where it cannot; what was done by then is kept."""

    def calls(self) -> Calls:
        """What one model's pass may cost. Reads nothing: a plan touches nothing."""
        return Calls()

    def rehearsed(self, folder: Path, questions: int, max_new_tokens: int) -> Benchmark:
        """The same with a few short answers, and no judge that costs anything. folder: for stand-ins."""
        return self


class Calls(NamedTuple):
    """What one model's pass may cost, before it: an estimate. spoken_tokens: of its own answers, at most."""

    judge: str = ""
    requests: int = 0
    prompt_tokens: float = 0.0
    reply_tokens: float = 0.0  # at most
    dollars: float | None = 0.0  # None: the price is not known
    spoken_tokens: float = 0.0


class Result(NamedTuple):
    """One line of `score.json`."""

    metric: str
    value: float
    low: float
    high: float
    n: int


def write_result(
    folder: Path,
    *,
    benchmark: str,
    name: str,
    judge: str,
    asked: int,
    limit: int | None,
    rows: Sequence[Result],
    about: Mapping[str, Any] | None = None,
) -> None:
    """`score.json`, whole: what `pobench.results.load` reads into the frame `benchmarks`.

    name: what the result may be called. asked: questions. about: whatever else a reader may want to know.
    """
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    named = {"benchmark": benchmark, "name": name, "judge": judge, "asked": asked, "limit": limit, "made": made}
    write_json(folder / "score.json", {**named, "rows": [nan_as_null(row._asdict()) for row in rows], **(about or {})})


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSONL, whole."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# ---------------------------------------------------------------- benchmarks with a judge
class JudgeModel(BaseModel):
    """Whom to ask: a chat model behind an OpenAI-compatible address. See `pobench.judging.client.Client`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None  # None: answers are made and stored, and nothing is paid for
    base_url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI's
    key_variable: str = "OPENAI_API_KEY"  # the NAME of the environment variable with the key
    concurrency: int = Field(8, ge=1)
    retries: int = Field(5, ge=0)
    timeout: float = Field(120.0, gt=0)  # seconds
    price_in: float | None = Field(None, ge=0)  # dollars per million tokens
    price_out: float | None = Field(None, ge=0)
    max_cost: float | None = Field(None, gt=0)  # dollars a benchmark of one model may cost
    replies: str | None = None  # a file of replies to give in turn, where nobody is to be asked: for rehearsals

    def client(self) -> Client | Replayed:
        """Raises PobenchError that lists what is wrong with the settings."""
        if self.replies is not None:
            return Replayed(str(self.model), Path(self.replies))
        prices = {"price_in": self.price_in, "price_out": self.price_out}
        return Client(
            **self.model_dump(exclude={"replies"}) | {k: math.nan if v is None else v for k, v in prices.items()},
        )


class Replayed:
    """A client's stand-in: the texts of a JSONL file, in turn, to whatever is asked."""

    def __init__(self, model: str, file: Path) -> None:
        self.model, self.texts = model, [str(row["text"]) for row in _lines(file)]
        if not self.texts:
            raise PobenchError(f"judge.replies: {file.name} holds no replies")

    def estimate(self, requests: Sequence[Request]) -> str:
        return f"{len(requests)} requests, answered from a file"

    def ask(
        self, requests: Sequence[Request], *, progress: Callable[[int, int], None], say: Callable[[str], None]
    ) -> list[Reply]:
        progress(len(requests), len(requests))
        return [Reply(self.texts[i % len(self.texts)], cached=True) for i in range(len(requests))]


class Shape(NamedTuple):
    """A benchmark's size, for estimates. prompt_tokens: of a request, besides our answers. read: our answers in it."""

    questions: int
    turns: int
    requests: int  # a question
    prompt_tokens: int
    read: int
    reply_tokens: int


class Judged(Benchmark):
    """Questions → answers → verdicts → score. A file of this folder says what is particular to one benchmark."""

    source: str
    max_new_tokens: int = Field(2048, ge=1)
    temperature: NonNegative = 0.0  # 0: greedy
    top_p: UnitInterval = 1.0
    seed: int = 0
    judge: JudgeModel = JudgeModel()

    shape: ClassVar[Shape]
    suffix: ClassVar[str] = ".jsonl"  # of a file of answers in the benchmark's own format
    replies: ClassVar[tuple[str, ...]]  # such as a judge gives; the last cannot be read

    # -- what a benchmark says of itself

    @abstractmethod
    def all_questions(self) -> list[Question]:
        """In their order. Raises PobenchError where the source cannot be read, or is not what it should be."""

    @abstractmethod
    def verdicts(self, answered: Sequence[Answered], model: str, ask: Ask) -> list[dict[str, Any]]:
        """One row each, in the benchmark's own format of stored verdicts; asks once, for all together."""

    @abstractmethod
    def scored(self, verdicts: Path, questions: Sequence[Question]) -> Scored:
        """The score of stored verdicts."""

    @abstractmethod
    def export(self, path: Path, answered: Sequence[Answered], model: str) -> None:
        """Write the answers in the benchmark's own format of answers."""

    @abstractmethod
    def stand_in(self, folder: Path, questions: int) -> dict[str, Any]:
        """Write made-up questions in the shape of the real ones; the settings by which they are read."""

    @property
    def option(self) -> str:
        """Where the user names another source, for messages."""
        return f"--set benchmarks.{self.name}.source=PATH"

    def scoring(self) -> dict[str, Any]:
        """Settings that change the score of the same verdicts."""
        return {}

    # -- what all have in common

    def calls(self) -> Calls:
        asked = min(self.limit or self.shape.questions, self.shape.questions)
        spoken = float(asked * self.shape.turns * self.max_new_tokens)
        if self.judge.model is None:
            return Calls(spoken_tokens=spoken)
        requests = asked * self.shape.requests
        ins = float(requests * (self.shape.prompt_tokens + self.shape.read * self.max_new_tokens))
        outs = float(requests * self.shape.reply_tokens)
        prices = self.judge.price_in, self.judge.price_out
        dollars = None if None in prices else (ins * float(prices[0] or 0) + outs * float(prices[1] or 0)) / 1e6
        return Calls(self.judge.model, requests, ins, outs, dollars, spoken)

    def questions(self) -> list[Question]:
        found = self.all_questions()[: self.limit]
        if not found:
            raise PobenchError(f"{self.name}: {self.source!r} holds no questions")
        return found

    def faults(self) -> list[str]:
        checks: list[Callable[[], Any]] = [self.questions]
        if self.judge.model is not None:
            checks += [self.judge.client, self.check_judge]
        found = []
        for check in checks:
            try:
                check()
            except PobenchError as error:
                found.append(f"benchmarks.{self.name}: {error}")
        return found

    def check_judge(self) -> None:
        """Raises PobenchError where what judging needs is absent: an optional package, a file of prompts."""

    def rehearsed(self, folder: Path, questions: int, max_new_tokens: int) -> Judged:
        """On made-up questions where the real ones are not on this machine, and with replies that nobody gave."""
        home = folder / self.name
        local = Path(self.source).expanduser().exists()
        write_lines(home / "replies.jsonl", [{"text": text} for text in self.replies])
        changes = {} if local else self.stand_in(home, questions)
        judge = JudgeModel(model="rehearsal", replies=str(home / "replies.jsonl"))
        limit, tokens = min(self.limit or questions, questions), min(self.max_new_tokens, max_new_tokens)
        return self.model_copy(update={**changes, "limit": limit, "max_new_tokens": tokens, "judge": judge})

    def _answer_causes(self, questions: Sequence[Question], spoken: Spoken) -> dict[str, Any]:
        decoding = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
        asked = fingerprint(json.dumps([[q.id, q.turns, q.temperature] for q in questions]))
        return {**decoding, "questions": asked, "rendering": spoken.rendering, "precision": spoken.precision}

    def _judge_causes(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The rows count because a judge may read them: a baseline's answer, a category."""
        rows = fingerprint(json.dumps([q.row for q in questions], sort_keys=True, default=str))
        return {"judged_by": self.judge.model, "rows": rows, "code": code_digest(type(self))}

    def answers_folder(self, run: Path, questions: Sequence[Question], spoken: Spoken) -> Path:
        return run / "benchmarks" / self.name / name_of(self._answer_causes(questions, spoken))

    def verdicts_folder(self, run: Path, questions: Sequence[Question], spoken: Spoken) -> Path:
        return self.answers_folder(run, questions, spoken) / name_of(self._judge_causes(questions))

    def done(self, run: Path, spoken: Spoken) -> bool:
        if not (run / "benchmarks" / self.name).is_dir():
            return False
        questions = self.questions()
        answers = self.answers_folder(run, questions, spoken)
        made_from = {**self._answer_causes(questions, spoken), "weights": spoken.weights}
        if not holds(answers, made_from, "answers.jsonl"):
            return False
        if self.judge.model is None:
            return True
        verdicts = self.verdicts_folder(run, questions, spoken)
        judged_from = {**self._judge_causes(questions), "answers": _digest_of_answers(answers)}
        if not holds(verdicts, judged_from, "verdicts.jsonl", "score.json"):
            return False
        stored = json.loads((verdicts / "score.json").read_text(encoding="utf-8"))
        return not stored["unanswered"] and stored["scoring"] == self.scoring()

    def evaluate(self, run: Path, speaker: Speaker) -> None:
        questions = self.questions()
        answers = self.answers_folder(run, questions, speaker.spoken)
        answered = self._answer(answers, questions, speaker)
        digest = _digest_of_answers(answers)
        for path in sorted(answers.glob("*/manifest.json")):  # of every judge: none may keep verdicts on other answers
            judged_from = {**manifest(path.parent)["made_from"], "answers": digest}
            _tell(speaker, claim(path.parent, judged_from, "it judges other answers than the run has now"))
        if self.judge.model is None:
            return
        folder = self.verdicts_folder(run, questions, speaker.spoken)
        claim(folder, {**self._judge_causes(questions), "answers": digest})
        stored = folder / "verdicts.jsonl"
        rows = _lines(stored)
        if not rows or any("error" in row for row in rows):  # replies that came before are not paid for again
            rows = self.verdicts(answered, speaker.name, self._asking(self.judge.client(), speaker))
            self._write_config(folder)
            write_lines(stored, rows)
            finish(folder, "verdicts.jsonl")
        errors = [row["error"] for row in rows if "error" in row]
        self._write_score(folder, self.scored(stored, questions), questions, errors)
        finish(folder, "score.json")

    def _answer(self, folder: Path, questions: Sequence[Question], speaker: Speaker) -> list[Answered]:
        """All answers; those that are stored already are not generated again."""
        complete, growing = folder / "answers.jsonl", folder / "answers.partial.jsonl"
        made_from = {**self._answer_causes(questions, speaker.spoken), "weights": speaker.spoken.weights}
        _tell(speaker, claim(folder, made_from, OTHER_WEIGHTS))
        if not holds(folder, made_from, complete.name):
            self._write_config(folder)
            spoken = _spoken(growing)
            write_lines(growing, list(spoken.values()))  # without a line cut short by a kill
            total = sum(len(q.turns) for q in questions)
            with speaker.progress(f"{self.name}, answers", total, "answers") as advance, growing.open("a") as file:
                advance(done=len(spoken))
                for batch in self._speak(questions, spoken, speaker):
                    for row in batch:
                        spoken[row["id"], row["turn"]] = row
                        file.write(json.dumps(row) + "\n")
                    file.flush()
                    advance(done=len(spoken))
            rows = [[spoken[q.id, turn] for turn in range(len(q.turns))] for q in questions]
            kept = ("text", "tokens", "finished")
            write_lines(
                complete,
                [{"id": turns[0]["id"], **{k: [t[k] for t in turns] for k in kept}} for turns in rows],
            )
            finish(folder, complete.name)
            growing.unlink()
        return read_answers(complete, questions)

    def _speak(
        self, questions: Sequence[Question], spoken: Mapping[tuple[str, int], Mapping[str, Any]], speaker: Speaker
    ) -> Iterator[list[dict[str, Any]]]:
        """Turn by turn, batches of answers that `spoken` lacks; one temperature at a time."""
        for turn in range(max(len(q.turns) for q in questions)):
            of_turn = sorted((q for q in questions if turn < len(q.turns)), key=_temperature)
            for temperature, group in groupby(of_turn, key=_temperature):
                asked = list(group)
                if all((q.id, turn) in spoken for q in asked):
                    continue
                decoding = Decoding(
                    self.max_new_tokens, temperature, self.top_p, seed=self.seed, precision=speaker.spoken.precision
                )
                prompts = [
                    speaker.chat.prompt_ids(_messages(q, [spoken[q.id, t]["text"] for t in range(turn)])) for q in asked
                ]
                done = {i for i, q in enumerate(asked) if (q.id, turn) in spoken}
                batches = generate_batches(
                    speaker.model,
                    speaker.chat,
                    prompts,
                    decoding,
                    batch_size=speaker.batch_size,
                    skip=lambda prompt, sample, done=done: prompt in done,  # type: ignore[misc]
                )
                for batch in batches:
                    yield [_row(asked[answer.prompt].id, turn, answer) for answer in batch]

    def _asking(self, client: Client | Replayed, speaker: Speaker) -> Ask:
        """The client's `ask`, with its cost and its progress."""

        def ask(requests: Sequence[Request]) -> list[Reply]:
            speaker.say(f"{self.name}: {client.model} is asked: {client.estimate(requests)}")
            with speaker.progress(f"{self.name}, {client.model}", len(requests), "verdicts") as advance:
                return client.ask(requests, progress=lambda done, total: advance(done=done), say=speaker.say)

        return ask

    def _write_score(self, folder: Path, scored: Scored, questions: Sequence[Question], errors: Sequence[str]) -> None:
        notes = [*scored.notes]
        if errors:
            notes.append(f"{len(errors)} of the verdicts got no reply ({errors[0]}); repeating the command asks again")
        rows = [
            Result(line.metric, line.estimate.value, line.estimate.low, line.estimate.high, line.estimate.n)
            for line in scored.lines
            if line.metric
        ]
        write_result(
            folder,
            benchmark=self.name,
            name=scored.benchmark,
            judge=str(self.judge.model),
            asked=len(questions),
            limit=self.limit,
            rows=rows,
            about={
                "unanswered": len(errors),
                "scoring": self.scoring(),
                "notes": notes,
                "values": scored.as_json(),
            },
        )

    def _write_config(self, folder: Path) -> None:
        """Every setting, by whose change these files would stand elsewhere, and the others as they were."""
        values = {"benchmark": self.name, **self.model_dump(mode="json")}
        write_text(folder / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _digest_of_answers(folder: Path) -> str:
    """sha256 of the finished `answers.jsonl`, as the manifest lists it."""
    return str(manifest(folder)["files"]["answers.jsonl"])


def _tell(speaker: Speaker, faults: Sequence[str]) -> None:
    for fault in faults:
        speaker.say(fault)


def _temperature(question: Question) -> float:
    return question.temperature


def _messages(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    """The conversation up to the first turn that has no answer."""
    messages = [{"role": "user", "content": question.turns[0]}]
    for answer, turn in zip(answers, question.turns[1:], strict=False):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    return messages


def _row(question: str, turn: int, answer: Answer) -> dict[str, Any]:
    return {"id": question, "turn": turn, "text": answer.text, "tokens": answer.tokens, "finished": answer.finished}


def _spoken(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(question, turn) → the row stored before an interruption."""
    return {(row["id"], row["turn"]): row for row in _lines(path)}


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file that we wrote; none where it is absent."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a killed run, or the end
            break
    return rows


def read_answers(path: Path, questions: Sequence[Question]) -> list[Answered]:
    """The stored answers to these questions, in their order. Raises PobenchError where some are absent."""
    rows = {row["id"]: row for row in _lines(path)}
    if absent := [q.id for q in questions if q.id not in rows]:
        raise PobenchError(
            f"{path.name}: no answer to {len(absent)} of {len(questions)} questions, {absent[0]!r} first"
        )
    return [Answered(q, *(tuple(rows[q.id][name]) for name in ("text", "tokens", "finished"))) for q in questions]


def export(run: Path, to: Path, model: str) -> tuple[list[Path], list[str]]:
    """Write a run's stored answers into `to`, each benchmark's in its own format: the files, and why some are not there.

    run: its folder. model: the name that the files give it. Of several decodings each has a file.
    """
    written, faults = [], []
    for stored in sorted(run.glob("benchmarks/*/*/answers.jsonl")):
        name = stored.parent.parent.name
        settings = yaml.safe_load((stored.parent / "config.yaml").read_text(encoding="utf-8"))
        try:
            if files := manifest(stored.parent).get("files"):
                checked_bytes(stored, files.get(stored.name))
            benchmark = benchmarks.get(name)(**{k: v for k, v in settings.items() if k != "benchmark"})
            path = to / f"{name}-{stored.parent.name}{benchmark.suffix}"
            benchmark.export(path, read_answers(stored, benchmark.questions()), model)
            written.append(path)
        except (PobenchError, ValidationError) as error:
            faults.append(f"{name}: {error}")
    return written, faults
