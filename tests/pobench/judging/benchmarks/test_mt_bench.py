"""MT-Bench from stored grades: the published mean, fschat's own reading, nothing guessed."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pobench.errors import PobenchError
from pobench.judging.benchmarks import mt_bench_score as mt_bench

REAL = Path(__file__).parents[4] / "../shared/data/mt_bench"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="the benchmark's questions are not part of the project")
Rows = list[dict[str, Any]]


def grade(question: int = 81, turn: int = 1, score: Any = 7, **changes: Any) -> dict[str, Any]:
    judge = ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"]
    row = {"question_id": question, "turn": turn, "model": "mine", "judge": judge, "score": score, "judgment": "…"}
    return {**row, **changes}


@pytest.fixture
def rows() -> Rows:
    rng = random.Random(0)
    return [grade(q, t, rng.randint(1, 10)) for t in (1, 2) for q in range(81, 161)]


# ---------------------------------------------------------------- the arithmetic


def test_the_score_is_the_mean_of_160_with_turns_and_categories(rows, save) -> None:
    found = mt_bench.score(save(rows))
    frame = pd.DataFrame(rows)
    assert found.values["score"] == pytest.approx(frame["score"].mean()) and found.values["n"] == 160
    for turn in (1, 2):
        of_turn = found.values["turns"][turn]
        assert of_turn.value == pytest.approx(frame[frame["turn"] == turn]["score"].mean()) and of_turn.n == 80
    math_ = frame[frame["question_id"].between(111, 120)]["score"]
    assert found.values["categories"]["math"].value == pytest.approx(math_.mean())
    assert found.benchmark == "MT-Bench" and set(found.values["categories"]) == set(mt_bench.CATEGORIES)
    low, high = found.values["interval"]
    assert low < found.values["score"] < high


def test_an_unread_grade_is_dropped_and_counted_as_fschat_drops_it(rows, save) -> None:
    rows[3]["score"], rows[90]["score"], rows[91]["score"] = -1, -1.0, None
    found = mt_bench.score(save(rows))
    frame = pd.DataFrame(rows).dropna(subset=["score"])
    assert found.values["score"] == pytest.approx(frame[frame["score"] != -1]["score"].mean())
    assert (found.values["n"], found.values["dropped"], found.values["absent"]) == (157, 3, 0)
    assert found.benchmark == "MT-Bench" and any("3 of 160" in note for note in found.notes)


def test_absent_grades_are_named_and_in_the_label(rows, save) -> None:
    found = mt_bench.score(save(rows[2:]))
    assert found.benchmark == "MT-Bench (158 of 160 grades)" and found.values["absent"] == 2
    assert any("questions 81–82" in note for note in found.notes)
    assert found.values["categories"]["writing"].n == 10  # their second turns are there


def test_nothing_read_is_nan_with_n_zero(rows, save) -> None:
    found = mt_bench.score(save([{**row, "score": -1} for row in rows])).as_json()
    assert found["score"] is None and found["n"] == 0 and found["interval"] == [None, None]
    assert found["categories"]["math"] == {"value": None, "low": None, "high": None, "n": 0}


def test_ten_everywhere_is_no_certainty(rows, save) -> None:
    found = mt_bench.score(save([{**row, "score": 10} for row in rows])).values
    assert found["score"] == 10 and found["categories"]["math"].low < 8


def test_another_judge_does_not_get_the_name(rows, save) -> None:
    label = mt_bench.score(save([{**row, "judge": "prometheus"} for row in rows])).benchmark
    assert label == "MT-Bench's questions, judged by prometheus: not MT-Bench"


@pytest.mark.parametrize("judge", ["vicuna-gpt4-7b", "gpt-4o-mini", "not-gpt-4", "gpt-4-turbo", ""])
def test_a_judge_whose_name_merely_contains_gpt4_does_not_get_the_name(rows, save, judge) -> None:
    assert mt_bench.score(save([{**row, "judge": judge} for row in rows])).benchmark.endswith(": not MT-Bench")


def test_repeated_and_zero_grades_stop_or_count_as_the_option_says(rows, save) -> None:
    rows = [{**row, "score": 7} for row in rows]
    more = save([*rows, grade(81, 1, 1), grade(82, 1, 4)])
    with pytest.raises(PobenchError, match=r"question 81, turn 1 stands in row 1 already.*--duplicates mean"):
        mt_bench.score(more)
    last, mean = (mt_bench.score(more, duplicates=kind) for kind in ("last", "mean"))
    assert last.values["score"] == pytest.approx((158 * 7 + 1 + 4) / 160) and last.values["n"] == 160
    assert mean.values["score"] == pytest.approx((160 * 7 + 1 + 4) / 162) and mean.values["n"] == 162  # show_result's
    assert last.benchmark == "MT-Bench (with 2 repeated grades, of which the last counts)"
    assert mean.benchmark == "MT-Bench (with 2 repeated grades, of which all count)"
    zero = save([{**rows[0], "score": 0}, *rows[1:]])
    with pytest.raises(PobenchError, match=r"a number from 1 to 10 is needed.*--duplicates"):
        mt_bench.score(zero)
    found = mt_bench.score(zero, duplicates="mean")
    assert found.values["score"] == pytest.approx(159 * 7 / 160) and found.benchmark == "MT-Bench (with 1 grades of 0)"


# ---------------------------------------------------------------- reading


JUDGMENTS = [
    "Good. Rating: [[8]]",
    "Rating: [[7.5]] and [[3]]",
    "Rating: [6]",
    "First [2], but rating [[9]]",
    "no rating",
    "[[nine]]",
    "[[10]]",
    "",
]


def test_a_judgment_is_read_as_fschat_reads_it(save, monkeypatch) -> None:
    common = pytest.importorskip("fastchat.llm_judge.common")
    template = {"system_prompt": "", "prompt_template": "{question}{answer}", "output_format": "[[rating]]"}
    judge = common.Judge("gpt-4", template)
    ours = []
    for judgment in JUDGMENTS:
        monkeypatch.setattr(
            common, "chat_completion_openai", lambda *a, judgment=judgment, **k: judgment, raising=False
        )
        question, answer = {"turns": ["q"]}, {"choices": [{"turns": ["a"]}]}
        theirs = common.run_judge_single(question, answer, judge, None)[0]
        mine = mt_bench.rating(judgment)
        assert mine == theirs or (math.isnan(mine) and theirs == -1)
        ours.append(mine)
    assert sum(math.isnan(g) for g in ours) == 3
    rows = [grade(81 + i, judgment=j) for i, j in enumerate(JUDGMENTS)]
    found = mt_bench.score(save([{k: v for k, v in row.items() if k != "score"} for row in rows]))
    assert (found.values["n"], found.values["dropped"]) == (5, 3)


@pytest.mark.parametrize("judgment", ["[[11]]", "[[0]]", "[[08]]"])
def test_a_grade_off_the_scale_is_not_read(judgment) -> None:
    pytest.importorskip("fastchat.llm_judge.common")
    assert math.isnan(mt_bench.rating(judgment))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (grade(score=11), "row 2, 'score': a number from 1 to 10 is needed, or -1 where none could be read; got 11"),
        (grade(score=0), "'score': a number from 1 to 10"),
        (grade(score="good"), "got 'good'"),
        (grade(score=True), "got True"),
        (grade(turn=3), "'turn': a whole number from 1 to 2 is needed; got 3"),
        (grade(question=7), "'question_id': a whole number from 81 to 160 is needed; got 7"),
        (grade(question=120), "row 2, 'turn': question 120, turn 1 stands in row 1 already"),
        (grade(model="other"), "holds 2 models; name one with --model: 'mine', 'other'"),
        (grade(model=None), "'model': text is needed; got None"),
        (grade(judge=3), "'judge': a name, or a list"),
        (grade(judge=["claude", "single-v1"]), "'judge': one value is needed"),
        ({"question_id": 81, "turn": 1, "model": "mine"}, "'score': missing, and there is no judgment"),
        ({"question": 81, "turn": 1, "model": "mine", "score": 5}, "'question_id': missing; is it 'question'?"),
    ],
)
def test_a_broken_row_is_refused_with_row_and_field(row, expected, save) -> None:
    with pytest.raises(PobenchError) as refused:
        mt_bench.score(save([grade(120), row]))
    assert expected in str(refused.value)


def test_one_of_several_models_is_scored_alone(rows, save) -> None:
    other = [{**row, "model": "other", "score": 1} for row in rows]
    assert mt_bench.score(save(rows + other), model="other").values["score"] == 1


# ---------------------------------------------------------------- the questions, the answers, the command


@needs_data
def test_categories_are_those_of_the_questions() -> None:
    questions = [json.loads(line) for line in (REAL / "question.jsonl").open()]
    assert {q["question_id"]: q["category"] for q in questions} == {q: mt_bench.category(q) for q in mt_bench.QUESTIONS}


def test_fschat_reads_the_answers_written(tmp_path) -> None:
    common = pytest.importorskip("fastchat.llm_judge.common")
    answers = {q: (f"first {q}", f"second {q}") for q in mt_bench.QUESTIONS}
    mt_bench.write_answers(tmp_path / "mine.jsonl", answers, model="mine")
    read = common.load_model_answers(str(tmp_path))["mine"]
    assert len(read) == 80 and read[99]["choices"][0]["turns"] == ["first 99", "second 99"]


def test_incomplete_answers_are_not_written(tmp_path) -> None:
    with pytest.raises(PobenchError, match=r"(?s)number 5.*no answer to questions 82–160"):
        mt_bench.write_answers(tmp_path / "mine.jsonl", {81: ("a", "b"), 5: ("a", "b")}, model="mine")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_table_or_json(rows, save, pobench_cli) -> None:
    path = str(save(rows))
    status, out, _ = pobench_cli("score", "mt_bench", path)
    assert status == 0 and "Humanities" in out and "mean of 160 grades" in out
    found = json.loads(pobench_cli("score", "mt_bench", path, "--json")[1])
    assert found["n"] == 160 and found["turns"]["2"]["n"] == 80 and found["judge"] == "gpt-4"
    status, _, err = pobench_cli("score", "mt_bench", str(save([grade(score=11)])))
    assert status == 2 and "Traceback" not in err
