"""AlpacaEval 2 on a stored run: answer its 805 instructions, and judge them with alpaca_eval's own annotator.

The annotator is `weighted_alpaca_eval_gpt4_turbo` of the installed package. The prompt, the order of the two answers (drawn
by a hash of the instruction, and undone afterwards) and the parser of one token's probabilities are the package's:

    preference = 2 - P(m) / (P(m) + P(M))       1: the baseline is better, 2: ours is

This file only replaces its connection to the judge. It asks all questions at once, writes no file and keeps no cache.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import yaml

from pobench.judging.benchmarks import alpaca_eval_score as alpaca_eval
from pobench.judging.benchmarks.base import Answered, Ask, Judged, Question, QuestionScore, Shape, write_lines
from pobench.judging.benchmarks.verdict_files import Faults, Scored, fingerprint, fingerprints, read, text_of
from pobench.judging.client import Request
from pobench.judging.replies import Reply
from pobench.registry import register_benchmark
from pobench.sources import fetch_file

ANNOTATOR = "weighted_alpaca_eval_gpt4_turbo"
FILES = ("alpaca_eval_gpt4_baseline.json", "reference/alpaca_eval_gpt4_baseline.json")
LETTERS = ("m", "M")  # the annotator's names of the first and the second answer
SEED = 0  # the default of alpaca_eval's annotators


@register_benchmark("alpaca_eval", aliases=("alpaca_eval_2", "alpacaeval2"))
class AlpacaEval(Judged):
    """805 single-turn instructions against gpt4_1106_preview."""

    shape: ClassVar[Shape] = Shape(805, 1, 1, 870, 1, 1)
    suffix: ClassVar[str] = ".json"
    replies: ClassVar[tuple[str, ...]] = ("m", "M", "Both")

    source: str = alpaca_eval.HUB  # with the baseline's answers: a file, a folder with it, or a hub data set
    length_control: str | None = None  # a folder with df_gamed.csv; None: the hub
    length_only: bool = False  # allow other prompts or another baseline, without LC

    def scoring(self) -> dict[str, Any]:
        return {"length_control": self.length_control, "length_only": self.length_only}

    def all_questions(self) -> list[Question]:
        """The instructions with the baseline's answers. Raises PobenchError unless they are the 805 in order."""
        path = Path(self.source).expanduser()
        rows, faults = read(
            path if path.is_file() else fetch_file(self.source, *FILES, option=self.option), ("instruction", "output")
        )
        for row in rows:
            for name in ("instruction", "output"):
                text_of(row, name, faults)
        faults.refuse()
        if not self.length_only:
            _check_order(rows, path.name)
        return [Question(str(i), (row["instruction"],), row, self.temperature) for i, row in enumerate(rows)]

    def packages(self) -> Mapping[str, str]:
        own = {"alpaca_eval": "alpaca-eval", "sklearn": "scikit-learn", "packaging": "packaging"}
        return {**super().packages(), **({} if self.judge.model is None else own)}

    def check_judge(self) -> None:
        _annotator(lambda prompts, **_: {})

    def verdicts(self, answered: Sequence[Answered], model: str, ask: Ask) -> list[dict[str, Any]]:
        """Annotations in alpaca_eval's columns, and `raw_completion`: the reply, or `error`: why there is none."""
        judge = str(self.judge.model)
        replies: list[Reply] = []

        def complete(prompts: Sequence[str], max_tokens: int, temperature: float, top_logprobs: int, **_: Any) -> Any:
            chatml = alpaca_eval.module("utils").prompt_to_chatml
            messages = [tuple(chatml(prompt)) for prompt in prompts]
            replies.extend(ask([Request(m, max_tokens, temperature, logprobs=top_logprobs) for m in messages]))
            unknown = [math.nan] * len(replies)
            about = {"price_per_example": unknown, "time_per_example": unknown}
            return {
                "completions": [r.answer for r in replies],
                "completions_all": [*map(_completion, replies)],
                **about,
            }

        texts = {
            "instruction": [_inert(a.question.turns[0]) for a in answered],
            "output_1": [_inert(a.question.row["output"]) for a in answered],
            "output_2": [_inert(a.turns[0]) for a in answered],
        }
        pairs = pd.DataFrame(texts, dtype=object)
        differ = pairs[
            pairs["output_1"] != pairs["output_2"]
        ]  # alpaca_eval counts equal answers as ties, without a request
        with _quiet():
            preferences = _annotator(complete)(differ)["preference"] if len(differ) else pd.Series(dtype=float)
        reply_of = dict(zip(differ.index, replies, strict=True))
        rows = []
        for place, a in enumerate(answered):
            preference = float(preferences.get(place, math.nan)) if place in reply_of else 1.5
            rows.append(
                {
                    "instruction": a.question.turns[0],
                    "output_1": a.question.row["output"],
                    "generator_1": self._baseline(a.question),
                    "output_2": a.turns[0],
                    "generator_2": model,
                    "annotator": judge,
                    "preference": None if math.isnan(preference) else preference,
                    **_said(reply_of.get(place)),
                }
            )
        return rows

    def _baseline(self, question: Question) -> str:
        return str(question.row.get("generator") or alpaca_eval.BASELINE)

    def stand_in(self, folder: Path, questions: int) -> dict[str, Any]:
        rows = [
            {
                "instruction": f"Explain {i} to a child.",
                "output": f"{i} is a number.",
                "generator": alpaca_eval.BASELINE,
            }
            for i in range(questions)
        ]
        write_lines(folder / "baseline.jsonl", rows)
        return {"source": str(folder / "baseline.jsonl"), "length_only": True}

    def scored(self, verdicts: Path, questions: Sequence[Question]) -> Scored:
        whole = len(questions) == len(fingerprints("alpaca_eval")) and not self.length_only
        folder = None if self.length_control is None else Path(self.length_control).expanduser()
        return alpaca_eval.score(verdicts, length_control=folder, length_only=not whole)

    def by_question(self, rows: Sequence[Mapping[str, Any]]) -> list[QuestionScore]:
        """The raw win rate by the instruction's place among all. LC is a fitted number, and no mean over instructions."""
        preferences = (math.nan if row["preference"] is None else row["preference"] for row in rows)
        return [QuestionScore("win_rate", str(place), 100 * (p - 1.0)) for place, p in enumerate(preferences)]

    def export(self, path: Path, answered: Sequence[Answered], model: str) -> None:
        alpaca_eval.write_answers(path, {a.question.turns[0]: a.turns[0] for a in answered}, model=model)


def _check_order(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Check the order and the baseline's answers: LC looks up an instruction's difficulty by its place among the 805."""
    table = fingerprints("alpaca_eval")
    faults = Faults(name)
    remedy = "; for other prompts or another baseline: benchmarks.alpaca_eval.length_only=true"
    if len(rows) != len(table):
        faults.add(0, "", f"{len(table)} rows are needed, one for each instruction; got {len(rows)}{remedy}")
    for row, marks in zip(rows, table, strict=False):
        for field, mark in zip(("instruction", "output"), marks, strict=True):
            if fingerprint(row[field]) != mark:
                faults.add(row["#row"], field, f"not what AlpacaEval has in this place{remedy}")
    faults.refuse()


# ---------------------------------------------------------------- alpaca_eval's annotator
def _annotator(complete: Any) -> Any:
    """alpaca_eval's annotator with our connection."""
    configs = Path(alpaca_eval.module("constants").EVALUATORS_CONFIG_DIR)
    settings = yaml.safe_load((configs / ANNOTATOR / "configs.yaml").read_text(encoding="utf-8"))[ANNOTATOR]
    kind = alpaca_eval.module("annotators.pairwise_evaluator").SinglePairwiseAnnotator
    # keep the rows in order, and make no column of raw replies: we add the replies ourselves
    changes = {"fn_completions": complete, "seed": SEED, "is_shuffle": False, "completion_column": None}
    return kind(**{**settings, **changes}, base_dir=configs, packages_for_which_to_show_version=None)


def _completion(reply: Reply) -> dict[str, Any]:
    """The reply in the form that alpaca_eval's parser reads. Without log-probabilities its text gets probability 1, and so does
    a text other than m and M: a first token that begins something else is no verdict, however likely m and M were beside it.
    A failed request has no tokens."""
    letter = reply.answer in LETTERS
    top = reply.top if letter and reply.top else ({} if reply.error else {reply.answer: 0.0})
    tokens = [{"token": token, "logprob": logprob} for token, logprob in top.items()]
    return {"logprobs": {"content": [{"top_logprobs": tokens}]}, "text": reply.answer, "total_tokens": 0}


def _said(reply: Reply | None) -> dict[str, Any]:
    if reply is None:
        return {}
    return {"error": reply.error} if reply.error else {"raw_completion": reply.text, "logprobs": dict(reply.top)}


def _inert(text: str) -> str:
    """The text with ChatML marks broken up, so that it cannot end its turn in the judge's prompt."""
    return text.replace("<|im_start|>", "<| im_start |>").replace("<|im_end|>", "<| im_end |>")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress alpaca_eval's warning for every unreadable reply; they are counted."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
