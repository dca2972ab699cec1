"""Base classes of the benchmarks: generate a stored run's answers, let a judge compare or grade them, and score.

    <run>/benchmarks/<name>/<12 hex>/            config.yaml, manifest.json, answers.jsonl
    <run>/benchmarks/<name>/<12 hex>/<12 hex>/   config.yaml, manifest.json, verdicts.jsonl, score.json, beside.jsonl

The first digits are made from the questions, the chat template and tokenizer, the decoding and the precision; the second
from the judge, the questions' own rows and the benchmark's code. So another decoding makes new answers beside the old
ones, and another judge new verdicts on the same answers. A manifest holds these causes, the weights that answered (of
verdicts: the digest of the answers), and the sha256 of each file; a file that does not match is made anew.

A benchmark is no part of a training job's identity. Answers are made shard by shard (`pobench.shards`), by all processes that
evaluate the run, and verdicts are paid for once, so the same command continues an interrupted pass. The first process judges
and scores.

A benchmark is a class in a file of this folder, registered by name. Its fields are its settings:

    @register_benchmark("alpaca_eval")
    class AlpacaEval(Judged): …
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pobench import shards
from pobench.data.audit import unknown_fault, unknown_shares
from pobench.data.capacity import Capacity, Extent
from pobench.data.chat import Chat
from pobench.errors import PobenchError
from pobench.files import checked_bytes, nan_as_null, write_json, write_text
from pobench.identity import code_digest, name_of
from pobench.judging.benchmarks.beside import FILE as BESIDE
from pobench.judging.benchmarks.beside import baseline_of, beside_baseline
from pobench.judging.benchmarks.verdict_files import Scored, fingerprint
from pobench.judging.client import Client, Request, address, allowed_tokens, identity
from pobench.judging.replies import Reply
from pobench.model.generate import Answer, Decoding, batches_of, generate
from pobench.progress import Advance, progress
from pobench.registry import benchmarks
from pobench.results.manifest import causes_of, claim, finish, holds, manifest
from pobench.settings.schema import START_SEED, Count, Seed
from pobench.types import UnitInterval

Ask = Callable[[Sequence[Request]], list[Reply]]
OTHER_WEIGHTS = "it was made by other weights than the run has now"
OTHER_ANSWERS = "it judges other answers than the run has now"
CONFIG = "config.yaml"  # all settings of a benchmark, as they were when the files beside it were made


class Question(NamedTuple):
    """A question: the user turns in order. row: the row of its file. temperature: for its answers."""

    id: str
    turns: tuple[str, ...]
    row: Mapping[str, Any]
    temperature: float


class Answered(NamedTuple):
    """A question with one answer per turn. tokens, finished: per turn."""

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
    `spoken`, and its chat. share: which of the processes that evaluate the run this one is."""

    name: str
    load: Callable[[], tuple[Any, Chat]]
    spoken: Spoken
    batch_size: int = 64
    say: Callable[[str], None] = field(default=lambda text: None)
    share: shards.Share = shards.ALONE

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
        """Of what all processes have done, shown by the first."""
        return progress(f"{self.name.rpartition('/')[2]}: {title}", total, unit, shown=self.share.first)


class Benchmark(BaseModel):
    """Base class of all benchmarks. The fields are the settings under `benchmarks.<name>`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: ClassVar[str] = ""  # set by `register_benchmark`
    limited: ClassVar[str] = "the first {limit} questions"  # describes the limit in texts

    limit: Count | None = None  # number of questions; None: all. Shown with every result

    def packages(self) -> Mapping[str, str]:
        """The packages that it needs with these settings: name of the import → name to install."""
        return {}

    def absent(self) -> list[str]:
        """The packages that it needs and that are not installed, by the names to install."""
        return [install for name, install in self.packages().items() if importlib.util.find_spec(name) is None]

    @abstractmethod
    def faults(self) -> list[str]:
        """What the benchmark needs and lacks, packages apart: files, keys; one plain sentence each."""

    @abstractmethod
    def done(self, run: Path, spoken: Spoken) -> bool:
        """Whether the run in this folder needs no more work: everything is stored, undamaged, and made by these weights."""

    @abstractmethod
    def evaluate(self, run: Path, speaker: Speaker) -> None:
        """Do the work that is left; in all processes but the first, this process's share of it. Raises PobenchError if it
        cannot; work done until then is kept."""

    def drawn_by(self, seed: int) -> Self:
        """A copy whose answers are drawn by a run's seed, unless the settings name one."""
        return self

    def unreadable(self, chat: Chat, capacity: Capacity) -> list[str]:
        """What of its questions model and tokenizer cannot read, one plain sentence each."""
        return []

    def calls(self) -> Calls:
        """An estimate of the cost for one model. Reads no file, because a dry run must not."""
        return Calls()

    def shared_calls(self) -> Calls:
        """The same of what all models share."""
        return Calls()

    def rehearsed(self, folder: Path, questions: int, max_new_tokens: int) -> Benchmark:
        """A copy with a few short answers and a free judge, for a rehearsal. folder: for stand-in files."""
        return self


class Calls(NamedTuple):
    """The estimated cost of a benchmark. spoken_tokens: tokens of the model's own answers, at most."""

    judge: str = ""
    requests: int = 0
    prompt_tokens: float = 0.0
    reply_tokens: float = 0.0  # at most
    dollars: float | None = 0.0  # None: the price is not known
    spoken_tokens: float = 0.0

    def of(self, models: int) -> Calls:
        """The same for each of several models."""
        return Calls(
            self.judge,
            self.requests * models,
            self.prompt_tokens * models,
            self.reply_tokens * models,
            None if self.dollars is None else self.dollars * models,
            self.spoken_tokens * models,
        )

    def and_also(self, other: Calls) -> Calls:
        """Both together."""
        dollars = None if self.dollars is None or other.dollars is None else self.dollars + other.dollars
        return Calls(
            " and ".join(dict.fromkeys(filter(None, (self.judge, other.judge)))),
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.reply_tokens + other.reply_tokens,
            dollars,
            self.spoken_tokens + other.spoken_tokens,
        )


class Result(NamedTuple):
    """One line of `score.json`."""

    metric: str
    value: float
    low: float
    high: float
    n: int


class QuestionScore(NamedTuple):
    """What a run's number of a metric is the mean of, question by question. score: in the metric's unit, nan without a verdict.
    weight: how much the question counts in that mean. group: what it shares with other questions, such as a passage."""

    metric: str
    question: str
    score: float
    weight: float = 1.0
    group: str = ""


def write_result(
    folder: Path,
    *,
    benchmark: str,
    name: str,
    judge: str,
    asked: int,
    limit: int | None,
    rows: Sequence[Result],
    questions: Sequence[QuestionScore],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write `score.json`, which `pobench.results.load` reads into the frames `benchmarks` and `questions`.

    name: the benchmark's name in reports; it says so if the result is not the official benchmark's. asked: number of
    questions. questions: of the metrics that are means over questions. about: further values for readers.
    """
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
    named = {"benchmark": benchmark, "name": name, "judge": judge, "asked": asked, "limit": limit, "made": made}
    columns = {name: [getattr(question, name) for question in questions] for name in QuestionScore._fields}
    values = {"rows": [row._asdict() for row in rows], "questions": columns, **(about or {})}
    write_json(folder / "score.json", {**named, **nan_as_null(values)})


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSONL, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# ---------------------------------------------------------------- benchmarks with a judge
class JudgeModel(BaseModel):
    """The judge: a chat model behind an OpenAI-compatible address. See `pobench.judging.client.Client`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None  # None: generate and store the answers, without a judge
    base_url: str | None = None  # None: OPENAI_BASE_URL, else OpenAI's
    key_variable: str = "OPENAI_API_KEY"  # the NAME of the environment variable with the key
    concurrency: int = Field(8, ge=1, le=1000)
    retries: int = Field(5, ge=0, le=1000)
    timeout: float = Field(120.0, gt=0, le=1e6)  # seconds
    price_in: float | None = Field(None, ge=0, le=1e6)  # dollars per million tokens
    price_out: float | None = Field(None, ge=0, le=1e6)
    max_cost: float | None = Field(None, gt=0, le=1e9)  # dollars per benchmark and model
    extra: dict[str, Any] = {}  # further arguments of every request: {reasoning_effort: low, max_tokens: 8000}
    replies: str | None = None  # a file of replies to return in turn instead of asking the model: for rehearsals

    def causes(self) -> dict[str, Any]:
        """What decides the replies: the model, where it is asked, and with which further arguments."""
        where = {} if self.replies is not None else {"address": identity(address(self.base_url))}
        return {"judged_by": self.model, **where, **({"extra": self.extra} if self.extra else {})}

    def calls(self, requests: int, prompt_tokens: float, reply_tokens: int) -> Calls:
        """What requests may cost. prompt_tokens: of all of them. reply_tokens: of one reply, at most."""
        ins, outs = float(prompt_tokens), float(requests * allowed_tokens(reply_tokens, self.extra))
        prices = self.price_in, self.price_out
        dollars = None if None in prices else (ins * float(prices[0] or 0) + outs * float(prices[1] or 0)) / 1e6
        return Calls(str(self.model), requests, ins, outs, dollars)

    def client(self) -> Client | Replayed:
        """The client. Raises PobenchError that lists the faults of the settings."""
        if self.replies is not None:
            return Replayed(str(self.model), Path(self.replies))
        prices = {"price_in": self.price_in, "price_out": self.price_out}
        return Client(
            **self.model_dump(exclude={"replies"}) | {k: math.nan if v is None else v for k, v in prices.items()},
        )


class Replayed:
    """A stand-in for the client: replies with the texts of a JSONL file in turn, whatever the requests."""

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
    """A benchmark's size, for estimates. requests: per question. prompt_tokens: of a request, without the model's answers.
    read: how many of the model's answers a request contains."""

    questions: int
    turns: int
    requests: int
    prompt_tokens: int
    read: int
    reply_tokens: int


class Asking(Benchmark):
    """A benchmark whose questions the model answers, in turns of a conversation. Subclasses implement the abstract methods."""

    source: str
    max_new_tokens: Count = 2048
    temperature: float = Field(0.0, ge=0, le=100)  # 0: greedy
    top_p: UnitInterval = 1.0
    seed: Seed | None = None  # of the draws; None: the run's own, as in `answers`

    suffix: ClassVar[str] = ".jsonl"  # of the exported answers

    def drawn_by(self, seed: int) -> Self:
        return self if self.seed is not None else self.model_copy(update={"seed": seed})

    @property
    def draw_seed(self) -> int:
        """The seed of the draws; as the start model's where neither the settings nor a run name one."""
        return START_SEED if self.seed is None else self.seed

    @abstractmethod
    def all_questions(self) -> list[Question]:
        """All questions in order. Raises PobenchError if the source cannot be read or does not hold the benchmark's."""

    @abstractmethod
    def export(self, path: Path, answered: Sequence[Answered], model: str) -> None:
        """Write the answers in the benchmark's own format."""

    @abstractmethod
    def stand_in(self, folder: Path, questions: int) -> dict[str, Any]:
        """Write invented questions in the format of the real ones; return the settings that read them."""

    @property
    def option(self) -> str:
        """The option that names another source, for messages."""
        return f"--set benchmarks.{self.name}.source=PATH"

    def questions(self) -> list[Question]:
        found = self.all_questions()[: self.limit]
        if not found:
            raise PobenchError(f"{self.name}: {self.source!r} holds no questions")
        return found

    def unreadable(self, chat: Chat, capacity: Capacity) -> list[str]:
        """A turn's prompt holds the answers to the turns before it, each of at most `max_new_tokens`."""
        questions, new = self.questions(), self.max_new_tokens
        asked = [chat.prompt_ids(_messages(q, ["x"] * (len(q.turns) - 1))) for q in questions]
        turns = [len(q.turns) for q in questions]
        longest = max(len(ids) + count * new for ids, count in zip(asked, turns, strict=True))
        limit = min(filter(None, (capacity.positions, capacity.reach)), default=longest)
        room = min((limit - len(ids)) // count for ids, count in zip(asked, turns, strict=True))
        remedy = f"set benchmarks.{self.name}.max_new_tokens={room}" if room > 0 else f"leave {self.name} out"
        answers = f"{max(turns)} answers" if max(turns) > 1 else "its answer"
        what = f"benchmarks.{self.name}: the longest question and {answers} of {new} new tokens"
        shares = unknown_shares(
            {"question": [chat.prompt_ids(turn) for q in questions for turn in q.turns]}, chat.unknown
        )
        unknown = unknown_fault(f"benchmarks.{self.name}", shares)
        return [*filter(None, [unknown]), *capacity.faults(Extent(max(map(max, asked)), longest), what, chat, remedy)]

    def _answer_causes(self, questions: Sequence[Question], spoken: Spoken) -> dict[str, Any]:
        decoding = {"max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        if any(q.temperature > 0 for q in questions):
            decoding |= {"top_p": self.top_p, "seed": self.draw_seed}
        asked = fingerprint(json.dumps([[q.id, q.turns, q.temperature] for q in questions]))
        return {**decoding, "questions": asked, "rendering": spoken.rendering, "precision": spoken.precision}

    def answers_folder(self, run: Path, questions: Sequence[Question], spoken: Spoken) -> Path:
        return run / "benchmarks" / self.name / name_of(self._answer_causes(questions, spoken))

    def _answer(self, run: Path, questions: Sequence[Question], speaker: Speaker) -> list[Answered] | None:
        """All answers, in the first of the processes that evaluate the run; None in the others, once nothing is left to answer.
        Stored answers are not generated again."""
        folder = self.answers_folder(run, questions, speaker.spoken)
        complete = folder / "answers.jsonl"
        made_from = {**self._answer_causes(questions, speaker.spoken), "weights": speaker.spoken.weights}

        def stored() -> bool:
            return holds(folder, made_from, complete.name)

        if speaker.share.first:
            _tell(speaker, claim(folder, made_from, OTHER_WEIGHTS))
        if not stored():
            of_shards = run / f".{self.name}-{folder.name}.shards"
            rows = self._by_shards(of_shards, made_from, questions, speaker, stored)
            if rows is None:
                return None
            self._write_config(folder)
            write_lines(complete, rows)
            finish(folder, complete.name)
            shards.remove(of_shards)
        elif speaker.share.first:
            self._keep_config(folder)
        return read_answers(complete, questions) if speaker.share.first else None

    def _by_shards(
        self,
        folder: Path,
        made_from: Mapping[str, Any],
        questions: Sequence[Question],
        speaker: Speaker,
        stored: Callable[[], bool],
    ) -> list[dict[str, Any]] | None:
        """The stored rows of all questions, in order. A shard holds whole batches of questions of one temperature, with all
        their turns, since each turn stands behind the answers to those before it. folder: of the shards. stored: whether the
        answers are."""
        of_id = {question.id: question for question in questions}
        batches = []
        for _, group in groupby(sorted(questions, key=_temperature), key=_temperature):
            asked = list(group)
            prompts = [speaker.chat.prompt_ids(_messages(q, [])) for q in asked]
            batches += [[asked[i].id for i, _ in batch] for batch in batches_of(prompts, 1, speaker.batch_size)]
        cut = shards.deal(batches)

        def speak(k: int) -> list[dict[str, Any]]:
            return [row for batch in cut[k] for row in self._speak([of_id[name] for name in batch], speaker)]

        with speaker.progress(f"{self.name}, answers", len(questions), "questions") as advance:
            rows = shards.compute(folder, made_from, cut, speak, speaker.share, lambda done: advance(done=done), stored)
        if rows is None:
            return None
        by_id = {row["id"]: row for row in rows}
        return [by_id[question.id] for question in questions]

    def _speak(self, questions: Sequence[Question], speaker: Speaker) -> list[dict[str, Any]]:
        """The stored rows of a batch of questions, which have one temperature, generated turn by turn."""
        decoding = Decoding(
            self.max_new_tokens,
            questions[0].temperature,
            self.top_p,
            seed=self.draw_seed,
            precision=speaker.spoken.precision,
        )
        spoken: dict[str, list[Answer]] = {question.id: [] for question in questions}
        for turn in range(max(len(q.turns) for q in questions)):
            asked = [q for q in questions if turn < len(q.turns)]
            prompts = [speaker.chat.prompt_ids(_messages(q, [a.text for a in spoken[q.id]])) for q in asked]
            for answer in generate(speaker.model, speaker.chat, prompts, decoding, batch_size=speaker.batch_size):
                spoken[asked[answer.prompt].id].append(answer)
        kept = ("text", "tokens", "finished")
        return [{"id": name, **{k: [getattr(a, k) for a in turns] for k in kept}} for name, turns in spoken.items()]

    def _write_config(self, folder: Path) -> None:
        """Store all settings of the benchmark, as they were when these files were made."""
        values = {"benchmark": self.name, **self.model_dump(mode="json")}
        write_text(folder / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        finish(folder, CONFIG)

    def _keep_config(self, folder: Path) -> None:
        """Store the settings where they are not: the file was damaged."""
        if CONFIG not in manifest(folder)["files"]:
            self._write_config(folder)


class Judged(Asking):
    """A benchmark with a judge: questions → answers → verdicts → score. Subclasses implement the abstract methods."""

    judge: JudgeModel = JudgeModel()

    shape: ClassVar[Shape]
    replies: ClassVar[tuple[str, ...]]  # examples of a judge's replies for rehearsals; the last one is unreadable

    @abstractmethod
    def verdicts(self, answered: Sequence[Answered], model: str, ask: Ask) -> list[dict[str, Any]]:
        """One row per question in the benchmark's own format of stored verdicts. Calls `ask` with all requests at once."""

    @abstractmethod
    def scored(self, verdicts: Path, questions: Sequence[Question]) -> Scored:
        """The score of the stored verdicts."""

    @abstractmethod
    def by_question(self, rows: Sequence[Mapping[str, Any]]) -> list[QuestionScore]:
        """The metrics of the score that are means over questions. rows: of `verdicts`."""

    def instructions(self) -> Any:
        """What the judge reads beside the questions and the answers, as JSON: templates, reference answers."""
        return None

    def scoring(self) -> dict[str, Any]:
        """The settings that change the score of the same verdicts."""
        return {}

    # -- shared by all benchmarks

    def calls(self) -> Calls:
        asked = min(self.limit or self.shape.questions, self.shape.questions)
        spoken = float(asked * self.shape.turns * self.max_new_tokens)
        if self.judge.model is None:
            return Calls(spoken_tokens=spoken)
        requests = asked * self.shape.requests
        read = requests * (self.shape.prompt_tokens + self.shape.read * self.max_new_tokens)
        return self.judge.calls(requests, read, self.shape.reply_tokens)._replace(spoken_tokens=spoken)

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

    def packages(self) -> Mapping[str, str]:
        asks = self.judge.model is not None and self.judge.replies is None
        return {"openai": "openai"} if asks else {}

    def check_judge(self) -> None:
        """Raises PobenchError if judging lacks something, such as a file of prompts."""

    def rehearsed(self, folder: Path, questions: int, max_new_tokens: int) -> Judged:
        """A copy with a few questions, invented ones if the real ones are not on this machine, and with stored replies."""
        home = folder / self.name
        local = Path(self.source).expanduser().exists()
        write_lines(home / "replies.jsonl", [{"text": text} for text in self.replies])
        changes = {} if local else self.stand_in(home, questions)
        judge = JudgeModel(model="rehearsal", replies=str(home / "replies.jsonl"))
        limit, tokens = min(self.limit or questions, questions), min(self.max_new_tokens, max_new_tokens)
        return self.model_copy(update={**changes, "limit": limit, "max_new_tokens": tokens, "judge": judge})

    def _judge_causes(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What decides the verdicts on given answers. A judge may read more of a row: a baseline's answer, a category."""
        read = {"rows": [q.row for q in questions], "instructions": self.instructions()}
        rows = fingerprint(json.dumps(read, sort_keys=True, default=str))
        return {**self.judge.causes(), "rows": rows, "code": code_digest(type(self))}

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
        judged_from = {**self._judge_causes(questions), "answers": digest_of_answers(answers)}
        if not holds(verdicts, judged_from, "verdicts.jsonl", "score.json"):
            return False
        stored = json.loads((verdicts / "score.json").read_text(encoding="utf-8"))
        return not stored["unanswered"] and stored["scoring"] == self.scoring()

    def evaluate(self, run: Path, speaker: Speaker) -> None:
        questions = self.questions()
        answered = self._answer(run, questions, speaker)
        if answered is None:
            return
        answers = self.answers_folder(run, questions, speaker.spoken)
        digest = digest_of_answers(answers)
        for path in sorted(answers.glob("*/manifest.json")):  # of every judge: none may keep verdicts on other answers
            if causes := causes_of(path.parent):
                _tell(speaker, claim(path.parent, {**causes, "answers": digest}, OTHER_ANSWERS))
        if self.judge.model is None:
            return
        folder = self.verdicts_folder(run, questions, speaker.spoken)
        _tell(speaker, claim(folder, {**self._judge_causes(questions), "answers": digest}))
        self._keep_config(folder)
        stored = folder / "verdicts.jsonl"
        rows = _lines(stored)
        if not rows or any("error" in row for row in rows):  # earlier replies are cached: not paid for again
            rows = self.verdicts(answered, speaker.name, self._asking(self.judge.client(), speaker))
            self._write_config(folder)
            write_lines(stored, rows)
            finish(folder, "verdicts.jsonl")
        errors = [row["error"] for row in rows if "error" in row]
        by_question = self.by_question(rows)
        self._write_score(folder, self.scored(stored, questions), questions, errors, by_question)
        finish(folder, "score.json")
        _write_beside(folder, answered, rows, by_question)

    def _asking(self, client: Client | Replayed, speaker: Speaker) -> Ask:
        """The client's `ask`, with a cost estimate and a progress bar."""

        def ask(requests: Sequence[Request]) -> list[Reply]:
            speaker.say(f"{self.name}: asking {client.model}: {client.estimate(requests)}")
            with speaker.progress(f"{self.name}, {client.model}", len(requests), "verdicts") as advance:
                replies = client.ask(requests, progress=lambda done, total: advance(done=done), say=speaker.say)
            missing = [reply.missing for reply in replies if reply.missing and not reply.error]
            if missing:
                option = f"--set benchmarks.{self.name}.judge.extra.max_tokens=N"
                speaker.say(
                    f"{self.name}: {len(missing)} replies hold no answer ({missing[0]}); raise the limit: {option}"
                )
            return replies

        return ask

    def _write_score(
        self,
        folder: Path,
        scored: Scored,
        questions: Sequence[Question],
        errors: Sequence[str],
        by_question: Sequence[QuestionScore],
    ) -> None:
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
            questions=by_question,
            about={
                "unanswered": len(errors),
                "scoring": self.scoring(),
                "notes": notes,
                "values": scored.as_json(),
            },
        )


def _write_beside(
    folder: Path,
    answered: Sequence[Answered],
    verdicts: Sequence[Mapping[str, Any]],
    by_question: Sequence[QuestionScore],
) -> None:
    """Write the answers beside those of the baseline, where the benchmark has one. verdicts: of the answers, in order."""
    if not all(baseline_of(a.question.row) is not None and len(a.turns) == 1 for a in answered):
        return
    share = {one.question: one.score / 100 for one in by_question}
    rows = [
        beside_baseline(
            a.question.id, a.question.row, a.question.turns[0], a.turns[0], v, share.get(a.question.id, math.nan)
        )
        for a, v in zip(answered, verdicts, strict=True)
    ]
    write_lines(folder / BESIDE, rows)
    finish(folder, BESIDE)


def digest_of_answers(folder: Path) -> str:
    """sha256 of the finished `answers.jsonl`, as the manifest lists it."""
    return str(manifest(folder)["files"]["answers.jsonl"])


def _tell(speaker: Speaker, faults: Sequence[str]) -> None:
    for fault in faults:
        speaker.say(fault)


def _temperature(question: Question) -> float:
    return question.temperature


def _messages(question: Question, answers: Sequence[str]) -> list[dict[str, str]]:
    """The conversation up to the first turn without an answer."""
    messages = [{"role": "user", "content": question.turns[0]}]
    for answer, turn in zip(answers, question.turns[1:], strict=False):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    return messages


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file of ours; none if it is absent."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:  # the last line after a kill, or the empty end
            break
    return rows


def read_answers(path: Path, questions: Sequence[Question]) -> list[Answered]:
    """The stored answers in the order of the questions. Raises PobenchError if some are absent."""
    rows = {row["id"]: row for row in _lines(path)}
    if absent := [q.id for q in questions if q.id not in rows]:
        raise PobenchError(
            f"{path.name}: no answer to {len(absent)} of {len(questions)} questions, {absent[0]!r} first"
        )
    return [Answered(q, *(tuple(rows[q.id][name]) for name in ("text", "tokens", "finished"))) for q in questions]


def export(run: Path, to: Path, model: str) -> tuple[list[Path], list[str]]:
    """Write a run's stored answers into the folder `to` in the benchmarks' own formats. Returns the files, and the faults.

    run: the run's folder. model: the model's name in the files. Each decoding has a file of its own.
    """
    written, faults = [], []
    for stored in sorted(run.glob("benchmarks/*/*/answers.jsonl")):
        name = stored.parent.parent.name
        try:
            config = stored.with_name(CONFIG)
            if files := manifest(stored.parent).get("files"):
                checked_bytes(stored, files.get(stored.name))
                if CONFIG in files:  # earlier versions did not list it
                    checked_bytes(config, files[CONFIG])
            settings = yaml.safe_load(config.read_text(encoding="utf-8"))
            benchmark = benchmarks.get(name)(**{k: v for k, v in settings.items() if k != "benchmark"})
            path = to / f"{name}-{stored.parent.name}{benchmark.suffix}"
            benchmark.export(path, read_answers(stored, benchmark.questions()), model)
            written.append(path)
        except (PobenchError, ValidationError) as error:
            faults.append(f"{name}: {error}")
    return written, faults
