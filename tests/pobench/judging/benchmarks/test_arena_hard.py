"""Arena-Hard from stored judgments: the published arithmetic, and what may carry its name."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from pobench.errors import PobenchError
from pobench.judging.benchmarks import arena_hard_score as arena_hard
from pobench.judging.benchmarks import verdict_files as stored

REAL = Path(__file__).parents[4] / "../shared/data/arena_hard/v0.1"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's questions are not part of the project")
Rows = list[dict[str, Any]]


def row(first: Any, second: Any, question: str = "q", **changes: Any) -> dict[str, Any]:
    games = [{"score": first}, {"score": second}]
    return {"question_id": question, "model": "mine", "judge": "gpt-4-1106-preview", "games": games, **changes}


def random_rows(n: int, seed: int, unread: float = 0.05) -> Rows:
    rng = random.Random(seed)

    def label() -> Any:
        return None if rng.random() < unread else rng.choice(list(arena_hard.VERDICTS))

    return [row(label(), label(), f"q{i}") for i in range(n)]


# ---------------------------------------------------------------- the arithmetic


@pytest.mark.parametrize(
    ("first", "second", "score", "battles"),
    [
        ("A>>B", "A>B", 25.0, 4),  # baseline wins three battles, the model one: 1 / 4
        ("B>>A", "A>>B", 100.0, 6),  # the model wins from both sides
        ("A>B", "B>A", 0.0, 2),  # the baseline wins from both sides
        ("A=B", "A>B", 75.0, 2),  # (0.5 + 1) / 2
        ("B>>A", "A=B", 87.5, 4),  # (3 + 0.5) / 4
        (None, "A>B", 100.0, 1),
    ],
)
def test_a_score_by_hand(first, second, score, battles, save) -> None:
    found = arena_hard.score(save([row(first, second)])).values
    assert (found["score"], found["battles"]) == (score, battles)


def bradley_terry(rows: Rows) -> float:
    """The benchmark's own way: fit strengths by logistic regression on battles, then predict the win rate."""
    battles = []  # (who won, in [0, 1], for the model), one a row; each counted twice, a tie as one win for either
    for r in rows:
        for place, game in enumerate(r["games"]):
            if game["score"] in arena_hard.VERDICTS:
                a_won, times = arena_hard.VERDICTS[game["score"]]
                battles += [a_won if place else 1 - a_won] * times
    y = np.array([[1.0, 1.0] if b == 1 else [0.0, 0.0] if b == 0 else [1.0, 0.0] for b in battles]).ravel()
    scale = math.log(10) / 400

    def loss(elo: np.ndarray) -> float:
        z = scale * (elo[0] - elo[1])
        return float(np.sum(np.logaddexp(0, -z) * y + np.logaddexp(0, z) * (1 - y)) + 1e-9 * elo @ elo)

    ours, theirs = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-9}).x
    return 100 / (1 + 10 ** ((theirs - ours) / 400))


@pytest.mark.parametrize("seed", range(5))
def test_the_score_is_the_bradley_terry_fit(seed, save) -> None:
    rows = random_rows(60, seed)
    assert arena_hard.score(save(rows)).values["score"] == pytest.approx(bradley_terry(rows), abs=1e-2)


def test_the_published_interval_is_that_of_resampled_battles(save) -> None:
    rows = random_rows(500, 7)
    low, high = arena_hard.score(save(rows)).values["interval_published"]
    rng, battles = np.random.default_rng(1), []
    for r in rows:
        for place, game in enumerate(r["games"]):
            if game["score"]:
                a_won, times = arena_hard.VERDICTS[game["score"]]
                battles += [a_won if place else 1 - a_won] * times
    means = [100 * rng.choice(battles, len(battles)).mean() for _ in range(2000)]
    # 100 resamples place an end of the interval to about a fifth of its half width
    slack = 0.35 * np.std(means) * 1.96
    assert np.allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=slack)


def test_the_interval_over_questions_is_wider_where_both_games_agree(save) -> None:
    rng = random.Random(3)
    sides = [("A>>B", "B>>A"), ("B>>A", "A>>B")]
    found = arena_hard.score(save([row(*rng.choice(sides), f"q{i}") for i in range(200)])).values
    widths = [found[f"interval_{kind}"][1] - found[f"interval_{kind}"][0] for kind in ("questions", "published")]
    # six battles of one question always agree: sqrt(6) times as wide
    assert 1.6 < widths[0] / widths[1] < 3.5


def test_winning_everything_is_no_certainty(save) -> None:
    found = arena_hard.score(save([row("B>A", "A>B", f"q{i}") for i in range(10)])).values
    assert found["score"] == 100 and found["interval_questions"][0] < 80


# ---------------------------------------------------------------- v2.0, by category


def hard(first: Any, second: Any, question: str, **changes: Any) -> dict[str, Any]:
    baseline = "gemini-2.0-flash-001" if changes.get("category") == "creative_writing" else "o3-mini-2025-01-31"
    return row(
        first, second, question, **{"category": "hard_prompt", "judge": "gpt-4.1", "baseline": baseline, **changes}
    )


def test_v2_has_a_score_for_each_category_and_leaves_out_half_read_questions(save) -> None:
    creative = {"category": "creative_writing"}
    rows = [hard("A>>B", "A>B", "1"), hard(None, "A>B", "2"), hard("B=A", "A<<B", "3", **creative)]
    scored = arena_hard.score(save(rows))
    found = scored.values["categories"]
    # question 1: three battles lost, one won; question 2 has one unread game; question 3: a tie, three battles lost
    assert (found["hard_prompt"]["score"], found["hard_prompt"]["battles"]) == (25.0, 4)
    assert (found["creative_writing"]["score"], found["creative_writing"]["battles"]) == (12.5, 4)
    assert scored.notes == ("hard_prompt: 1 of 4 games have no readable verdict: their questions are left out",)
    metrics = {line.metric: line.estimate.n for line in scored.lines if line.metric.startswith("win_rate")}
    assert metrics == {"win_rate_hard_prompt": 1, "win_rate_creative_writing": 1}


@pytest.mark.parametrize(
    ("judge", "questions", "label"),
    [
        ("gemini-2.5", 750, "Arena-Hard v2.0 (750 of 750 questions, not checked against its list)"),
        ("gpt-4.1", 2, "Arena-Hard v2.0 (2 of 750 questions, not checked against its list)"),
        ("gpt-4.1-mini", 2, "questions, not checked against its list), judged by gpt-4.1-mini: not Arena-Hard"),
        ("gpt-4.1", 751, "Arena-Hard's scoring on other questions: not Arena-Hard"),
    ],
)
def test_v2s_name_says_that_its_questions_were_not_checked(judge, questions, label, save) -> None:
    rows = [hard("A>B", "A>B", f"q{i}", judge=judge) for i in range(questions)]
    assert arena_hard.score(save(rows)).benchmark.endswith(label)


def test_of_v2s_verdicts_in_a_reply_the_last_one_counts() -> None:
    assert arena_hard.verdict("[[A>B]]? no: [[b>>a]]", arena_hard.V2) == "B>>A"
    assert arena_hard.verdict("A is better", arena_hard.V2) is None


# ---------------------------------------------------------------- what cannot be read


def test_an_unreadable_verdict_is_dropped_and_counted(save) -> None:
    rows = [
        row("A>C", "A>B", "q1"),
        row(None, math.nan, "q2"),
        row("", "B>A", "q3"),
        {**row(0, 0, "q4"), "games": [None, None]},
    ]
    scored = arena_hard.score(save(rows))
    assert (scored.values["dropped"], scored.values["games"], scored.values["n"]) == (6, 2, 2)
    assert scored.values["score"] == 50 and any("6 of 8 games" in note for note in scored.notes)


def test_nothing_readable_is_nan_with_n_zero(save) -> None:
    found = arena_hard.score(save([row(None, None)])).as_json()
    assert found["score"] is None and found["n"] == 0 and found["position_flips"]["n"] == 0


@pytest.mark.parametrize(
    ("judgment", "label"),
    [
        ("so [[A>>B]]", "A>>B"),
        ("[[A>B]] … final: [[A>B]]", "A>B"),
        ("[[A>B]] no, [[B>A]]", None),
        ("A>B", None),
        ("", None),
        ("[[C]]", None),
    ],
)
def test_a_verdict_is_read_from_the_judgment_or_not_at_all(judgment, label, save) -> None:
    assert arena_hard.verdict(judgment) == label
    rows = [row(None, None, games=[{"judgment": judgment}, {"judgment": {"answer": judgment}}])]
    assert arena_hard.score(save(rows)).values["dropped"] == (0 if label else 2)


def test_flips_are_questions_whose_games_name_opposite_winners(save) -> None:
    # A wins both games: a flip; the model wins both; one tied; one unread
    rows = [row("A>B", "A>>B", "1"), row("B>A", "A>B", "2"), row("A=B", "A>B", "3"), row(None, "A>B", "4")]
    flips = arena_hard.score(save(rows)).values["position_flips"]
    assert (flips.value, flips.n) == (pytest.approx(100 / 3), 3)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("A>B", "A>B", games=[{"score": "A>B"}])], "row 1, 'games': a list of two games"),
        ([row("A>B", "A>B"), row("A>B", "B>A")], "row 2, 'question_id': stands in row 1 already; got 'q'"),
        ([row("A>B", "A>B", baseline="gpt-4o")], "'baseline': v0.1 has 'gpt-4-0314'; got 'gpt-4o'"),
        ([row(1, "A>B")], "'games[0].score': one of A>>B"),
        ([row("A>B", "A>B", games=[{}, "x"])], "'games[1]'"),
        (
            [row("A>B", "A>B", games=[{"score": "A>B", "judgment": "[[B>A]]"}, {"score": "A>B"}])],
            "the judgment says 'B>A'",
        ),
        ([row("A>B", "A>B"), row("A>B", "A>B", "r", model="other")], "holds 2 models; name one with --model"),
        ([{k: v for k, v in row("A>B", "A>B").items() if k != "question_id"}], "'question_id': missing"),
        ([row("A>B", "A>B", question_id=[1])], "'question_id': a text or a number"),
        ([row("A>B", "A>B", judge="a"), row("A>B", "A>B", "r", judge="b")], "'judge': one value is needed"),
        ([{"game": []}], "'games': missing; is it 'game'?"),
        ([hard("A>B", "A>B", "1", baseline="gpt-4-0314")], "'baseline': v2.0 has 'o3-mini-2025-01-31'"),
        ([hard("A>B", "A>B", "1"), hard("A>B", "A>B", "2", category="poems")], "'category': one of v2.0's is needed"),
    ],
)
def test_a_broken_file_is_refused_with_row_and_field(rows, expected, save) -> None:
    with pytest.raises(PobenchError) as refused:
        arena_hard.score(save(rows))
    assert expected in str(refused.value)


def test_one_of_several_models_is_scored_alone(save) -> None:
    rows = [row("B>A", "A>B"), row("A>B", "B>A", model="other")]
    assert arena_hard.score(save(rows), model="mine").values["score"] == 100
    assert arena_hard.score(save(rows), model="other").values["score"] == 0
    with pytest.raises(PobenchError, match="did you mean 'mine'"):
        arena_hard.score(save(rows), model="mime")


# ---------------------------------------------------------------- the name, the questions, the answers


@pytest.mark.parametrize(
    ("judge", "questions", "label"),
    [
        ("gpt-4-1106-preview", 3, "Arena-Hard v0.1"),
        ("gpt-4-1106-preview", 2, "Arena-Hard v0.1 (2 of 3 questions)"),
        ("gpt-4o-mini", 3, "Arena-Hard v0.1's questions, judged by gpt-4o-mini: not Arena-Hard"),
        ("vicuna-gpt4-7b", 3, "Arena-Hard v0.1's questions, judged by vicuna-gpt4-7b: not Arena-Hard"),
        ("gpt-4", 3, "Arena-Hard v0.1's questions, judged by gpt-4: not Arena-Hard"),
        ("gpt-4-1106-preview", 4, "Arena-Hard's scoring on other questions: not Arena-Hard"),
    ],
)
def test_only_its_own_questions_and_judge_give_the_name(judge, questions, label, save, monkeypatch) -> None:
    monkeypatch.setattr(arena_hard, "fingerprints", lambda name: [[stored.fingerprint(f"q{i}")] for i in range(3)])
    rows = [row("A>B", "A>B", f"q{i}", judge=judge) for i in range(questions)]
    assert arena_hard.score(save(rows)).benchmark == label


@needs_data
def test_the_real_questions_in_either_format_are_arena_hard(save) -> None:
    ids = [json.loads(line)["uid"] for line in (REAL / "question.jsonl").open()]
    rows = [{**r, "uid": uid} for r, uid in zip(random_rows(500, 1), ids, strict=True)]
    new = [{k: v for k, v in r.items() if k != "question_id"} for r in rows]
    old = [{**{k: v for k, v in r.items() if k != "uid"}, "question_id": r["uid"]} for r in rows]
    found = [arena_hard.score(save(r)) for r in (new, old)]
    assert found[0].benchmark == "Arena-Hard v0.1" and found[0].as_json() == found[1].as_json()


@needs_data
def test_answers_are_written_as_the_benchmark_has_them(tmp_path) -> None:
    real = [json.loads(line) for line in (REAL / "model_answer/gpt-3.5-turbo-0125.jsonl").open()]
    answers = {r["uid"]: (r["messages"][0]["content"], r["messages"][1]["content"]["answer"]) for r in real}
    arena_hard.write_answers(tmp_path / "mine.jsonl", answers, model="gpt-3.5-turbo-0125")
    written = {r["uid"]: r for r in map(json.loads, (tmp_path / "mine.jsonl").open())}
    assert len(written) == 500
    for r in real:
        assert written[r["uid"]]["messages"] == r["messages"] and written[r["uid"]]["model"] == r["model"]
    del answers[real[0]["uid"]]
    with pytest.raises(PobenchError, match="no answer to question"):
        arena_hard.write_answers(tmp_path / "less.jsonl", {**answers, "new": ("a", "b")}, model="mine")
    assert not (tmp_path / "less.jsonl").exists()


def test_the_command_prints_a_table_or_json(save, pobench_cli) -> None:
    path = str(save(random_rows(40, 0)))
    status, out, _ = pobench_cli("score", "arena_hard", path)
    assert status == 0 and "Position flips, %" in out and "100 bootstraps over battles" in " ".join(out.split())
    found = json.loads(pobench_cli("score", "arena_hard", path, "--json")[1])
    assert found["n"] == 40 and found["interval_questions"][0] < found["score"] < found["interval_questions"][1]
    status, _, err = pobench_cli("score", "arena_hard", path, "--model", "other")
    assert status == 2 and "'mine'" in err and "Traceback" not in err
