"""Exports of Argilla and Label Studio: annotators vote, what is not submitted does not count, and what does not say which
answer is better is refused with the fix."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pobench.data.rows import Found
from pobench.data.shapes import recognise

ASK, GOOD, FAIR, BAD = "Which planet is red?", "Mars is.", "One of nine.", "Cheese is."
DISAGREE = "annotators disagree; most prefer the chosen answer"
NOT_SUBMITTED = "a draft, discarded or skipped annotation left out"


def found_in(*rows: dict[str, Any], **options: Any) -> Found:
    return recognise(enumerate(rows, start=1), **options)


def pairs_in(*rows: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = found_in(*rows)
    assert found.faults == []
    return [(p.prompt[-1].content, p.chosen, p.rejected) for p in found.preferences]


# ---------------------------------------------------------------- the layouts
def ranked(*ranks: int | None, user: str = "u", status: str = "submitted") -> dict[str, Any]:
    """A response to Argilla 1's ranking question over response-1, response-2, …"""
    value = [{"rank": rank, "value": f"response-{i}"} for i, rank in enumerate(ranks, start=1)]
    return {"user_id": user, "value": value, "status": status}


def argilla1(*responses: dict[str, Any], answers: tuple[str, ...] = (BAD, GOOD), **more: Any) -> dict[str, Any]:
    """A row of a FeedbackDataset on the hub."""
    fields = {f"response-{i}": text for i, text in enumerate(answers, start=1)}
    suggestion = {"rank-suggestion": None, "rank-suggestion-metadata": {"type": None, "score": None, "agent": None}}
    return {"prompt": ASK, **fields, "rank": [*responses], **suggestion, "external_id": None, "metadata": "{}", **more}


def argilla2(ratings: dict[str, list[Any] | None], users: list[str], status: list[str], **more: Any) -> dict[str, Any]:
    """A row of `dataset.records.to_datasets()` with the questions of distilabel's PreferenceToArgilla."""
    row: dict[str, Any] = {
        "id": "7",
        "_server_id": "s",
        "instruction": ASK,
        "generations-0": BAD,
        "generations-1": GOOD,
    }
    for answer, given in ratings.items():
        row |= {f"{answer}-rating.responses": given, f"{answer}-rating.responses.users": given and users[: len(given)]}
        row |= {f"{answer}-rating.responses.status": given and status[: len(given)]}
        row |= {f"{answer}-rating.suggestion": 3, f"{answer}-rating.suggestion.agent": "model"}
    return row | more


def task(*sides: str | None, **more: Any) -> dict[str, Any]:
    """A task of Label Studio's JSON, with one annotation for each side; None: a skipped one."""
    done = [{"result": [{"type": "pairwise", "value": {"selected": side}}]} for side in sides if side]
    skipped = [{"was_cancelled": True, "result": [{"value": {"selected": "left"}}]} for side in sides if not side]
    return {"data": {"prompt": ASK, "answer1": BAD, "answer2": GOOD}, "annotations": [*skipped, *done], **more}


def json_min(side: str, id: int = 1, annotation: int | None = 5, **more: Any) -> dict[str, Any]:
    """A row of Label Studio's JSON-MIN: one annotation."""
    control = {"comparison": [{"selected": side}]} if annotation else {}
    about = {"annotator": 1, "annotation_id": annotation, "created_at": "c", "updated_at": "u", "lead_time": 2.5}
    return {"prompt": ASK, "answer1": BAD, "answer2": GOOD, "id": id, **control, **about, **more}


PARQUET = {"user_id": "u", "value": {"rank": [2, 1], "value": ["response-1", "response-2"]}, "status": "submitted"}
RATED = {"generations-0": [2], "generations-1": [5]}
READ = {
    "Argilla 1, ranking": argilla1(ranked(2, 1)),
    "Argilla 1, as Parquet keeps it": argilla1(PARQUET),
    "Argilla 1, all in columns": argilla1() | {"rank": {key: [PARQUET[key]] for key in PARQUET}},
    "Argilla 1, fields spelled otherwise": {"_".join(k.split("-")): v for k, v in argilla1(ranked(2, 1)).items()},
    "Argilla 1, a comment beside": argilla1(ranked(2, 1), why=[{"user_id": "u", "value": "x", "status": "submitted"}]),
    "Argilla 1, fields called chosen and rejected": {
        **argilla1(
            {
                "user_id": "u",
                "value": [{"rank": 2, "value": "chosen"}, {"rank": 1, "value": "rejected"}],
                "status": "submitted",
            },
            answers=(),
        ),
        "chosen": BAD,
        "rejected": GOOD,
    },
    "Argilla 1, ratings": {
        **argilla1(),
        "response-1-rating": [{"user_id": "u", "value": 1, "status": "submitted"}],
        "response-2-rating": [{"user_id": "u", "value": 4, "status": "submitted"}],
    },
    "Argilla 2, ratings": argilla2(RATED, ["u"], ["submitted"]),
    "Label Studio": task("right"),
    "Label Studio, JSON-MIN": json_min("right"),
    "Label Studio, CSV": {**json_min("right"), "comparison": json.dumps([{"selected": "right"}])},
}
READ["Argilla 1, ratings"].pop("rank")


def test_a_question_that_compares_no_answers_leaves_a_chosen_and_a_rejected_one() -> None:
    checked = {
        "checked": [{"user_id": "u", "value": "yes", "status": "submitted"}],
        "tests": [{"value": 1, "status": "ok"}],
    }
    assert pairs_in({"prompt": ASK, "chosen": GOOD, "rejected": BAD, **checked}) == [(ASK, GOOD, BAD)]


@pytest.mark.parametrize("name", READ)
def test_the_answer_that_people_prefer_is_chosen(name: str) -> None:
    assert pairs_in(READ[name]) == [(ASK, GOOD, BAD)]


# ---------------------------------------------------------------- several annotators
@pytest.mark.parametrize(
    ("rows", "pairs", "notes"),
    [
        ([argilla1(ranked(1, 2), ranked(2, 1), ranked(2, 1))], 1, {DISAGREE: [1]}),
        ([argilla1(ranked(2, 1), ranked(1, 1))], 1, {}),
        ([argilla1(ranked(1, 2), ranked(2, 1))], 0, {"tie": [1]}),
        ([argilla1(ranked(1, 1))], 0, {"tie": [1]}),
        (
            [argilla1(ranked(2, 1), ranked(1, 2, status="discarded"), ranked(1, 2, status="draft"))],
            1,
            {NOT_SUBMITTED: [1]},
        ),
        ([argilla1(ranked(2, 1), ranked(1, None))], 1, {"an incomplete annotation left out": [1]}),
        # sizes do not count: two of three rate the second answer higher, by one point each
        (
            [argilla2({"generations-0": [5, 2, 2], "generations-1": [1, 3, 3]}, ["a", "b", "c"], ["submitted"] * 3)],
            1,
            {DISAGREE: [1]},
        ),
        (
            [argilla2({"generations-0": [5, 2], "generations-1": [1, 3]}, ["a", "b"], ["draft", "submitted"])],
            1,
            {NOT_SUBMITTED: [1]},
        ),
        ([task("left", "right", "right")], 1, {DISAGREE: [1]}),
        ([task("left", "right")], 0, {"tie": [1]}),
        ([task(None, "right")], 1, {NOT_SUBMITTED: [1]}),
        (
            [json_min("left"), json_min("right"), json_min("right")],
            1,
            {DISAGREE: [2], "another annotation of a task": [1, 3]},
        ),
        ([json_min("left"), json_min("right")], 0, {"tie": [1, 2]}),
    ],
)
def test_annotators_vote_and_a_tie_is_no_pair(
    rows: list[dict[str, Any]], pairs: int, notes: dict[str, list[int]]
) -> None:
    found = found_in(*rows)
    assert [(p.chosen, p.rejected) for p in found.preferences] == [(GOOD, BAD)] * pairs
    assert (found.faults, found.notes) == ([], notes)


def test_two_tasks_of_json_min_are_two_pairs_whose_votes_do_not_mix() -> None:
    found = found_in(json_min("right", id=1), json_min("left", id=2), json_min("left", id=2))
    assert [(p.id, p.chosen) for p in found.preferences] == [("1", GOOD), ("2", BAD)]


@pytest.mark.parametrize(
    "empty",
    [
        argilla1(),
        argilla1(ranked(2, 1, status="discarded")),
        argilla2({"generations-0": None, "generations-1": None}, [], []),
        argilla2({"generations-0": [2], "generations-1": None}, ["u"], ["submitted"]),
        task(),
        task(None),
        json_min("left", annotation=None),
    ],
)
def test_a_row_that_nobody_has_compared_is_counted_and_no_fault(empty: dict[str, Any]) -> None:
    whole = next(row for row in READ.values() if row.keys() - {"comparison"} == empty.keys() - {"comparison"})
    found = found_in({**whole, "prompt": "And blue?"} if "prompt" in whole else whole, empty)
    assert (len(found.preferences), found.faults, found.notes["no submitted annotation"]) == (1, [], [2])


def test_of_more_than_two_answers_the_best_stands_against_the_worst() -> None:
    three = {"answers": (FAIR, BAD, GOOD)}
    assert pairs_in(argilla1(ranked(2, 3, 1), **three)) == [(ASK, GOOD, BAD)]
    assert pairs_in(argilla1(ranked(2, 3, 1), ranked(3, 2, 1), ranked(1, 3, 2), **three)) == [(ASK, GOOD, BAD)]


def test_the_chosen_answer_is_the_one_that_more_annotators_prefer_to_the_rejected_one() -> None:
    # Borda: 1 stands at +4 +2 -4 = 2 and 5 at -4 +4 -2 = -2, but two of three annotators prefer 5 to 1
    votes = (ranked(1, 2, 3, 4, 5), ranked(2, 5, 3, 4, 1), ranked(5, 2, 3, 1, 4))
    found = found_in(argilla1(*votes, answers=("a", "b", "c", "d", "e")))
    assert (found.preferences, found.notes) == ([], {"tie": [1]})


# ---------------------------------------------------------------- refused with the fix
NESTED = {"id": "1", "fields": {"prompt": ASK}, "responses": {"rank": [{"value": ["a", "b"], "user_id": "u"}]}}
LOST = {f"rank.responses{end}": v for end, v in (("", [["response-2", "response-1"]]), (".users", ["u"]))}
LOST_2 = {"": [["generations-1", "generations-0"]], ".users": ["u"], ".status": ["submitted"]}
LABEL = {"prompt": ASK, "response1": BAD, "response2": GOOD}


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        (NESTED, "to_datasets()"),
        ({**argilla1(), **LOST, "rank.responses.status": ["submitted"]}, "take the ranks from the server's API"),
        (
            {**LABEL, "preference": [{"user_id": "u", "value": "Response 1", "status": "submitted"}]},
            "prompt, chosen, rejected",
        ),
        (argilla1(ranked(2, 1), truth=[ranked(1, 2)]), "data.ignore=[truth]"),
        ({**argilla1(ranked(2, 1, 3))}, "call the columns as the ranking does"),
        ({"query" if k == "prompt" else k: v for k, v in argilla1(ranked(2, 1)).items()}, "data.columns.prompt=query"),
        (argilla1(ranked(2, 1), context="Of two."), "data.columns.prompt=[context,prompt]"),
        (task("both"), "neither left nor right"),
        ({**task(), "annotations": [{"result": [{"value": {"choices": ["1"]}}]}]}, "neither left nor right"),
        (
            {**task(), "annotations": [{"result": [{"value": {"selected": s}} for s in ("left", "right")]}]},
            "one Pairwise control",
        ),
        (json_min("left", style=[{"selected": "right"}]), "data.ignore=[style]"),
        ({**json_min("left"), "comparison": "answer1"}, "prompt, chosen, rejected"),
    ],
)
def test_what_does_not_say_which_answer_is_better_is_refused_with_the_fix(row: dict[str, Any], fix: str) -> None:
    found = found_in(row)
    assert found.preferences == [] and [fix in str(fault) for fault in found.faults] == [True]
