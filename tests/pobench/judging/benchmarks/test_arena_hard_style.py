"""Style control: the Bradley–Terry fit with features of style, against the likelihood maximised by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from pobench.errors import PobenchError
from pobench.judging.benchmarks import arena_hard_score as arena_hard
from pobench.judging.benchmarks import arena_hard_style as style

MODELS = ("alpha", "beta", "gamma")
BOTH = ("length", "markdown")


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch) -> None:
    monkeypatch.setattr(arena_hard, "ROUNDS", 5)  # these tests look at scores, not at their intervals


def judged(n: int, longer_wins: float, seed: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(judgments, answers) of three models and the baseline; gamma's answers are long. longer_wins: how much the judge likes
    length; quality is the same for all."""
    rng = random.Random(seed)
    rows, answers = [], []
    for i in range(n):
        counts = {}
        for name in (*MODELS, "gpt-4-0314"):
            tokens = rng.randint(200, 400) * (2 if name == "gamma" else 1)
            marks = [rng.randint(0, 6) for _ in range(4)]
            metadata = {
                "token_len": tokens,
                "header_count": {"h1": marks[0], "h2": marks[1]},
                "list_count": {"ordered": marks[2], "unordered": 1},
                "bold_count": {"**": marks[3], "__": 0},
            }
            counts[name] = tokens
            answers.append({"uid": f"q{i}", "model": name, "metadata": metadata})
        for name in MODELS:
            base = counts["gpt-4-0314"]
            pull = longer_wins * (counts[name] - base) / (counts[name] + base)
            games = [{"score": label(rng, pull * sign)} for sign in (-1, 1)]  # the model is B, then A
            rows.append({"uid": f"q{i}", "model": name, "judge": "gpt-4-1106-preview", "games": games})
    return rows, answers


def label(rng: random.Random, pull: float) -> str:
    won = rng.random() < 1 / (1 + np.exp(-pull))
    return "A=B" if rng.random() < 0.1 else rng.choice(["A>B", "A>>B"] if won else ["B>A", "B>>A"])


@pytest.fixture
def stored(tmp_path: Path, save: Any) -> Any:
    def write(rows: list[dict[str, Any]], answers: list[dict[str, Any]]) -> tuple[Path, list[Path]]:
        folder = tmp_path / "model_answer"
        folder.mkdir(exist_ok=True)
        for name in {row["model"] for row in answers}:
            lines = [json.dumps(row) + "\n" for row in answers if row["model"] == name]
            (folder / f"{name}.jsonl").write_text("".join(lines))
        return save(rows), [folder]

    return write


def by_likelihood(rows: list[dict[str, Any]], answers: list[dict[str, Any]]) -> dict[str, float]:
    """Model → score, from one row a battle: the likelihood of its result, a tie as half a battle won, maximised by BFGS."""
    found = {(a["model"], a["uid"]): a["metadata"] for a in answers}
    design, outcomes = [], []
    for row in rows:
        own, base = found[row["model"], row["uid"]], found["gpt-4-0314", row["uid"]]
        features = [(own["token_len"] - base["token_len"]) / (own["token_len"] + base["token_len"])]
        for key in ("header_count", "list_count", "bold_count"):
            a, b = (sum(m[key].values()) / m["token_len"] for m in (own, base))
            features.append((a - b) / (a + b + 1))
        for game, is_a in zip(row["games"], (False, True), strict=True):
            a_won, battles = arena_hard.VERDICTS[game["score"]]
            for _ in range(battles):
                design.append([*(float(row["model"] == m) for m in MODELS), *features])
                outcomes.append(a_won if is_a else 1 - a_won)
    x, y = np.array(design), np.array(outcomes)
    x[:, 3:] = (x[:, 3:] - x[:, 3:].mean(0)) / x[:, 3:].std(0, ddof=1)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        z = x @ weights
        return float(np.logaddexp(0, z).sum() - y @ z), x.T @ (1 / (1 + np.exp(-z)) - y)

    found_at = minimize(loss, np.zeros(x.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return {m: float(100 / (1 + np.exp(-c))) for m, c in zip(MODELS, found_at, strict=False)}


def test_the_score_is_that_of_the_highest_likelihood(stored) -> None:
    rows, answers = judged(60, 2.0)
    expected = by_likelihood(rows, answers)
    for name in MODELS:
        found = style.score(*stored(rows, answers), BOTH, model=name)
        assert found.values["score"] == pytest.approx(expected[name], abs=1e-3)
    assert found.benchmark.endswith("with style control (length, markdown)")
    assert "not Arena-Hard" in found.benchmark, "its questions are others"


def test_v2_controls_style_within_each_category(stored) -> None:
    rows, answers = judged(12, 2.0)
    for judgment in rows:
        hard = int(judgment["uid"][1:]) % 2 == 0
        judgment["category"] = "hard_prompt" if hard else "creative_writing"
    by_hand = {}
    for remainder, category in enumerate(("hard_prompt", "creative_writing")):
        part = [row for row in rows if row["category"] == category]
        by_hand[category] = by_likelihood(part, answers)["beta"]
        own = {"baseline": arena_hard.V2.baselines[category]}
        renamed = [a for a in answers if a["model"] == "gpt-4-0314" and int(a["uid"][1:]) % 2 == remainder]
        answers = [*answers, *({**answer, "model": own["baseline"]} for answer in renamed)]
    scored = style.score(*stored(rows, answers), BOTH, model="beta")
    found = {category: values["score"] for category, values in scored.values["categories"].items()}
    assert found == pytest.approx(by_hand, abs=1e-3)
    assert scored.benchmark.startswith("Arena-Hard v2.0")


def test_a_judge_that_likes_length_is_held_against_the_long_model_no_longer(stored) -> None:
    rows, answers = judged(400, 6.0)
    found = {m: style.score(*stored(rows, answers), ["length"], model=m).values for m in ("alpha", "gamma")}
    raw = found["gamma"]["score_uncontrolled"] - found["alpha"]["score_uncontrolled"]
    left = found["gamma"]["score"] - found["alpha"]["score"]
    assert raw > 30 and abs(left) < 12, "the models are equally good"
    assert found["gamma"]["weights"]["length"] > 0


def test_a_feature_that_never_differs_changes_nothing(stored) -> None:
    rows, answers = judged(20, 0.0)
    for answer in answers:
        answer["metadata"] |= {"token_len": 100, "header_count": 3}
    found = style.score(*stored(rows, answers), ["length"], model="beta").values
    assert found["score"] == pytest.approx(found["score_uncontrolled"], abs=1e-3)


def test_questions_with_one_readable_game_are_left_out_and_counted(stored) -> None:
    rows, answers = judged(10, 0.0)
    rows[0]["games"][1] = None
    found = style.score(*stored(rows, answers), BOTH, model="beta")
    assert found.values["dropped"] == 1 and "left out" in found.notes[0]


def test_marks_are_counted_outside_of_code() -> None:
    text = "# A\n\n## B\n- x\n* y\n1. z\n **b** and __c__\n```\n# no\n- no **no**\n```\n####### not a header\n#not"
    assert style.count_style(text, 9) == (9, 2, 3, 2)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"controls": ["lenght"]}, "got 'lenght'; did you mean 'length'?"),
        ({"controls": []}, "Allowed: length, markdown"),
        ({"model": "bata"}, "did you mean 'beta'"),
        ({"model": None}, "The file holds alpha, beta, gamma"),
        ({"answers": []}, "a file or folder of answers"),
    ],
)
def test_what_is_missing_is_named(change, expected, stored) -> None:
    judgments, answers = stored(*judged(3, 0.0))
    values = {"answers": answers, "controls": ["length"], "model": "beta"} | change
    with pytest.raises(PobenchError, match=expected.replace("?", r"\?")):
        style.score(judgments, values["answers"], values["controls"], model=values["model"])


def test_one_model_alone_has_no_style_to_compare(stored) -> None:
    rows, answers = judged(3, 0.0)
    with pytest.raises(PobenchError, match="the file holds the judgments of one"):
        style.score(*stored([r for r in rows if r["model"] == "beta"], answers), BOTH, model="beta")


def test_a_file_without_models_is_refused_as_such(save) -> None:
    with pytest.raises(PobenchError, match=r"'model': missing"):
        style.score(save([{"a": 1}]), [], BOTH, model="beta")


def test_an_answer_that_is_not_there_is_named(stored) -> None:
    rows, answers = judged(3, 0.0)
    kept = [a for a in answers if a["model"] != "gpt-4-0314"]
    with pytest.raises(PobenchError, match="no answer of 'gpt-4-0314' to 'q0'; there are answers of alpha"):
        style.score(*stored(rows, kept), BOTH, model="beta")


def test_the_command_names_the_control(stored, pobench_cli) -> None:
    judgments, (folder,) = stored(*judged(5, 0.0))
    arguments = ("--control", "length", "--answers", str(folder), "--model", "beta")
    status, out, _ = pobench_cli("score", "arena_hard", str(judgments), *arguments, "--json")
    assert status == 0 and json.loads(out)["benchmark"].endswith("with style control (length)")
