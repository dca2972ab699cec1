"""MT-Bench from stored grades: 80 questions of two turns, each answer graded alone from 1 to 10.

    score(judgments.jsonl)     one line per grade: question_id, turn, model, judge, score (or the judgment to read it from)
    write_answers(answers.jsonl)

The score is the mean of the 160 grades. -1 means that the judge's reply had no readable grade; it is dropped and counted.
The grade of a line without `score` is read from the judgment by fschat's patterns: the first `[[8]]`, else the first `[8]`.
Zheng and others 2023, arXiv 2306.05685.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pobench.files import write_text
from pobench.judging.benchmarks.verdict_files import (
    Faults,
    Line,
    Scored,
    number_of,
    numbers,
    one_of,
    only_model,
    read,
)
from pobench.results import stats
from pobench.types import Estimate

# Each category has ten questions, numbered from 81 on.
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
GUIDED = ("reasoning", "math", "coding")  # their judge reads a reference answer
QUESTIONS = range(81, 161)
TURNS = (1, 2)
GRADES = (1.0, 10.0)
# MT-Bench's judge with its two snapshots, and the second judge of the SimPO paper. No other grades get the name.
JUDGES = ("gpt-4", "gpt-4-0314", "gpt-4-0613", "gpt-4-1106-preview")
UNREAD = -1
Duplicates = Literal["last", "mean", "stop"]
REMEDY = "to count it as fschat's show_result does: --duplicates mean; --duplicates last: the last line of an answer"


class Grade(NamedTuple):
    """One grade. value: nan if none could be read."""

    question: int
    turn: int
    value: float


def category(question: int) -> str:
    """The category of a question by its number, 81 to 160."""
    return CATEGORIES[(question - QUESTIONS.start) // 10]


# ---------------------------------------------------------------- scoring
def score(judgments: Path | str, *, model: str | None = None, duplicates: Duplicates = "stop", seed: int = 0) -> Scored:
    """The score of one model. model: needed if the file holds several. Intervals are over questions.

    duplicates: what becomes of several grades of one answer and of grades of 0, which the scale lacks. "stop" refuses the
    file. Else a 0 counts as 0, and of several grades the last line counts ("last"), or all do ("mean", which fschat's
    show_result computes); the result's name says so. Raises PobenchError with all faults of the file.
    """
    grades, name, judge, odd = _read(judgments, model, duplicates)
    read_ = [g for g in grades if not math.isnan(g.value)]
    whole = _mean(read_, seed)
    turns = {t: _mean([g for g in read_ if g.turn == t], seed) for t in TURNS}
    categories = {c: _mean([g for g in read_ if category(g.question) == c], seed) for c in CATEGORIES}
    dropped, wanted = len(grades) - len(read_), len(QUESTIONS) * len(TURNS)
    absent = sorted({(q, t) for q in QUESTIONS for t in TURNS} - {(g.question, g.turn) for g in grades})
    notes = [*odd]
    if dropped:
        notes.append(f"{dropped} of {len(grades)} grades could not be read (-1): dropped")
    if absent:
        notes.append(f"{len(absent)} of {wanted} grades are absent: {numbers('question', [q for q, _ in absent])}")
    part = f" ({wanted - len(absent)} of {wanted} grades)" if absent else ""
    part += f" (with {' and '.join(odd)})" if odd else ""
    label = f"MT-Bench{part}"
    if judge not in JUDGES:
        label = f"MT-Bench's questions{part}, judged by {judge or 'an unnamed judge'}: not MT-Bench"
    lines = [
        Line("Score, 1 to 10", whole, note=f"mean of {len(read_)} grades", metric="score"),
        *(Line(f"Turn {turn}", estimate, metric=f"turn_{turn}") for turn, estimate in turns.items()),
        *(Line(c.capitalize() if c != "stem" else "STEM", e, metric=c) for c, e in categories.items()),
    ]
    values = {
        "score": whole.value,
        "interval": [whole.low, whole.high],
        "n": len(read_),
        "questions": whole.n,
        "dropped": dropped,
        "absent": len(absent),
        "duplicates": duplicates,
        "turns": turns,
        "categories": categories,
    }
    return Scored(label, name, judge, tuple(lines), values, tuple(notes))


def _mean(grades: list[Grade], seed: int) -> Estimate:
    """The mean grade; the two turns of a question are resampled together."""
    values = [g.value for g in grades]
    bounds = (min([GRADES[0], *values]), GRADES[1])
    return stats.ratio(values, [1.0] * len(grades), [g.question for g in grades], bounds=bounds, seed=seed)


# ---------------------------------------------------------------- reading
def rating(judgment: str) -> float:
    """The grade in a judge's reply by fschat's patterns; nan if there is none from 1 to 10."""
    common = fschat()
    found = common.one_score_pattern.search(judgment) or common.one_score_pattern_backup.search(judgment)
    try:
        value = float(ast.literal_eval(found[1])) if found else math.nan
    except (SyntaxError, ValueError):  # "[[08]]" is not a Python number
        value = math.nan
    return value if GRADES[0] <= value <= GRADES[1] else math.nan


@functools.cache
def fschat() -> Any:
    """fschat's judge code, imported without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fastchat.llm_judge import common
    return common


def _read(path: Path | str, wanted: str | None, duplicates: Duplicates) -> tuple[list[Grade], str, str, list[str]]:
    """The grades, the model, the judge, and what `duplicates` decided."""
    rows, faults = read(path, ("question_id", "turn", "model"), ("judge", "score", "judgment", "user_prompt", "tstamp"))
    rows, model = only_model(rows, wanted, faults)
    grades: list[Grade] = []
    seen: dict[tuple[int, int], int] = {}
    for row in rows:
        number = row["#row"]
        question = _whole(row, "question_id", QUESTIONS, faults)
        turn = _whole(row, "turn", TURNS, faults)
        value = _value(row, faults, zero=duplicates != "stop")
        if question is None or turn is None:
            continue
        if seen.setdefault((question, turn), number) != number and duplicates == "stop":
            where = f"question {question}, turn {turn} stands in row {seen[question, turn]} already"
            faults.add(number, "turn", f"{where}; {REMEDY}")
        grades.append(Grade(question, turn, value))
    judge = one_of([(row["#row"], _judge(row, faults)) for row in rows], "judge", faults)
    faults.refuse()
    repeated = len(grades) - len(seen)
    if duplicates == "last":
        grades = [*{(g.question, g.turn): g for g in grades}.values()]
    zeros = sum(g.value == 0 for g in grades)
    kept = "the last counts" if duplicates == "last" else "all count"
    odd = [f"{repeated} repeated grades, of which {kept}"] if repeated else []
    return grades, model, judge, odd + ([f"{zeros} grades of 0"] if zeros else [])


def _whole(row: Mapping[str, Any], name: str, allowed: range | tuple[int, ...], faults: Faults) -> int | None:
    value = row.get(name)
    if isinstance(value, str) and value.isascii() and value.isdigit():  # a CSV's cell
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value in allowed:
        return value
    if name in row:
        faults.add(row["#row"], name, f"a whole number from {min(allowed)} to {max(allowed)} is needed", value)
    return None


def _value(row: Mapping[str, Any], faults: Faults, zero: bool) -> float:
    """The stored grade, else the grade in the judgment; nan if none could be read. zero: take a stored 0."""
    if "score" not in row:
        judgment = row.get("judgment")
        if isinstance(judgment, str):
            return rating(judgment)
        faults.add(row["#row"], "score", "missing, and there is no judgment to read it from")
        return math.nan
    number = number_of(row["score"])
    if number == UNREAD or math.isnan(number):
        return math.nan
    if not GRADES[0] <= number <= GRADES[1] and not (zero and number == 0):
        remedy = f"; {REMEDY}" if number == 0 else ""
        problem = f"a number from 1 to 10 is needed, or -1 where none could be read{remedy}"
        faults.add(row["#row"], "score", problem, row["score"])
        return math.nan
    return number


def _judge(row: Mapping[str, Any], faults: Faults) -> str:
    """The judge's name; fschat stores it beside the name of the prompt: ["gpt-4", "single-v1"]."""
    value = row.get("judge") or ""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0]
    if isinstance(value, str):
        return value
    faults.add(row["#row"], "judge", "a name, or a list that begins with one, is needed", value)
    return ""


# ---------------------------------------------------------------- answers, for a judge
def write_answers(path: Path, answers: Mapping[int, tuple[str, str]], *, model: str) -> None:
    """Write a model's answers in MT-Bench's own format, one line per question.

    answers: question number → the answers of both turns. Raises PobenchError unless all 80 questions and no others have
    answers.
    """
    faults = Faults(f"MT-Bench's answers of {model!r}")
    if strangers := sorted(set(answers) - set(QUESTIONS)):
        faults.add(0, "question_id", f"{numbers('number', strangers)}: questions are 81 to 160")
    if absent := sorted(set(QUESTIONS) - set(answers)):
        faults.add(0, "question_id", f"no answer to {numbers('question', absent)}")
    faults.refuse()
    lines = []
    for question in QUESTIONS:
        turns = list(answers[question])
        mark = hashlib.sha256(json.dumps([model, question, turns]).encode()).hexdigest()[:22]
        choices = [{"index": 0, "turns": turns}]
        lines.append({"question_id": question, "answer_id": mark, "model_id": model, "choices": choices})
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
