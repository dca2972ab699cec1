"""Public layouts of preference files: each is read right, or refused with the fix named; none is read wrong in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pobench.data.audit import Audit
from pobench.data.rows import Found, preference_lines
from pobench.data.shapes import SHAPES, recognise
from pobench.errors import PobenchError
from pobench.settings.schema import COLUMNS

ASK, GOOD, BAD = "Which planet is red?", "Mars is.", "Cheese is."
USER = {"role": "user", "content": ASK}
PLAIN = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def found_in(*rows: dict[str, Any], **options: Any) -> Found:
    return recognise(enumerate(rows, start=1), **options)


READ: dict[str, dict[str, Any]] = {
    "openai": {
        "input": {"messages": [USER], "tools": []},
        "preferred_output": [bot(GOOD)],
        "non_preferred_output": [bot(BAD)],
    },
    "ms-swift": {"messages": [USER, bot(GOOD)], "rejected_response": BAD},
    "ms-swift, query": {"query": ASK, "response": GOOD, "rejected_response": BAD},
    "pku": {"prompt": ASK, "response_0": BAD, "response_1": GOOD, "better_response_id": 1},
    "shp": {"history": ASK, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": 1},
    "shp, B": {"history": ASK, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0},
    "helpsteer 2": {"prompt": ASK, "response_1": GOOD, "response_2": BAD, "preference_strength": -1},
    "helpsteer 3": {"context": [USER], "response1": BAD, "response2": GOOD, "overall_preference": 3},
    "webgpt": {"question": {"full_text": ASK}, "answer_0": BAD, "answer_1": GOOD, "score_0": -0.5, "score_1": 0.5},
    "arena": {"winner": "model_b", "conversation_a": [USER, bot(BAD)], "conversation_b": [USER, bot(GOOD)]},
    "kaggle": {
        "prompt": json.dumps([ASK]),
        "response_a": json.dumps([GOOD]),
        "response_b": json.dumps([BAD]),
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    },
    "nectar": {
        "prompt": f"\n\nHuman: {ASK}\n\nAssistant: ",
        "answers": [{"answer": BAD, "rank": 2}, {"answer": GOOD, "rank": 1}],
    },
    "nemo-rl": {
        "context": [USER],
        "completions": [{"rank": 0, "completion": [bot(GOOD)]}, {"rank": 1, "completion": [bot(BAD)]}],
    },
    "nemo-aligner": {
        "prompt": f"<extra_id_0>System\n\n<extra_id_1>User\n{ASK}\n<extra_id_1>Assistant\n",
        "chosen_response": GOOD,
        "rejected_response": BAD,
    },
    "stack exchange": {"question": ASK, "response_j": GOOD, "response_k": BAD},
    "distilabel": {"instruction": ASK, "generations": [BAD, GOOD], "ratings": [1, 5]},
    "argilla orca": {
        "system": "",
        "input": ASK,
        "chosen": GOOD,
        "rejected": BAD,
        "generations": [GOOD, BAD],
        "rating": [9, 2],
    },
    "label studio": {
        "data": {"prompt": ASK, "answer1": BAD, "answer2": GOOD},
        "annotations": [{"result": [{"type": "pairwise", "value": {"selected": "right"}}]}],
    },
    "label studio, one cancelled": {
        "data": {"prompt": ASK, "answer1": GOOD, "answer2": BAD},
        "annotations": [
            {"was_cancelled": True, "result": [{"value": {"selected": "right"}}]},
            {"result": [{"value": {"selected": "left"}}]},
        ],
    },
    "parts with value": {**PLAIN, "prompt": [{"role": "user", "content": [{"type": "text", "value": ASK}]}]},
    "one newline": {"chosen": f"Human: {ASK}\nAssistant: {GOOD}", "rejected": f"Human: {ASK}\nAssistant: {BAD}"},
    "small letters": {**PLAIN, "prompt": f"human: {ASK}\nassistant:"},
    "human and AI": {**PLAIN, "prompt": f"Human: {ASK}\r\nAI:"},
    "vicuna": {**PLAIN, "prompt": f"A chat between a user and an assistant. USER: {ASK} ASSISTANT:"},
    "phi 4": {**PLAIN, "prompt": f"<|im_start|>user<|im_sep|>{ASK}<|im_end|><|im_start|>assistant<|im_sep|>"},
    "[INST] in a message": {**PLAIN, "prompt": [{"role": "user", "content": f"<s>[INST] {ASK} [/INST]"}]},
    "transcript in a message": {**PLAIN, "prompt": [{"role": "user", "content": f"Human: {ASK}\n\nAssistant:"}]},
    "ends of templates": {
        "prompt": ASK,
        "chosen": f"{GOOD}</s>\n",
        "rejected": [bot(f"{BAD}<|im_end|>\n<|endoftext|>")],
    },
    "nan of pandas": {**PLAIN, "system": float("nan"), "images": float("nan")},
    "[INST]": {**PLAIN, "prompt": f"<s>[INST] {ASK} [/INST]"},
    "chatml": {**PLAIN, "prompt": f"<|im_start|>user\n{ASK}<|im_end|>\n<|im_start|>assistant\n"},
    "zephyr": {**PLAIN, "prompt": f"<|user|>\n{ASK}</s>\n<|assistant|>\n"},
    "llama 3": {
        "prompt": f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{ASK}<|eot_id|>",
        "chosen": GOOD,
        "rejected": BAD,
    },
    "ultrafeedback's 10 for 1": {
        "instruction": ASK,
        "completions": [
            {"response": GOOD, "overall_score": 7.0, "fine-grained_score": 4.5},
            {"response": BAD, "overall_score": 10.0, "fine-grained_score": 1.0},
        ],
    },
}


LISTS = ("nectar", "nemo-rl", "distilabel", "ultrafeedback's 10 for 1")  # of two answers each


@pytest.mark.parametrize("name", READ)
def test_the_better_answer_of_a_public_layout_is_chosen_behind_its_prompt(name: str) -> None:
    found = found_in(READ[name])
    assert found.faults == []
    (pair,) = found.preferences
    turns = [(m.role, m.content) for m in pair.prompt if m.content]
    assert (turns, pair.chosen, pair.rejected) == ([("user", ASK)], GOOD, BAD)
    ranks = [dict(zip(one.answers, one.ranks, strict=True)) for one in found.lists]
    assert ranks == [{GOOD: 1, BAD: 2}] * (name in LISTS) and [one.id for one in found.lists] == [pair.id] * len(ranks)


RATED: dict[str, tuple[dict[str, Any], tuple[float, float] | None]] = {
    "none": (PLAIN, None),
    "ultrafeedback binarized": ({**PLAIN, "score_chosen": 8, "score_rejected": "6.5"}, (8.0, 6.5)),
    "argilla's": ({**PLAIN, "chosen-rating": 4.75, "rejected-rating": 2, "chosen-model": "m"}, (4.75, 2.0)),
    "an object": ({**PLAIN, "rewards": {"chosen": 0.1, "rejected": -3}}, (0.1, -3.0)),
    "those of the shipped pairs": (
        {**PLAIN, "meta": {"chosen_score": 1.0, "rejected_score": 0.75, "kind": "k"}},
        (1.0, 0.75),
    ),
    "a list of objects without ranks": (
        {"prompt": ASK, "answers": [{"text": BAD, "score": 0.5}, {"text": GOOD, "score": 1}]},
        (1.0, 0.5),
    ),
    "contradictory": ({**PLAIN, "chosen_score": 1, "rejected_score": 2}, (1.0, 2.0)),
    "of one answer alone": ({**PLAIN, "score_chosen": 8}, None),
    "argilla orca": ({**READ["argilla orca"], "rating": [7.0, 9.0]}, (9.0, 7.0)),
    "webgpt": (READ["webgpt"], (0.5, -0.5)),
    "shp": ({**READ["shp, B"], "score_A": 3, "score_B": 12}, (12.0, 3.0)),
    "a rated list": ({"prompt": ASK, "responses": [BAD, "Red.", GOOD], "scores": [1, 3, 5.5]}, (5.5, 1.0)),
    "ultrafeedback": (
        {"instruction": ASK, "completions": [{"response": t, "overall_score": s} for t, s in ((BAD, 2), (GOOD, "8"))]},
        (8.0, 2.0),
    ),
    "ultrafeedback's 10 for 1, whose other scale is no other row's": (READ["ultrafeedback's 10 for 1"], None),
    "answers on policy, all with the ranker's scores": (
        {**PLAIN, "all_generated_responses": ["Red.", f"{GOOD} ", BAD], "all_rm_scores": [0.5, 0.75, -1]},
        (0.75, -1.0),
    ),
    "answers on policy that the ranker has not scored": (
        {**PLAIN, "all_generated_responses": [GOOD, BAD], "all_rm_scores": [0.75, None]},
        None,
    ),
    "answers on policy among which the pair's are not": (
        {**PLAIN, "all_generated_responses": [GOOD, "Red."], "all_rm_scores": [0.75, 0.5]},
        None,
    ),
    "ranks": (READ["nectar"], None),
    "a strength": (READ["helpsteer 2"], None),
}


@pytest.mark.parametrize("name", RATED)
def test_ratings_stay_with_their_answers_and_are_never_invented(name: str) -> None:
    row, scores = RATED[name]
    found = found_in(row)
    (pair,) = found.preferences
    assert (pair.chosen, pair.rejected, pair.scores) == (GOOD, BAD, scores)
    (again,) = found_in(json.loads(preference_lines([pair]))).preferences
    assert (again.id, again.scores) == (pair.id, scores)  # what `pobench data convert` writes


def test_a_rating_names_no_pair() -> None:
    (plain,), (rated,) = (found_in(row).preferences for row in (PLAIN, RATED["ultrafeedback binarized"][0]))
    assert plain.id == rated.id
    twice = found_in(
        {**PLAIN, "score_chosen": 8, "score_rejected": 2}, {**PLAIN, "score_chosen": 7, "score_rejected": 2}
    )
    assert [p.scores for p in twice.preferences] == [(8.0, 2.0)] and twice.notes == {"duplicated row": [2]}


@pytest.mark.parametrize(
    "row",
    [
        {**PLAIN, "score_chosen": 8, "score_rejected": 8.0},
        {**READ["argilla orca"], "status": "tie"},
        {**READ["argilla orca"], "rating": [9.0, 9.0]},
        {**READ["arena"], "winner": "tie (bothbad)"},
        {**PLAIN, "winner": "Tie"},
        {**PLAIN, "is_tie": True},
        {**PLAIN, "preference": "equal"},
        {**PLAIN, "chosen-rating-avg": 3, "rejected-rating-avg": 3.0},
        {**PLAIN, "ratings": {"chosen": 4, "rejected": "4.0"}},
        {**READ["kaggle"], "winner_model_a": 0, "winner_tie": 1},
        {**READ["helpsteer 2"], "preference_strength": 0},
    ],
)
def test_a_tie_is_no_pair_and_is_counted(row: dict[str, Any]) -> None:
    found = found_in(row, {**row})
    assert (found.preferences, found.faults, found.notes) == ([], [], {"tie": [1, 2]})


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ({"input": ASK, "chosen": f"Sure, {GOOD}", "rejected": f"Sure, {BAD}"}, "data.columns.prompt=input"),
        ({"id": ASK, "chosen": f"Sure, {GOOD}", "rejected": f"Sure, {BAD}"}, "data.columns.prompt=id"),
        ({"messages": [USER], "chosen": f"Sure, {GOOD}", "rejected": f"Sure, {BAD}"}, "data.columns.prompt=messages"),
        ({"meta": {"ask": ASK}, "chosen": f"Sure, {GOOD}", "rejected": f"Sure, {BAD}"}, "data.columns.prompt=meta.ask"),
        ({"talk": [["user", ASK]], "chosen": f"Sure, {GOOD}", "rejected": f"Sure, {BAD}"}, "data.columns.prompt=talk"),
        ({**PLAIN, "prompt": "", "query": ASK}, "data.columns.prompt=query"),
        ({**PLAIN, "prompt": {"text": ASK}}, "such as prompt.text"),
        ({**PLAIN, "Context": "Mars and Venus."}, "data.columns.prompt=[Context,prompt]"),
        ({**PLAIN, "chat_history": "Earlier words."}, "data.ignore=[chat_history]"),
        ({**PLAIN, "image_path": "p.jpg"}, "data.ignore=[image_path]"),
        ({**PLAIN, "images": ["red"]}, "data.ignore=[images]"),
        ({**PLAIN, "systemPrompt": "Be kind."}, "data.ignore=[systemPrompt]"),
        ({**PLAIN, "system-message": "Be kind."}, "data.ignore=[system-message]"),
        ({**PLAIN, "context": "Mars"}, "data.columns.prompt=[context,prompt]"),
        ({**PLAIN, "input": "plan"}, "data.columns.prompt=[input,prompt]"),
        ({**READ["openai"], "input": {"messages": [USER], "context": "Mars."}}, "data.ignore=[input.context]"),
        ({"instruction": ASK, "output": [BAD, GOOD], "scores": [1, 5]}, "data.ignore=[scores]"),
        ({"instruction": ASK, "output": [BAD, GOOD], "preference": 2}, "data.ignore=[preference]"),
        ({"instruction": ASK, "input": {"of": "two"}, "chosen": GOOD, "rejected": BAD}, "'input': not text"),
        ({**PLAIN, "context": "Mars and Venus."}, "data.columns.prompt=[context,prompt]"),
        ({**PLAIN, "input": "Of these two."}, "data.columns.prompt=[input,prompt]"),
        ({**PLAIN, "tools": [{"name": "atlas"}]}, "data.ignore=[tools]"),
        ({**PLAIN, "images": ["p.jpg"]}, "data.ignore=[images]"),
        ({**PLAIN, "chosen": [{**bot(GOOD), "tool_calls": [{"name": "f"}]}]}, "data.ignore=[tool_calls]"),
        ({"instruction": ASK, "output": [GOOD, BAD], "generator": "m"}, "data.ignore=[generator]"),
        ({**PLAIN, "history": "Earlier words."}, "data.columns.prompt=[history,prompt]"),
    ],
)
def test_what_would_be_dropped_is_refused_with_the_fix(row: dict[str, Any], fix: str) -> None:
    found = found_in(row)
    assert found.preferences == [] and [fix in str(fault) for fault in found.faults] == [True]


def test_a_label_that_contradicts_the_votes_is_noted() -> None:
    votes = {"score_A": 9, "score_B": 1}
    found = found_in({**READ["shp"], **votes}, {**READ["shp, B"], **votes})
    assert found.notes["the rejected answer has the higher score"] == [2]


def test_mapped_columns_are_read_and_ignored_ones_are_not() -> None:
    row = {
        "ask": {"text": ASK},
        "context": "Mars, Venus.",
        "chosen": f"Sure, {GOOD}",
        "rejected": f"Sure, {BAD}",
        "images": ["p"],
    }
    (pair,) = found_in(row, columns={"prompt": ["context", "ask.text"]}, ignore=["images"]).preferences
    assert (pair.prompt[0].content, pair.chosen) == (f"Mars, Venus.\n\n{ASK}", f"Sure, {GOOD}")
    with pytest.raises(PobenchError, match=r"'inptu', which no row has; did you mean 'input'\?"):
        found_in({"input": ASK, "chosen": GOOD, "rejected": BAD}, columns={"prompt": "inptu"})


def test_columns_not_read_are_listed_and_empty_ones_are_not() -> None:
    row = {**PLAIN, "tools": [], "images": [None], "system": "", "source": "x", "note": " ", "status": "swapped"}
    found = found_in(row)
    assert (len(found.preferences), found.unread) == (1, {"source": 1, "status": 1})


@pytest.mark.parametrize("name", READ)
def test_a_column_that_a_layout_does_not_know_is_in_its_audit(name: str) -> None:
    found = found_in({**READ[name], "annotator notes": "w"})
    assert found.unread["annotator notes"] == 1
    audit = Audit.of_file(found)
    line = audit.frame().set_index("fault").loc["column 'annotator notes' was not read"]
    assert (line["count"], line["rows"]) == (1, "[]") and "'annotator notes'" in audit.text()


def test_history_becomes_earlier_turns_and_a_second_system_message_is_a_fault() -> None:
    (pair,) = found_in({**PLAIN, "history": [["Hi", "Hello"]], "system": "Be kind."}).preferences
    assert [m.role for m in pair.prompt] == ["system", "user", "assistant", "user"]
    row = {**PLAIN, "prompt": [{"role": "system", "content": "Be rude."}, USER], "system": "Be kind."}
    assert found_in(row).faults[0].problem == "another system message than the conversation's own"


def test_further_turns_that_both_answers_share_belong_to_the_prompt() -> None:
    more = [bot("Two are."), {"role": "user", "content": "Which?"}]
    (pair,) = found_in({"prompt": [USER], "chosen": [*more, bot(GOOD)], "rejected": [*more, bot(BAD)]}).preferences
    assert [m.content for m in pair.prompt] == [ASK, "Two are.", "Which?"] and pair.chosen == GOOD


@pytest.mark.parametrize(
    ("good", "bad"), [(True, False), (1.0, 0.0), (1, -1), ("desirable", "undesirable"), ("1.0", "0")]
)
def test_labels_of_unpaired_rows_are_read_in_every_spelling(good: Any, bad: Any) -> None:
    (pair,) = found_in(
        {"messages": [USER, bot(BAD)], "kto_tag": bad}, {"messages": [USER, bot(GOOD)], "kto_tag": good}
    ).preferences
    assert (pair.chosen, pair.rejected) == (GOOD, BAD)


def test_an_answer_that_is_json_is_an_answer() -> None:
    (pair,) = found_in({**PLAIN, "chosen": '[{"value": 1}, {"value": 2}]'}).preferences
    assert pair.chosen.startswith("[{")


@pytest.mark.parametrize(
    "text",
    [
        f"<｜User｜>{ASK}<｜Assistant｜>",
        f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{ASK}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        f"<|start|>user<|message|>{ASK}<|end|><|start|>assistant",
        f"[|user|]{ASK}\n[|assistant|]",
        f"<|prompter|>{ASK}<|endoftext|><|assistant|>",
        f"<human>: {ASK}\n<bot>:",
        f"GPT4 Correct User: {ASK}<|end_of_turn|>GPT4 Correct Assistant:",
    ],
)
def test_text_of_a_template_that_is_not_known_is_no_users_words(text: str) -> None:
    both = {"chosen": f"{text} {GOOD}", "rejected": f"{text} {BAD}"}
    for row in ({**PLAIN, "prompt": text}, both):
        (fault,) = found_in(row).faults
        assert "chat template (unknown) inside a turn; store chat messages" in str(fault)


def test_a_transcript_that_goes_on_in_the_answers_is_split() -> None:
    more = f" Two are.\n\nHuman: {ASK}\n\nAssistant:"
    row = {"prompt": "\n\nHuman: How many?\n\nAssistant:", "chosen": f"{more} {GOOD}", "rejected": f"{more} {BAD}"}
    (pair,) = found_in(row).preferences
    assert [m.content for m in pair.prompt] == ["How many?", "Two are.", ASK]
    assert (pair.chosen, pair.rejected) == (GOOD, BAD)
    assert "other none" in str(found_in({**row, "rejected": BAD}).faults[0])


def test_a_closed_strike_through_is_no_end_of_a_template() -> None:
    (pair,) = found_in({**PLAIN, "chosen": "Not <s>Venus</s>"}).preferences
    assert pair.chosen == "Not <s>Venus</s>"


@pytest.mark.parametrize("words", ["Assistant: what time is it?", "Assistant:", "### Response:", "User: why?"])
def test_a_user_may_begin_with_the_words_that_mark_the_assistants_turn(words: str) -> None:
    (pair,) = found_in({**PLAIN, "prompt": words}).preferences
    assert pair.prompt == (("user", words),)


def test_one_odd_row_does_not_keep_a_repeated_prompt_in_the_others() -> None:
    rows = [{"prompt": f"Why {i}?", "chosen": f"Why {i}? So.", "rejected": f"Why {i}? No."} for i in range(4)]
    found = found_in(*rows, PLAIN)
    assert {p.chosen for p in found.preferences} == {"So.", GOOD}
    assert list(found.notes.values()) == [[1, 2, 3, 4], [5]]


@pytest.mark.parametrize("name", ["prompt", "instruction", "question"])
@pytest.mark.parametrize("repeated", [("chosen",), ("chosen", "rejected")])
def test_a_repeated_prompt_is_taken_off_whatever_its_column_and_from_one_answer_too(name: str, repeated: Any) -> None:
    rows = [{name: f"Why {i}? ", "chosen": f"So {i}.", "rejected": f"No {i}."} for i in range(3)]
    rows = [{**row, **{side: f"{row[name].strip()}\n{row[side]}" for side in repeated}} for row in rows]
    found = found_in(*rows)
    assert [(p.chosen, p.rejected) for p in found.preferences] == [(f"So {i}.", f"No {i}.") for i in range(3)]
    assert list(found.notes.values()) == [[1, 2, 3]]


def test_a_last_question_that_answers_repeat_is_taken_off_behind_earlier_turns_too() -> None:
    turns = [{"role": "user", "content": "Hi"}, bot("Hello"), USER]
    rows = [{"prompt": turns, "chosen": f"{ASK} {GOOD} {i}", "rejected": f"{ASK} {BAD}"} for i in range(3)]
    assert {(p.chosen[:-2], p.rejected) for p in found_in(*rows).preferences} == {(GOOD, BAD)}


def test_what_is_left_behind_a_repeated_prompt_are_two_different_answers() -> None:
    rows = [{"prompt": f"Why {i}?", "chosen": f"Why {i}? So.", "rejected": f"Why {i}? No."} for i in range(4)]
    odd = [{**rows[0], "rejected": "So."}, {**rows[0], "chosen": "Why 0?"}]
    assert [fault.problem for fault in found_in(*rows, *odd).faults] == ["identical answers", "empty answer"]


def test_a_bad_label_is_named_although_no_pair_is_left() -> None:
    row = {"prompt": ASK, "completion": GOOD, "label": True}
    assert "label is neither" in str(found_in(row, {**row, "label": "yes"}).faults[0])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": ASK, "response_w": GOOD, "response_l": BAD}, "prompt, chosen, rejected:"),
        (
            {"prompt": ASK, "response": GOOD, "label": 1},
            "data.columns.completion=COLUMN, with COLUMN one of 'response'.",
        ),
        ({"talk": {"ask": ASK}, "chosen": GOOD}, "one of 'talk.ask'."),
    ],
)
def test_the_nearest_layout_is_that_of_which_the_row_has_most(row: dict[str, Any], words: str) -> None:
    with pytest.raises(PobenchError) as refused:
        found_in(row)
    assert words in str(refused.value)


def test_every_column_that_a_refusal_asks_for_may_be_mapped() -> None:
    assert {group[0] for shape in SHAPES for group in shape.needs} <= set(COLUMNS)


def test_every_layout_says_where_it_is_described() -> None:
    assert [shape.name for shape in SHAPES if not shape.source.strip()] == []


def test_converted_pairs_are_read_again_as_the_same_pairs() -> None:
    found = found_in(*[{**row, "id": name} for name, row in READ.items()][:1], {**READ["openai"], "id": "b"})
    again = found_in(*map(json.loads, preference_lines(found.preferences).splitlines()))
    assert [p[:4] for p in again.preferences] == [p[:4] for p in found.preferences]
