"""ZeroEval's questions are asked in its words, and its answers read as it reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_chat_model import character_tokenizer, chat_model

from pobench.data.chat import Chat
from pobench.judging.benchmarks.base import Answered, Question, Speaker, Spoken
from pobench.judging.benchmarks.zeroeval import TASKS, ZeroEval, is_right, prompt_of
from pobench.judging.benchmarks.zeroeval_score import answer_of, is_choice, same_number
from pobench.registry import benchmarks
from pobench.results.run_folder import RunFolder


def test_a_question_is_asked_in_zeroevals_words() -> None:
    # as `chat_history` in ZeroEval's result_dirs/gsm and result_dirs/mmlu-redux has them
    sum_ = prompt_of("gsm8k", {"question": "How many?"})
    assert sum_.startswith("\n## Question: \n\nHow many?\n\n\n## Instruction \n\nPlease answer this question by first")
    assert sum_.endswith('```json\n{\n    "reasoning": "___",\n    "answer": "___"\n}\n```\n')
    assert 'json format. \nPlease show your final answer in the `answer` field, e.g.,`"answer": "42"`.' in sum_
    choice = prompt_of("mmlu_redux", {"question": "Which?", "choices": ["this", "that"]})
    assert "\n\n## Choices:\n\n- (A) this\n- (B) that\n\n\n## Instruction \n\nPlease" in choice
    assert 'with only the choice letter, e.g.,`"answer": "C"`.' in choice


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ('Here:\n{\n "reasoning": "a {b} c",\n "answer": "18"\n}\nor {"answer": "19"}', "18"),  # the first whole object
        ('{"reasoning": "x", "answer": 18}', "18"),
        ('```json\n{"reasoning": "He said "no"", "answer": "7"}\n```', "7"),  # no JSON: the value in quotes
        ('{"answer": 12, "reasoning": "cut off', "12"),  # no whole object: a word without quotes
        ("answer: 5 apples", "5"),
        ('{"reasoning": "x", "answer": ""}', None),
        ("I would rather not.", None),
    ],
)
def test_an_answer_is_found_where_zeroeval_finds_it(reply, answer) -> None:
    assert answer_of(reply) == answer


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("$1,050.00", "# 1050", True),
        ("18 dollars", "18", True),
        ("-$10,000", "# -10000", True),
        ("1/2", "0.5", True),
        ("3/0", "3", True),  # no number comes of it: the first one that stands there
        ("__import__('os').getpid()/1", "1", True),  # never run; its first number is 1
        ("eighteen", "18", False),
        ("19", "18", False),
    ],
)
def test_numbers_are_compared_without_signs_and_units(answer, truth, right) -> None:
    assert same_number(answer, truth) is right


def test_a_choice_is_its_letter_alone_or_before_a_bracket() -> None:
    assert is_choice("C", "C") and is_choice("(C) candles", "C") and not is_choice("candles", "C")
    row = {"task": "mmlu_redux", "choices": ["x", "y"], "correct_answer": "y"}
    assert is_right(row, "B") and not is_right(row, "A") and not is_right(row, None)
    assert is_right({"task": "gsm8k", "answer": "16 - 3 = 13, 13 + 5.\n#### 18"}, "18")  # GSM8K's own text


def test_a_result_counts_right_answers_and_those_that_are_none(tmp_path) -> None:
    rows = [{"task": "gsm8k", "id": str(i), "question": "?", "answer": f"# {i}"} for i in range(4)]
    texts = ['{"answer": "0"}', '{"answer": "1"}', '{"answer": "5"}', "no"]
    answered = [
        Answered(Question(row["id"], ("?",), row, 0.0), (text,), (1,), (True,))
        for row, text in zip(rows, texts, strict=True)
    ]
    ZeroEval(tasks=["gsm8k"])._write_score(tmp_path, answered)
    stored = json.loads((tmp_path / "score.json").read_text())
    values = {row["metric"]: (row["value"], row["n"]) for row in stored["rows"]}
    assert values == {"gsm8k": (50.0, 4), "gsm8k_no_answer": (25.0, 4)}
    assert stored["questions"]["score"] == [100.0, 100.0, 0.0, 0.0]
    assert stored["name"] == "ZeroEval's prompts (4 of 1319 questions): not ZeroEval" and stored["judge"] == ""


def test_a_stored_run_is_asked_once_and_its_answers_are_exported(tmp_path) -> None:
    rehearsed = ZeroEval().rehearsed(tmp_path / "stand-ins", 3, 6)
    assert not rehearsed.faults() and len(rehearsed.questions()) == 6 and rehearsed.max_new_tokens == 6
    loads: list[str] = []

    def load() -> tuple[Any, Chat]:
        loads.append("once")
        return chat_model(), Chat(character_tokenizer())

    run, spoken = tmp_path / "runs/small/dpo-1", Spoken("a template", "fp32")
    for _ in range(2):
        rehearsed.evaluate(run, Speaker("small/dpo-1", load, spoken))
        assert rehearsed.done(run, spoken) and loads == ["once"]
    (result,) = RunFolder(tmp_path / "runs", "small/dpo-1").benchmark_results()
    assert [row["metric"] for row in result["rows"]] == [
        "gsm8k", "gsm8k_no_answer", "mmlu_redux", "mmlu_redux_no_answer"
    ]  # fmt: skip
    assert not rehearsed.done(run, Spoken("a template", "bf16")) and result["limit"] == 3
    questions = rehearsed.questions()
    answered = [Answered(q, ("x",), (1,), (True,)) for q in questions]
    rehearsed.export(tmp_path / "given.json", answered, "mine")
    first = json.loads((tmp_path / "given.json").read_text())[0]
    assert first["output"] == ["x"] and first["chat_history"] == list(questions[0].turns) and "task" not in first


def test_what_is_wrong_with_local_questions_is_named_with_its_row(tmp_path) -> None:
    (tmp_path / "gsm.jsonl").write_text('{"question": "a?", "answer": "1"}\n{"question": "b?"}\n')
    wrong = {"question": "c?", "choices": ["x", "y"], "correct_answer": "z"}
    (tmp_path / "mmlu-redux.jsonl").write_text(json.dumps(wrong) + "\n")
    (fault,) = ZeroEval(source=str(tmp_path), tasks="gsm8k").faults()
    assert "row 2" in fault and "'answer'" in fault
    (fault,) = ZeroEval(source=str(tmp_path), tasks=["mmlu_redux"]).faults()
    assert "none of the choices" in fault and "'z'" in fault
    with pytest.raises(ValueError, match="did you mean 'gsm8k'"):
        ZeroEval(tasks="gsm8")


def test_its_cost_is_the_models_own_tokens() -> None:
    assert benchmarks.get("zeroeval")().calls().spoken_tokens == sum(t.questions for t in TASKS.values()) * 4096
    assert ZeroEval(limit=10).calls().requests == 0 and ZeroEval(limit=10).calls().spoken_tokens == 20 * 4096
