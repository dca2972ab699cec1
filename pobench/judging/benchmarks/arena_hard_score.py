"""Arena-Hard from stored judgments: two games a question against a baseline, which is A in the first and B in the second.

    score(judgments.jsonl)     one line per question: question_id (or uid), model, judge, games: [{score, judgment}, …]
    write_answers(answers.jsonl)

v0.1 has 500 questions and one baseline. v2.0 has 500 hard and 250 creative ones, with a baseline and a score for each
category; a file is v2.0's if its rows name one of these categories. A verdict is one of the version's; `>>` counts three
battles.

    score = Σ battles · result / Σ battles,   result = 1 won, 0.5 tied, 0 lost

With one common baseline this equals the Bradley-Terry fit that defines the benchmark, converted to a win rate.
A game without a readable verdict is dropped and counted; v2.0 drops its question.
Li and others 2024, arXiv 2406.11939; v2.0: lmarena/arena-hard-auto, 2025-04-23.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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
)
from pobench.results import stats
from pobench.types import Estimate

ROUNDS = 100  # of the published interval
# verdict → (result of A, battles)
VERDICTS = {"A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3)}
_REVERSED = {"B=A": (0.5, 1), "B<A": (1.0, 1), "B<<A": (1.0, 3), "A<B": (0.0, 1), "A<<B": (0.0, 3)}
_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
_IDS = ("question_id", "uid")


class Sampling(NamedTuple):
    """How a judge is asked."""

    temperature: float
    max_tokens: int


class Version(NamedTuple):
    """What a version of the benchmark fixes.

    folder: upstream's, below `data/`. size: number of questions. baselines: category → the model compared with, which has the
    category's score; v0.1 is one category. judges: the names that give the benchmark's name, and how they are asked.
    verdicts: as VERDICTS. last: of several verdicts in a reply the last one counts, else none does. paired: a question with
    an unreadable game is left out. ends: of the published interval. listed: whether fingerprints of its questions' ids are
    shipped.
    """

    name: str
    folder: str
    size: int
    baselines: Mapping[str, str]
    judges: Mapping[str, Sampling]
    verdicts: Mapping[str, tuple[float, int]] = VERDICTS
    last: bool = False
    paired: bool = False
    ends: tuple[float, float] = (0.025, 0.975)
    listed: bool = True

    @property
    def several(self) -> bool:
        """Whether it has several categories."""
        return len(self.baselines) > 1

    def category(self, row: Mapping[str, Any]) -> str:
        """The category of a row of questions or judgments; "" if it is none of the version's."""
        only = "" if self.several else next(iter(self.baselines))
        return only or next((name for name in self.baselines if name == row.get("category")), "")

    def sampling(self, judge: str | None) -> Sampling:
        """How this judge is asked: an unknown one as the version's first."""
        return self.judges.get(str(judge)) or next(iter(self.judges.values()))


# config/arena-hard-v0.1.yaml
V01 = Version(
    "v0.1",
    "arena-hard-v0.1",
    500,
    {"arena-hard-v0.1": "gpt-4-0314"},
    {"gpt-4-1106-preview": Sampling(0.0, 4096)},
)
# config/arena-hard-v2.0.yaml, utils/judge_utils.py and show_result.py; gpt-4.1 has one snapshot
_GPT = Sampling(0.0, 16000)
V2 = Version(
    "v2.0",
    "arena-hard-v2.0",
    750,
    {
        **dict.fromkeys(("hard_prompt", "coding", "math"), "o3-mini-2025-01-31"),
        "creative_writing": "gemini-2.0-flash-001",
    },
    {"gpt-4.1": _GPT, "gpt-4.1-2025-04-14": _GPT, "gemini-2.5": Sampling(1.0, 32000)},
    verdicts={**VERDICTS, **_REVERSED},
    last=True,
    paired=True,
    ends=(0.05, 0.95),
    listed=False,
)


class Game(NamedTuple):
    """One game with a readable verdict. place: 0 if the model was B, 1 if it was A. result: the model's, 0 to 1."""

    question: str
    place: int
    result: float
    battles: int


class Judgments(NamedTuple):
    """One model's games with a readable verdict. questions: id → category, of all rows. unread: category → number of games
    without a readable verdict."""

    version: Version
    model: str
    judge: str
    games: list[Game]
    questions: dict[str, str]
    unread: Counter[str]

    def categories(self) -> list[str]:
        return [name for name in self.version.baselines if name in self.questions.values()]

    def of(self, category: str) -> list[Game]:
        return [game for game in self.games if self.questions[game.question] == category]


# ---------------------------------------------------------------- scoring
def score(judgments: Path | str, *, model: str | None = None, seed: int = 0) -> Scored:
    """The score of one model in percent, of v2.0 by category. model: needed if the file holds several.

    There are two intervals: the published kind (percentiles of 100 bootstraps over battles, which treats repeated battles
    and the two games of a question as independent), and ours over questions. Raises PobenchError with all faults of the
    file.
    """
    found = read_games(judgments, model)
    parts = {category: _part(found, category, seed) for category in found.categories()}
    lines, notes = [], []
    for category, (values, own) in parts.items():
        lines += [of_category(found.version, category, line) for line in own]
        if unread := values["dropped"]:
            left = ": their questions are left out" if found.version.paired else ": dropped"
            of = f"{category}: " if found.version.several else ""
            notes.append(f"{of}{unread} of {2 * values['asked']} games have no readable verdict{left}")
    several = {"categories": {category: values for category, (values, _) in parts.items()}}
    values = several if found.version.several else next(iter(parts.values()))[0]
    name = label(found.questions, found.judge, found.version)
    return Scored(name, found.model, found.judge, tuple(lines), values, tuple(notes))


def _part(found: Judgments, category: str, seed: int) -> tuple[dict[str, Any], list[Line]]:
    """The values of one category, and their lines."""
    games = paired(found.of(category)) if found.version.paired else found.of(category)
    battles = np.array([g.battles for g in games], dtype=float)
    results = np.array([g.result for g in games], dtype=float)
    asked = [g.question for g in games]
    by_question = stats.ratio(battles * results, battles, asked, bounds=stats.UNIT, seed=seed).scaled(100)
    published = _published(results, battles, found.version.ends, seed)
    flips = _flips(games).scaled(100)
    values = {
        "score": by_question.value,
        "n": by_question.n,
        "interval_questions": [by_question.low, by_question.high],
        "interval_published": [published.low, published.high],
        "battles": int(battles.sum()),
        "games": len(games),
        "asked": sum(c == category for c in found.questions.values()),
        "dropped": found.unread[category],
        "position_flips": flips,
        "baseline": found.version.baselines[category],
    }
    low, high = (f"{100 * end:g}" for end in found.version.ends)
    note = f"interval as published: {low} and {high} % of {ROUNDS} bootstraps over battles"
    return values, [
        Line("Score, %", by_question, note="interval over questions", metric="win_rate"),
        Line("Score, %", published, note=note),
        Line("Position flips, %", flips, ".1f", "questions whose two games name opposite winners", "position_flips"),
    ]


def of_category(version: Version, category: str, line: Line) -> Line:
    """The line under its category's name, where there are several."""
    if not version.several:
        return line
    return line._replace(title=f"{category}: {line.title}", metric=metric_of(version, line.metric, category))


def metric_of(version: Version, metric: str, category: str) -> str:
    """The metric's name in the frames: with its category, where there are several."""
    return f"{metric}_{category}" if metric and version.several else metric


def paired(games: Sequence[Game]) -> list[Game]:
    """The games of questions with two readable ones."""
    readable = Counter(game.question for game in games)
    return [game for game in games if readable[game.question] == 2]


def _published(results: np.ndarray, battles: np.ndarray, ends: tuple[float, float], seed: int) -> Estimate:
    """The score with two quantiles over resampled battles. Only the results of the battles matter."""
    kinds, index = np.unique(results, return_inverse=True)
    counts = np.bincount(index, battles) if len(results) else np.zeros(0)
    total = counts.sum()
    if total == 0:
        return Estimate.missing()
    drawn = np.random.default_rng(seed).multinomial(int(total), counts / total, size=ROUNDS) @ kinds / total * 100
    low, high = np.quantile(drawn, ends)
    return Estimate(float(counts @ kinds / total * 100), float(low), float(high), int(total))


def _flips(games: list[Game]) -> Estimate:
    """The share of questions whose two games have opposite winners, among those with two readable games. There the judge
    chose by position."""
    results: dict[str, list[float]] = {}
    for game in games:
        results.setdefault(game.question, []).append(game.result)
    both = [r for r in results.values() if len(r) == 2]
    return stats.proportion(sum(sorted(r) == [0.0, 1.0] for r in both), len(both))


def label(questions: Collection[str], judge: str, version: Version, *, ours: bool = False) -> str:
    """The name of a result over these questions: the benchmark's only where questions and judge are its own. ours: the judge
    read another instruction than the benchmark's."""
    if version.listed:
        known = {row[0] for row in fingerprints("arena_hard")}
        asked = {fingerprint(q) for q in questions}
        others, part = not asked <= known, "" if asked == known else f" ({len(asked)} of {len(known)} questions)"
    else:
        others = len(questions) > version.size
        part = f" ({len(questions)} of {version.size} questions, not checked against its list)"
    if others:
        return "Arena-Hard's scoring on other questions: not Arena-Hard"
    if judge not in version.judges or ours:
        how = " with an instruction of ours" if ours else ""
        return (
            f"Arena-Hard {version.name}'s questions{part}, judged by {judge or 'an unnamed judge'}{how}: not Arena-Hard"
        )
    return f"Arena-Hard {version.name}{part}"


# ---------------------------------------------------------------- reading
def verdict(judgment: str, version: Version = V01) -> str | None:
    """The verdict in a judge's reply, such as `[[A>B]]`; None if there is none. Of several that differ: see `Version.last`."""
    found = _LABEL.findall(judgment.upper() if version.last else judgment)
    if version.last:
        return found[-1] if found else None
    return found[0] if len(set(found)) == 1 else None


def share_won(games: Sequence[Mapping[str, Any]], version: Version = V01) -> tuple[float, int]:
    """The model's share of a question's battles, and how many these are; (nan, 0) without a readable game, and in a version
    that wants both readable without both. games: two with `score`, the model as B, then as A."""
    read = [(place, version.verdicts.get(game["score"])) for place, game in enumerate(games)]
    known = [(place, *found) for place, found in read if found is not None]
    if not known or (version.paired and len(known) < len(games)):
        return math.nan, 0
    won = sum(battles * (result if place else 1.0 - result) for place, result, battles in known)
    total = sum(battles for _, _, battles in known)
    return won / total, total


def read_games(path: Path | str, wanted: str | None) -> Judgments:
    """The judgments of one model. Raises PobenchError with all faults of the file."""
    rows, faults = read(path, ("model", "games"), (*_IDS, "judge", "category", "baseline"))
    version = V2 if any(V2.category(row) for row in rows) else V01
    rows, model = only_model(rows, wanted, faults)
    games: list[Game] = []
    questions: dict[str, str] = {}
    unread: Counter[str] = Counter()
    first_seen: dict[str, int] = {}
    for row in rows:
        question, category = _question(row, faults), version.category(row)
        if question and first_seen.setdefault(question, row["#row"]) != row["#row"]:
            faults.add(row["#row"], "question_id", f"stands in row {first_seen[question]} already", question)
        baseline = version.baselines.get(category)
        if baseline is None:
            allowed = ", ".join(version.baselines)
            faults.add(row["#row"], "category", f"one of {version.name}'s is needed: {allowed}", row.get("category"))
        elif row.get("baseline", baseline) != baseline:
            faults.add(row["#row"], "baseline", f"{version.name} has {baseline!r}", row["baseline"])
        questions[question] = category
        played = row.get("games", [])
        if not isinstance(played, list) or len(played) != 2:
            if "games" in row:
                faults.add(row["#row"], "games", "a list of two games is needed, in swapped order", played)
            continue
        for place, game in enumerate(played):
            label = _game(row["#row"], place, game, version, faults)
            if label not in version.verdicts:
                unread[category] += 1
                continue
            result, battles = version.verdicts[label]
            games.append(Game(question, place, result if place else 1.0 - result, battles))
    judge = one_of([(r["#row"], str(r.get("judge") or "")) for r in rows], "judge", faults)
    faults.refuse()
    return Judgments(version, model, judge, games, questions, unread)


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


def _game(row: int, place: int, game: Any, version: Version, faults: Faults) -> str:
    """The verdict of one game; "" if none could be read. A stored score has priority over the judge's text."""
    name = f"games[{place}]"
    if game is None:
        return ""
    if not isinstance(game, dict) or not {"score", "judgment"} & game.keys():
        faults.add(row, name, "an object with 'score' or 'judgment' is needed", game)
        return ""
    text = game.get("judgment")
    text = text.get("answer") if isinstance(text, dict) else text
    in_text = verdict(text, version) if isinstance(text, str) else None
    if "score" not in game:
        return in_text or ""
    label = game["score"]
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return ""
    if not isinstance(label, str):
        faults.add(row, f"{name}.score", f"one of {', '.join(version.verdicts)} is needed, or null", label)
        return ""
    if label in version.verdicts and in_text is not None and in_text != label:
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


def write_answers(path: Path, answers: Mapping[str, tuple[str, str]], *, model: str, version: Version = V01) -> None:
    """Write a model's answers in Arena-Hard's own format, one line per question.

    answers: question id → (question, answer). Raises PobenchError unless all questions of the version and no others have an
    answer; of v2.0 only their number is known.
    """
    known = [row[0] for row in fingerprints("arena_hard")] if version.listed else [*map(fingerprint, answers)]
    place = {mark: i for i, mark in enumerate(known)}
    faults = Faults(f"Arena-Hard's answers of {model!r}")
    for uid in answers:
        if fingerprint(uid) not in place:
            faults.add(0, "question_id", f"none of Arena-Hard {version.name}'s {version.size}", uid)
    given = {fingerprint(uid) for uid in answers}
    if absent := [i + 1 for mark, i in place.items() if mark not in given]:
        faults.add(0, "", f"no answer to {numbers('question', absent)} of {version.size}")
    if not version.listed and len(answers) != version.size:
        faults.add(0, "", f"{version.size} answers are needed; there are {len(answers)}")
    faults.refuse()
    lines = []
    for uid in sorted(answers, key=lambda uid: place[fingerprint(uid)]):
        question, answer = answers[uid]
        mark = hashlib.sha256(f"{model}\0{uid}\0{answer}".encode("utf-8", "surrogatepass")).hexdigest()[:22]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": {"answer": answer}}]
        lines.append({"uid": uid, "ans_id": mark, "model": model, "messages": messages})
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
