"""A server's JSON becomes a reply: what is a thought, what is cut off, and which log-probabilities belong to the text."""

from __future__ import annotations

import math
from typing import Any

import pytest
from openai_server import says

from pobench.judging.replies import Reply, error_in, parse, without_system, without_thought


def body(text: Any, finish: str = "stop", logprobs: Any = None, **message: Any) -> dict[str, Any]:
    choice = {"finish_reason": finish, "message": {"content": text, **message}, "logprobs": logprobs}
    return {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 1}}


def first_token(token: str, **top: Any) -> dict[str, Any]:
    given = [{"token": t, "logprob": logprob} for t, logprob in top.items()]
    return {"content": [{"token": token, "logprob": -0.1, "top_logprobs": given}]}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>A? no</think>\nB", "B"),
        ("A? no</think>\n\nB", "B"),  # the opening mark stands in the chat template
        ("<THINKING>A</THINKING>B", "B"),
        ("[THINK]A[/THINK]B", "B"),
        ("◁think▷A◁/think▷B", "B"),  # Kimi
        ("<|START_THINKING|>A<|END_THINKING|>B", "B"),  # Command A
        ("<seed:think>A</seed:think>B", "B"),
        ("◁think▷\nThe answer is\nA", ""),
        ("<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B", "B"),
        ("<think>\nThe answer is\nA", ""),
        ("B uses <think> in its code", "B uses <think> in its code"),
        (" B ", "B"),
    ],
)
def test_a_thought_is_no_part_of_the_answer(text, answer) -> None:
    assert without_thought(text) == parse(body(text), 16).answer == answer


def test_a_reply_that_the_limit_cut_off_has_no_answer() -> None:
    cut = parse(body("It may well be that\nA", "length"), 16)
    assert cut.cut_off and cut.answer == "" and cut.missing == "the limit of tokens cut the reply off"
    assert cut.text == "It may well be that\nA", "what was paid for is kept"
    assert parse(body("A", "length"), 1).answer == "A", "a reply of one token ends so"


def test_content_of_null_says_why_there_is_no_answer() -> None:
    assert (
        parse(body(None, "length", reasoning_content="A careful"), 16).missing
        == "the limit of tokens cut the reply off"
    )
    assert parse(body(None), 16).missing == "the reply is empty"
    assert parse(body("<think>A"), 16).missing == "the reply is a thought without an answer"
    assert parse(body(None, refusal="I cannot help"), 16).answer == "I cannot help"


def test_a_list_of_parts_is_read_without_its_thought() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "A"}]}, {"type": "text", "text": "B"}]
    assert parse(body(parts), 16).answer == "B"


def test_the_alternatives_are_those_of_the_token_that_the_text_begins_with() -> None:
    assert parse(body("A", logprobs=first_token("A", A=-0.1, B=-3.0)), 16).top == {"A": -0.1, "B": -3.0}
    assert parse(body("B", logprobs=first_token("A", A=-0.1, B=-3.0)), 16).top == {}, "a thought's token"
    blank = {"content": [{"token": "\n\n", "top_logprobs": [{"token": "A", "logprob": -9.0}]}]}
    after = first_token("A", A=-0.1)
    assert parse(body("\n\nA", logprobs={"content": blank["content"] + after["content"]}), 16).top == {"A": -0.1}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "reasoning_details"])
def test_beside_a_thought_the_alternatives_may_be_the_thoughts(field) -> None:
    assert parse(body("A", logprobs=first_token("A", A=-0.1), **{field: "A careful look"}), 16).top == {}
    counted = body("A", logprobs=first_token("A", A=-0.1))
    counted["usage"]["completion_tokens_details"] = {"reasoning_tokens": 12}
    assert parse(counted, 16).top == {}


@pytest.mark.parametrize(
    "logprobs",
    [
        None, True, [], {"content": None}, {"content": [None]}, {"content": [{"token": "A", "top_logprobs": None}]},
        first_token("A", A=-0.1, B=None),  # without B's probability, A's would be all there is
        first_token("A", A=-0.1, B="none"), first_token("A", A=math.nan), first_token("A", A=0.9, B=0.1),  # no logarithms
    ],
)  # fmt: skip
def test_logprobs_that_cannot_be_read_are_all_that_is_lost(logprobs) -> None:
    read = parse(body("A", logprobs=logprobs), 16)
    assert (read.text, read.top, read.prompt_tokens) == ("A", {}, 10)


def test_an_impossible_alternative_is_left_out() -> None:
    assert parse(body("A", logprobs=first_token("A", A=0.0, B=-math.inf)), 16).top == {"A": 0.0}


@pytest.mark.parametrize("broken", [None, [], {}, {"choices": []}, {"choices": [{}]}, body({"a": 1})])
def test_what_is_no_chat_completion_is_told_apart(broken) -> None:
    with pytest.raises((LookupError, TypeError, ValueError, AttributeError)):
        parse(broken, 16)


def test_a_reply_with_an_empty_error_is_a_reply() -> None:
    assert error_in({**says("A"), "error": None}) is None and error_in([]) is None
    assert error_in({"error": {"code": "context_length_exceeded"}}) == (
        200, '{"code": "context_length_exceeded"}', {"code": "context_length_exceeded"},
    )  # fmt: skip


def test_a_system_turn_goes_to_the_head_of_the_users() -> None:
    system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
    assert without_system([system, user, system]) == [{"role": "user", "content": "S\n\nU"}, system]
    assert without_system([user]) == [user]


def test_a_failed_request_has_its_own_reason() -> None:
    assert Reply("", error="busy").missing == "busy" and Reply("A").missing == ""
