"""Arena-Hard with style control: the score that is left where answers do not differ in length and markdown.

    P(model wins a battle) = σ(strength + Σ weight · z)

    length:   (t − t₀) / (t + t₀)          t tokens of the model's answer, t₀ of the baseline's
    markdown: (d − d₀) / (d + d₀ + 1)      d headers, list items and bold passages a token: a feature each

Each feature z is standardised over all battles of the file, and a tie is half a win. Every model has a strength, the weights
are shared, and all are fitted together by maximum likelihood; the score is σ(strength) in percent. So a model is compared at
the average style of the file's models, and a file of one model says nothing about style. As upstream's `show_result.py
--control-features`, which prints the median of its bootstraps; here the fit to all battles stands, with their percentiles.
Li and others 2024, arXiv 2406.11939; style control: lmsys.org, 2024-08-28.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pobench.data.rows import Fault, read_rows
from pobench.errors import PobenchError, nearest
from pobench.judging.benchmarks import arena_hard_score as arena_hard
from pobench.judging.benchmarks.verdict_files import Line, Scored, read
from pobench.types import Estimate

CONTROLS = {"length": ("length",), "markdown": ("headers", "lists", "bold")}
COUNTS = {"headers": "header_count", "lists": "list_count", "bold": "bold_count"}  # upstream's names in `metadata`
_CODE = re.compile(r"```[^`]*```")  # left out before anything is counted
_MARKS = {
    "headers": (re.compile(r"^#{1,6}\s", re.MULTILINE),),
    "lists": (re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE)),
    "bold": (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__")),
}
_RIDGE = 1e-6  # keeps a model that wins every battle finite


class Style(NamedTuple):
    """Of one answer. tokens: by the tokenizer of gpt-4o, which upstream counts with."""

    tokens: int
    headers: int
    lists: int
    bold: int


class Battles(NamedTuple):
    """Arrays of one entry a game: the model's number, its result (0 to 1), how many battles the game counts, and the features
    (games, features), not yet standardised."""

    model: np.ndarray
    result: np.ndarray
    times: np.ndarray
    features: np.ndarray


# ---------------------------------------------------------------- scoring
def score(
    judgments: Path | str, answers: Sequence[Path], controls: Sequence[str], *, model: str | None = None, seed: int = 0
) -> Scored:
    """The score of one model of a file with several. answers: files or folders in upstream's format, the baseline's too.

    controls: of `CONTROLS`. model: whose score it is; needed, as all models of the file are fitted. Questions with one
    readable game are left out, as upstream does. Raises PobenchError that names what is wrong or missing.
    """
    names = _models(judgments)
    controlled = _features(controls)
    if model is None or model not in names or len(names) < 2:
        raise PobenchError(_without(model, names))
    found = [arena_hard.read_games(judgments, name) for name in names]
    if len(judges := {one.judge for one in found}) > 1:
        raise PobenchError(f"one judge is needed; got {', '.join(map(repr, sorted(judges)))}")
    version, styles = found[0].version, read_styles(answers)
    parts, lines, notes = {}, list[Line](), []
    for category in version.baselines:
        if category not in found[names.index(model)].categories():
            continue
        battles, dropped = _battles(found, category, styles, controlled)
        if len(battles.result) == 0:
            raise PobenchError(f"{Path(judgments).name}: no question has two readable games")
        values, own = _part(battles, names, model, controls, seed)
        parts[category] = {**values, "baseline": version.baselines[category], "dropped": dropped}
        lines += [arena_hard.of_category(version, category, line) for line in own]
        if dropped:
            of = f"{category}: " if version.several else ""
            notes.append(f"{of}{dropped} questions have no two readable games: left out")
    asked = {question for one in found for question in one.questions}
    name = f"{arena_hard.label(asked, found[0].judge, version)}, with style control ({', '.join(controls)})"
    values = {"categories": parts} if version.several else next(iter(parts.values()))
    return Scored(name, model, found[0].judge, tuple(lines), values, tuple(notes))


def _part(
    battles: Battles, names: Sequence[str], model: str, controls: Sequence[str], seed: int
) -> tuple[dict[str, Any], list[Line]]:
    """The values of one category, and their lines."""
    drawn = _bootstraps(battles, len(names), seed)
    strengths, weights = fit(battles, len(names))
    place = names.index(model)
    low, high = np.quantile(drawn[:, place], [0.025, 0.975])
    own = battles.model == place
    estimate = Estimate(100 * _sigmoid(strengths[place]), float(low), float(high), int(battles.times[own].sum()))
    raw = float((battles.times * battles.result)[own].sum() / battles.times[own].sum() * 100)
    note = f"{arena_hard.ROUNDS} bootstraps over the battles of {len(names)} models; upstream prints their 5 % and 95 %"
    values = {
        "score": estimate.value,
        "interval": [estimate.low, estimate.high],
        "battles": estimate.n,
        "score_uncontrolled": raw,
        "weights": dict(zip(_features(controls), map(float, weights), strict=True)),
        "models": names,
    }
    return values, [
        Line(f"Score at equal {' and '.join(controls)}, %", estimate, note=note),
        Line("Score without control, %", Estimate(raw, np.nan, np.nan, estimate.n)),
    ]


def fit(battles: Battles, models: int, counts: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(strengths of the models, weights of the features) by scikit-learn. counts: replaces the battles' own."""
    from sklearn.linear_model import LogisticRegression

    count = battles.times if counts is None else counts
    design = np.hstack([np.eye(models)[battles.model], standardised(battles)])
    won, lost = count * battles.result, count * (1 - battles.result)  # a tie is half a battle won, and half a lost one
    regression = LogisticRegression(C=1 / _RIDGE, fit_intercept=False, solver="newton-cholesky", tol=1e-8)
    regression.fit(
        np.vstack([design, design]), np.repeat([1, 0], len(count)), sample_weight=np.concatenate([won, lost])
    )
    return regression.coef_[0, :models], regression.coef_[0, models:]


def standardised(battles: Battles) -> np.ndarray:
    """The features with mean 0 and standard deviation 1 (n − 1) over all battles; 0 where a feature never differs."""
    total = battles.times.sum()
    centred = battles.features - np.average(battles.features, axis=0, weights=battles.times)
    spread = np.sqrt((battles.times[:, None] * centred**2).sum(0) / max(total - 1, 1))
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


def _bootstraps(battles: Battles, models: int, seed: int) -> np.ndarray:
    """Scores in percent, (rounds, models), of battles drawn with replacement."""
    rng, total = np.random.default_rng(seed), battles.times.sum()
    draws = rng.multinomial(int(total), battles.times / total, size=arena_hard.ROUNDS)
    return np.array([100 * _sigmoid(fit(battles, models, draw.astype(float))[0]) for draw in draws])


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))


# ---------------------------------------------------------------- reading
def count_style(text: str, tokens: int) -> Style:
    """The style of an answer's text, outside of its code blocks. tokens: of the whole text."""
    prose = _CODE.sub("", text)
    return Style(tokens, *(sum(len(mark.findall(prose)) for mark in marks) for marks in _MARKS.values()))


def read_styles(paths: Sequence[Path]) -> dict[tuple[str, str], Style]:
    """(model, question) → the style of the answer: stored by upstream's `add_markdown_info.py` as `metadata`, else counted."""
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    if not files:
        raise PobenchError(
            "--answers: a file or folder of answers in Arena-Hard's format is needed, the baseline's too"
        )
    styles = {}
    for file in files:
        for number, row in read_rows(file):
            if isinstance(row, Fault):
                raise PobenchError(f"{file.name}: {row}")
            model = str(row.get("model") or row.get("model_id") or file.stem)
            styles[model, str(row.get("uid") or row.get("question_id"))] = _style(row, f"{file.name}: row {number}")
    return styles


def _style(row: Mapping[str, Any], where: str) -> Style:
    stored = row.get("metadata")
    if not isinstance(stored, Mapping):
        text = arena_hard.answer_of(row, where)
        return count_style(text, _tokens(text))
    try:
        counted = {name: stored[key] for name, key in {"tokens": "token_len", **COUNTS}.items()}
        whole = {k: int(sum(v.values()) if isinstance(v, Mapping) else v) for k, v in counted.items()}
    except (KeyError, TypeError, ValueError):
        needed = ", ".join(["token_len", *COUNTS.values()])
        raise PobenchError(f"{where}: `metadata` needs {needed}; got {json.dumps(stored)[:200]}") from None
    return Style(**whole)


def _tokens(text: str) -> int:
    import tiktoken

    try:
        return len(tiktoken.encoding_for_model("gpt-4o").encode(text, disallowed_special=()))
    except Exception as error:  # it downloads its vocabulary once
        raise PobenchError(
            f"answers without `metadata` need gpt-4o's tokenizer, which tiktoken could not fetch ({type(error).__name__}); "
            "upstream's add_markdown_info.py writes `metadata`"
        ) from error


def _features(controls: Sequence[str]) -> list[str]:
    wrong = [name for name in controls if name not in CONTROLS]
    if wrong or not controls:
        shown = f"got {wrong[0]!r}{nearest(wrong[0], CONTROLS)} " if wrong else ""
        raise PobenchError(f"--control: {shown}Allowed: {', '.join(CONTROLS)}, or both")
    return [feature for name in CONTROLS if name in controls for feature in CONTROLS[name]]


def _models(judgments: Path | str) -> list[str]:
    rows, faults = read(judgments, ("model", "games"))
    faults.refuse()
    return sorted({row["model"] for row in rows if isinstance(row.get("model"), str)})


def _without(model: str | None, names: Sequence[str]) -> str:
    if len(names) < 2:
        return (
            "--control: style is controlled by comparing models, and the file holds the judgments of one; join those of "
            "others, as upstream fits its whole leaderboard"
        )
    near = "" if model is None else f"no row is of {model!r}{nearest(model, names)} "
    return f"--model: {near}The file holds {', '.join(names)}"


def _battles(
    found: Sequence[arena_hard.Judgments],
    category: str,
    styles: Mapping[tuple[str, str], Style],
    controlled: Sequence[str],
) -> tuple[Battles, int]:
    """The games of one category's questions with two readable ones, and how many questions have not."""
    rows: list[tuple[int, float, int, list[float]]] = []
    dropped = 0
    for number, one in enumerate(found):
        games = arena_hard.paired(one.of(category))
        dropped += sum(c == category for c in one.questions.values()) - len(games) // 2
        for game in games:
            who = one.model, one.version.baselines[category]
            own, base = (_found(styles, name, game.question) for name in who)
            rows.append((number, game.result, game.battles, [_difference(f, own, base) for f in controlled]))
    model, result, count, features = zip(*rows, strict=True) if rows else ((), (), (), np.zeros((0, len(controlled))))
    return Battles(np.array(model, int), np.array(result), np.array(count, float), np.array(features, float)), dropped


def _found(styles: Mapping[tuple[str, str], Style], model: str, question: str) -> Style:
    try:
        return styles[model, question]
    except KeyError:
        known = sorted({name for name, _ in styles})
        raise PobenchError(
            f"--answers: no answer of {model!r} to {question!r}; there are answers of {', '.join(known)}"
        ) from None


def _difference(feature: str, own: Style, base: Style) -> float:
    if feature == "length":
        return (own.tokens - base.tokens) / max(own.tokens + base.tokens, 1)
    a, b = (getattr(style, feature) / max(style.tokens, 1) for style in (own, base))
    return float((a - b) / (a + b + 1))
