"""ZeroEval on a stored run: GSM8K and MMLU-Redux, zero-shot, answered in the model's own chat template as reasoning and answer
in JSON. The SimPO paper's Appendix J takes its zero-shot numbers (Tables 16 and 17) from it.

    questions → prompts of zeroeval.txt → greedy answers of at most 4096 tokens → the `answer` of their JSON → right or wrong

    <run>/benchmarks/zeroeval/<12 hex>/            answers.jsonl
    <run>/benchmarks/zeroeval/<12 hex>/<12 hex>/   score.json

It asks no judge. lm-eval's zero-shot tasks (`downstream`) are another protocol: likelihoods of letters, no chat template.

Questions come from the hub, or from a folder with `gsm.jsonl` and `mmlu-redux.jsonl` in the columns of the hub's:

    gsm: id, question, answer ("# 18", or GSM8K's own text with "#### 18")     mmlu-redux: id, question, choices, correct_answer
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, field_validator

from pobench.data.rows import Fault, read_rows
from pobench.errors import PobenchError, nearest
from pobench.files import write_json
from pobench.identity import name_of, room_digest
from pobench.judging.benchmarks import zeroeval_score
from pobench.judging.benchmarks.base import (
    Answered,
    Asking,
    Calls,
    Question,
    QuestionScore,
    Result,
    Speaker,
    Spoken,
    digest_of_answers,
    write_lines,
    write_result,
)
from pobench.judging.benchmarks.downstream import passage_of
from pobench.judging.benchmarks.verdict_files import Faults, fingerprint
from pobench.registry import register_benchmark
from pobench.results import stats
from pobench.results.manifest import claim, finish, holds
from pobench.settings.schema import Count
from pobench.sources import fetch_rows


class Task(NamedTuple):
    """configuration: of the data set. questions: how many it has. columns: those that are read."""

    configuration: str
    questions: int
    columns: tuple[str, ...]


TASKS = {
    "gsm8k": Task("gsm", 1319, ("question", "answer")),
    "mmlu_redux": Task("mmlu-redux", 2778, ("question", "choices", "correct_answer")),
}
ENDINGS = (".jsonl", ".json", ".parquet")


@register_benchmark("zeroeval", aliases=("zero_eval",))
class ZeroEval(Asking):
    """Zero-shot GSM8K and MMLU-Redux, answered as JSON."""

    limited: ClassVar[str] = "at most {limit} questions a task"
    suffix: ClassVar[str] = ".json"

    source: str = "yuchenlin/zero-eval"  # the hub's data set, or a folder
    tasks: list[str] = Field(list(TASKS), min_length=1)
    max_new_tokens: Count = 4096  # ZeroEval's

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
        unknown = [n for n in names if n not in TASKS] if isinstance(names, list) else []
        if unknown:
            raise ValueError(f"unknown task {unknown[0]!r}{nearest(str(unknown[0]), TASKS)} Known: {', '.join(TASKS)}")
        return names

    # -- questions

    def all_questions(self) -> list[Question]:
        """The questions of all tasks, of each at most `limit`. Raises PobenchError that lists the rows without one."""
        return [question for task in self.tasks for question in self._of(task)[: self.limit]]

    def questions(self) -> list[Question]:
        if not (found := self.all_questions()):
            raise PobenchError(f"zeroeval: {self.source!r} holds no questions")
        return found

    def _of(self, task: str) -> list[Question]:
        columns, faults = TASKS[task].columns, Faults(f"{self.source}, {TASKS[task].configuration}")
        found: list[Question] = []
        for number, row in read_rows(self._files(task)):
            if isinstance(row, Fault):
                faults.add(number, row.field, row.problem)
            elif absent := [name for name in columns if not row.get(name)]:
                faults.add(number, absent[0], "missing or empty")
            elif task == "mmlu_redux" and row["correct_answer"] not in row["choices"]:
                faults.add(number, "correct_answer", "it is none of the choices", row["correct_answer"])
            else:
                name = str(row.get("id") or f"{task}-{number}")
                kept = {**row, "task": task, "id": name}
                found.append(Question(name, (prompt_of(task, row),), kept, self.temperature))
        faults.refuse()
        return found

    def _files(self, task: str) -> Any:
        configuration = TASKS[task].configuration
        folder = Path(self.source).expanduser()
        own = [folder / f"{configuration}{ending}" for ending in ENDINGS]
        if file := next((path for path in own if path.is_file()), None):
            return fetch_rows(str(file))
        return fetch_rows(self.source, split="test", subset=configuration, option=self.option, section="")

    # -- the pass

    def faults(self) -> list[str]:
        try:
            self.questions()
        except PobenchError as error:
            return [f"benchmarks.{self.name}: {error}"]
        return []

    def calls(self) -> Calls:
        asked = sum(min(TASKS[task].questions, self.limit or TASKS[task].questions) for task in self.tasks)
        return Calls(spoken_tokens=float(asked * self.max_new_tokens))

    def _score_causes(self, questions: Sequence[Question]) -> dict[str, Any]:
        rows = fingerprint(json.dumps([question.row for question in questions], sort_keys=True, default=str))
        return {"rows": rows, "code": room_digest(__file__, zeroeval_score.__file__)}

    def _folders(self, run: Path, questions: Sequence[Question], spoken: Spoken) -> tuple[Path, Path]:
        """Of the answers, and of their score."""
        answers = self.answers_folder(run, questions, spoken)
        return answers, answers / name_of(self._score_causes(questions))

    def done(self, run: Path, spoken: Spoken) -> bool:
        if not (run / "benchmarks" / self.name).is_dir():
            return False
        questions = self.questions()
        answers, scores = self._folders(run, questions, spoken)
        made_from = {**self._answer_causes(questions, spoken), "weights": spoken.weights}
        if not holds(answers, made_from, "answers.jsonl"):
            return False
        scored_from = {**self._score_causes(questions), "answers": digest_of_answers(answers)}
        return holds(scores, scored_from, "score.json")

    def evaluate(self, run: Path, speaker: Speaker) -> None:
        questions = self.questions()
        answered = self._answer(run, questions, speaker)
        if answered is None:
            return
        answers, scores = self._folders(run, questions, speaker.spoken)
        claim(scores, {**self._score_causes(questions), "answers": digest_of_answers(answers)})
        self._write_config(scores)
        self._write_score(scores, answered)
        finish(scores, "score.json")

    def _write_score(self, folder: Path, answered: Sequence[Answered]) -> None:
        rows: list[Result] = []
        of_questions: list[QuestionScore] = []
        for task in self.tasks:
            own = [one for one in answered if one.question.row["task"] == task]
            read = [zeroeval_score.answer_of(one.turns[0]) for one in own]
            right = [is_right(one.question.row, text) for one, text in zip(own, read, strict=True)]
            passages = [passage_of(task, one.question.row) for one in own]
            groups = [passage or one.question.id for passage, one in zip(passages, own, strict=True)]
            rows += [
                _result(task, right, groups),
                _result(f"{task}_no_answer", [text is None for text in read], groups),
            ]
            of_questions += [
                QuestionScore(task, one.question.id, 100.0 * correct, group=passage)
                for one, correct, passage in zip(own, right, passages, strict=True)
            ]
        write_result(
            folder,
            benchmark=self.name,
            name=self._called(answered),
            judge="",
            asked=len(answered),
            limit=self.limit,
            rows=rows,
            questions=of_questions,
            about={"tasks": list(self.tasks), "notes": []},
        )

    def _called(self, answered: Sequence[Answered]) -> str:
        """The result's name: ZeroEval's only with its own decoding and as many questions as it has."""
        wanted, asked = sum(TASKS[task].questions for task in self.tasks), len(answered)
        own = (self.max_new_tokens, self.temperature) == (type(self).model_fields["max_new_tokens"].default, 0.0)
        if own and asked == wanted:
            return "ZeroEval"
        return f"ZeroEval's prompts ({asked} of {wanted} questions{'' if own else ', another decoding'}): not ZeroEval"

    def export(self, path: Path, answered: Sequence[Answered], model: str) -> None:
        """In the form of ZeroEval's `result_dirs`."""
        fields = [{k: v for k, v in one.question.row.items() if k != "task"} for one in answered]
        spoken = [
            {"output": list(one.turns), "generator": model, "chat_history": list(one.question.turns)}
            for one in answered
        ]
        write_json(path, [{**row, **said} for row, said in zip(fields, spoken, strict=True)])

    # -- rehearsal

    def stand_in(self, folder: Path, questions: int) -> dict[str, Any]:
        makers = {"gsm8k": _sum, "mmlu_redux": _choice}
        for task, make in makers.items():
            write_lines(folder / f"{TASKS[task].configuration}.jsonl", [make(i) for i in range(questions)])
        return {"source": str(folder)}

    def rehearsed(self, folder: Path, questions: int, max_new_tokens: int) -> ZeroEval:
        """A copy with a few short answers, to invented questions if the real ones are not on this machine."""
        local = Path(self.source).expanduser().exists()
        changes = {} if local else self.stand_in(folder / self.name, questions)
        limit, tokens = min(self.limit or questions, questions), min(self.max_new_tokens, max_new_tokens)
        return self.model_copy(update={**changes, "limit": limit, "max_new_tokens": tokens})


def prompt_of(task: str, row: Mapping[str, Any]) -> str:
    """The prompt of a question, as ZeroEval writes it."""
    letters = "".join(f"- ({ascii_uppercase[i]}) {choice}\n" for i, choice in enumerate(row.get("choices") or ()))
    return _templates()[task].replace("{question}", row["question"]).replace("{choices}", letters)


def is_right(row: Mapping[str, Any], answer: str | None) -> bool:
    """Whether an answer, None for none, is the one that the question's row gives."""
    if answer is None:
        return False
    if row["task"] == "gsm8k":
        truth = str(row["answer"]).rpartition("####")[2].replace("#", "")
        return zeroeval_score.same_number(answer, truth)
    return zeroeval_score.is_choice(answer, ascii_uppercase[row["choices"].index(row["correct_answer"])])


@functools.cache
def _templates() -> dict[str, str]:
    """Task → its prompt, with {question} and {choices}."""
    text = importlib.resources.files("pobench.judging").joinpath("zeroeval.txt").read_text(encoding="utf-8")
    sections = [section.partition("\n") for section in text.split("\n@@ ")[1:]]
    return {task: prompt if prompt.endswith("\n") else prompt + "\n" for task, _, prompt in sections}


def _result(metric: str, right: Sequence[bool], groups: Sequence[str]) -> Result:
    """A share in percent, with its interval; questions about one passage are resampled together."""
    if len(set(groups)) == len(groups):
        estimate = stats.proportion(sum(right), len(right))
    else:
        estimate = stats.mean([float(value) for value in right], groups=list(groups), bounds=stats.UNIT)
    return Result(metric, 100 * estimate.value, 100 * estimate.low, 100 * estimate.high, estimate.n)


def _sum(i: int) -> dict[str, Any]:
    return {"id": f"gsm-{i}", "question": f"Ann has {i} pens and buys 2. How many?", "answer": f"# {i + 2}"}


def _choice(i: int) -> dict[str, Any]:
    choices = ["a pea", "a plum", "a pear", "a pumpkin"]
    return {"id": f"mmlu-{i}", "question": f"Which is largest? ({i})", "choices": choices, "correct_answer": choices[3]}
