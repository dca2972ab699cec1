"""Human answers are found by their prompt, whatever holds them."""

from __future__ import annotations

import json

import pytest

from pobench.data.human_answers import human_answers
from pobench.data.order import text_key
from pobench.data.rows import Message
from pobench.errors import PobenchError
from pobench.settings.resolve import resolve

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "hello"}]
HOLD_HELLO = {
    "pairs": [{"prompt": "Hi", "chosen": "hello", "rejected": "no"}],
    "lists": [{"prompt": "Hi", "responses": ["no", "hello", "eh"], "scores": [1, 3, 2]}],
    "answers": [
        {"prompt": "Hi", "completion": "no", "label": False},
        {"prompt": "Hi", "completion": "hello", "label": True},
        {"prompt": "Hi", "completion": "later", "label": True},
    ],
    "demonstrations": [{"messages": TURNS}, {"messages": [*TURNS, {"role": "user", "content": "?"}, TURNS[1]]}],
    "responses": [{"prompt": "Hi", "response": "hello"}],
}


def job_with(tmp_path, rows, **more):
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"onpolicy.human_answers": str(tmp_path / "people.jsonl"), "onpolicy.pairs": "human_over_own", **more}
    return resolve("tiny", "dpo", overrides=changes)[0]


@pytest.mark.parametrize("kind", HOLD_HELLO)
def test_the_better_answer_of_any_shape_is_the_human_one(tmp_path, kind) -> None:
    answers = human_answers(job_with(tmp_path, HOLD_HELLO[kind]))
    assert answers[text_key([Message("user", "hi ")])] == "hello"  # case and white space do not matter
    assert len(answers) == (2 if kind == "demonstrations" else 1)  # a conversation answers its last question


def test_rows_that_cannot_be_read_stop_the_command_or_are_left_out(tmp_path) -> None:
    rows = [*HOLD_HELLO["demonstrations"], {"messages": TURNS[:1]}, {"messages": "hello"}]
    with pytest.raises(
        PobenchError, match=r"2 of 4 rows are bad(.|\n)*row 3(.|\n)*does not end with an answer(.|\n)*row 4"
    ):
        human_answers(job_with(tmp_path, rows))
    assert len(human_answers(job_with(tmp_path, rows, **{"data.on_bad_row": "drop"}))) == 2


def test_the_chosen_answers_of_the_data_are_the_default() -> None:
    (job,) = resolve("tiny-spin", "dpo")
    answers = human_answers(job)
    assert len(answers) == 562 and "the cap is a hat. the helmet is a hat. the beret is a hat." in answers.values()
