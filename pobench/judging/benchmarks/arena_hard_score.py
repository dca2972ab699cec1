"""Arena-Hard v0.1 from stored judgments: 500 questions, two games each, against gpt-4-0314.

    score(judgments.jsonl)     one line per question: question_id (or uid), model, judge, games: [{score, judgment}, …]
    write_answers(answers.jsonl)

In the first game the baseline is A, in the second it is B. A verdict is one of VERDICTS; `>>` counts three battles.

    score = Σ battles · result / Σ battles,   result = 1 won, 0.5 tied, 0 lost

With one common baseline this equals the Bradley-Terry fit that defines the benchmark, converted to a win rate.
A game without a readable verdict (null, another text, several different verdicts) is dropped and counted.
Li and others 2024, arXiv 2406.11939.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pobench.errors import PobenchError
from pobench.files import write_text
from pobench.judging.benchmarks.verdict_files import (
    Faults,
    Line,
    Scored,
    fingerprint,
    fingerprints,
    numbers,
    one_of,
    only_model,
    read,
    scaled,
)
from pobench.results import stats
from pobench.types import Estimate

BASELINE = "gpt-4-0314"
JUDGES = ("gpt-4-1106-preview",)  # of arena-hard-v0.1.yaml; no other verdicts get the name
ROUNDS = 100  # of the published interval
# verdict → (result of A, battles)
VERDICTS = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
_IDS = ("question_id", "uid")


class Game(NamedTuple):
    """One game with a readable verdict. place: 0 if the model was B, 1 if it was A. result: the model's, 0 to 1."""

    question: str
    place: int
    result: float
    battles: int


# ---------------------------------------------------------------- scoring
def score(judgments: Path | str, *, model: str | None = None, seed: int = 0) -> Scored:
    """The score of one model in percent. model: needed if the file holds several.

    There are two intervals: the published kind (percentiles of 100 bootstraps over battles, which treats repeated battles
    and the two games of a question as independent), and ours over questions. Raises PobenchError with all faults of the
    file.
    """
    games, unread, questions, name, judge = read_games(judgments, model)
    battles = np.array([g.battles for g in games], dtype=float)
    results = np.array([g.result for g in games], dtype=float)
    asked = [g.question for g in games]
    by_question = scaled(stats.ratio(battles * results, battles, asked, bounds=stats.UNIT, seed=seed), 100)
    published = _published(results, battles, seed)
    flips = scaled(_flips(games), 100)
    notes = []
    if unread:
        notes.append(f"{unread} of {unread + len(games)} games have no readable verdict: dropped")
    lines = (
        Line("Score, %", by_question, note="interval over questions", metric="win_rate"),
        Line("Score, %", published, note=f"interval as published: {ROUNDS} bootstraps over battles"),
        Line("Position flips, %", flips, ".1f", "questions whose two games name opposite winners", "position_flips"),
    )
    values = {
        "score": by_question.value,
        "n": by_question.n,
        "interval_questions": [by_question.low, by_question.high],
        "interval_published": [published.low, published.high],
        "battles": int(battles.sum()),
        "games": len(games),
        "dropped": unread,
        "position_flips": flips,
        "baseline": BASELINE,
    }
    return Scored(label(questions, judge), name, judge, lines, values, tuple(notes))


def _published(results: np.ndarray, battles: np.ndarray, seed: int) -> Estimate:
    """The score with the 2.5th and 97.5th percentiles over resampled battles. Only the results of the battles matter."""
    kinds, index = np.unique(results, return_inverse=True)
    counts = np.bincount(index, battles) if len(results) else np.zeros(0)
    total = counts.sum()
    if total == 0:
        return Estimate.missing()
    drawn = np.random.default_rng(seed).multinomial(int(total), counts / total, size=ROUNDS) @ kinds / total * 100
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(counts @ kinds / total * 100), float(low), float(high), int(total))


def _flips(games: list[Game]) -> Estimate:
    """The share of questions whose two games have opposite winners, among those with two readable games. There the judge
    chose by position."""
    results: dict[str, list[float]] = {}
    for game in games:
        results.setdefault(game.question, []).append(game.result)
    both = [r for r in results.values() if len(r) == 2]
    return stats.proportion(sum(sorted(r) == [0.0, 1.0] for r in both), len(both))


def label(questions: set[str], judge: str) -> str:
    """The name of a result over these questions: the benchmark's only where questions and judge are its own."""
    known = {row[0] for row in fingerprints("arena_hard")}
    asked = {fingerprint(q) for q in questions}
    if not asked <= known:
        return "Arena-Hard's scoring on other questions: not Arena-Hard"
    part = "" if asked == known else f" ({len(asked)} of {len(known)} questions)"
    if judge not in JUDGES:
        return f"Arena-Hard v0.1's questions{part}, judged by {judge or 'an unnamed judge'}: not Arena-Hard"
    return f"Arena-Hard v0.1{part}"


# ---------------------------------------------------------------- reading
def verdict(judgment: str) -> str | None:
    """The verdict in a judge's reply, such as `[[A>B]]`; None if there is none, or if several differ."""
    found = set(_LABEL.findall(judgment))
    return found.pop() if len(found) == 1 else None


def share_won(games: Sequence[Mapping[str, Any]]) -> float:
    """The model's share of a question's battles; nan without a readable game. games: two with `score`, the model as B, then
    as A."""
    won = total = 0.0
    for place, game in enumerate(games):
        if game["score"] in VERDICTS:
            result, battles = VERDICTS[game["score"]]
            won, total = won + battles * (result if place else 1.0 - result), total + battles
    return won / total if total else math.nan


def read_games(path: Path | str, wanted: str | None) -> tuple[list[Game], int, set[str], str, str]:
    """The readable games, the number of unreadable ones, the questions, the model, the judge."""
    rows, faults = read(path, ("model", "games"), (*_IDS, "judge", "category", "baseline"))
    rows, model = only_model(rows, wanted, faults)
    games: list[Game] = []
    unread = 0
    first_seen: dict[str, int] = {}
    for row in rows:
        question = _question(row, faults)
        if question and first_seen.setdefault(question, row["#row"]) != row["#row"]:
            faults.add(row["#row"], "question_id", f"stands in row {first_seen[question]} already", question)
        if row.get("baseline", BASELINE) != BASELINE:
            faults.add(row["#row"], "baseline", f"v0.1 has {BASELINE!r}", row["baseline"])
        played = row.get("games", [])
        if not isinstance(played, list) or len(played) != 2:
            if "games" in row:
                faults.add(row["#row"], "games", "a list of two games is needed, in swapped order", played)
            continue
        for place, game in enumerate(played):
            label = _game(row["#row"], place, game, faults)
            if label not in VERDICTS:
                unread += 1
                continue
            result, battles = VERDICTS[label]
            games.append(Game(question, place, result if place else 1.0 - result, battles))
    judge = one_of([(r["#row"], str(r.get("judge") or "")) for r in rows], "judge", faults)
    faults.refuse()
    return games, unread, set(first_seen), model, judge


def _question(row: Mapping[str, Any], faults: Faults) -> str:
    name = next((name for name in _IDS if name in row), None)
    if name is None:
        faults.add(row["#row"], "question_id", "missing (newer files call it 'uid')")
        return ""
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        faults.add(row["#row"], name, "a text or a number is needed", value)
        return ""
    return str(value)


def _game(row: int, place: int, game: Any, faults: Faults) -> str:
    """The verdict of one game; "" if none could be read. A stored score has priority over the judge's text."""
    name = f"games[{place}]"
    if game is None:
        return ""
    if not isinstance(game, dict) or not {"score", "judgment"} & game.keys():
        faults.add(row, name, "an object with 'score' or 'judgment' is needed", game)
        return ""
    text = game.get("judgment")
    text = text.get("answer") if isinstance(text, dict) else text
    in_text = verdict(text) if isinstance(text, str) else None
    if "score" not in game:
        return in_text or ""
    label = game["score"]
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return ""
    if not isinstance(label, str):
        faults.add(row, f"{name}.score", f"one of {', '.join(VERDICTS)} is needed, or null", label)
        return ""
    if label in VERDICTS and in_text is not None and in_text != label:
        faults.add(row, f"{name}.score", f"{label!r} is stored here, but the judgment says {in_text!r}")
    return label


# ---------------------------------------------------------------- answers
def answer_of(row: Mapping[str, Any], where: str) -> str:
    """The answer of a row, in either shape of the benchmark's files. where: begins the message of a PobenchError."""
    try:
        if "messages" in row:
            content = row["messages"][-1]["content"]
            return str(content["answer"] if isinstance(content, dict) else content)
        return str(row["choices"][0]["turns"][0]["content"])
    except (LookupError, TypeError):
        raise PobenchError(f"{where}: a row holds no answer: it has {sorted(row)[:6]}") from None


def write_answers(path: Path, answers: Mapping[str, tuple[str, str]], *, model: str) -> None:
    """Write a model's answers in Arena-Hard's own format, one line per question.

    answers: question id → (question, answer). Raises PobenchError unless all 500 questions and no others have an answer.
    """
    known = [row[0] for row in fingerprints("arena_hard")]
    place = {mark: i for i, mark in enumerate(known)}
    faults = Faults(f"Arena-Hard's answers of {model!r}")
    for uid in answers:
        if fingerprint(uid) not in place:
            faults.add(0, "question_id", "none of Arena-Hard v0.1's 500", uid)
    given = {fingerprint(uid) for uid in answers}
    if absent := [i + 1 for mark, i in place.items() if mark not in given]:
        faults.add(0, "", f"no answer to {numbers('question', absent)} of 500")
    faults.refuse()
    lines = []
    for uid in sorted(answers, key=lambda uid: place[fingerprint(uid)]):
        question, answer = answers[uid]
        mark = hashlib.sha256(f"{model}\0{uid}\0{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:22]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": {"answer": answer}}]
        lines.append({"uid": uid, "ans_id": mark, "model": model, "messages": messages})
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
