"""Ranked lists and single labelled answers, from files to stored token items and the names of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pobench.cli.main import app
from pobench.data.audit import Audit, balance
from pobench.data.capacity import Extent
from pobench.data.order import Ratings, data_digest, data_order, items_digest, mismatch
from pobench.data.pairs_folder import PairsFolder
from pobench.data.prepare import inspect_items, prepare
from pobench.data.rows import Found, places_of_pairs
from pobench.data.shapes import UNMET, load_preferences, pairs_of_lists, recognise
from pobench.data.tokens import LEFT_LIST, NO_LIST, read_items
from pobench.errors import CorruptError, PobenchError
from pobench.registry import get_loss, list_losses
from pobench.runs.cost import Counts
from pobench.runs.plan import describe, make_plan
from pobench.runs.stage import Content
from pobench.runs.stages import reference, train
from pobench.settings.resolve import resolve
from pobench.types import Group, TokenAnswer, TokenList, TokenPair

NECTAR = {
    "prompt": "\n\nHuman: Which planet is red?\n\nAssistant: ",
    "answers": [{"answer": "No.", "rank": 3.0}, {"answer": "Mars is.", "rank": 1.0}, {"answer": "Venus.", "rank": 2.0}],
}
RATED = {"prompt": "Why?", "responses": ["a", "b", "c", "d"], "scores": [2, 7.5, 7.5, 1]}


def found_in(*rows: dict[str, Any], **options: Any) -> Found:
    return recognise(enumerate(rows, start=1), **options)


# ---------------------------------------------------------------- pairs of a list
RANKS = st.lists(st.integers(1, 4), min_size=2, max_size=6)


@given(RANKS)
def test_pairs_of_a_list_never_contradict_its_ranks_and_each_way_is_part_of_all(ranks: list[int]) -> None:
    made = {how: places_of_pairs(ranks, how) for how in ("all", "adjacent", "best_worst")}
    assert set(made["adjacent"]) | set(made["best_worst"]) <= set(made["all"])
    assert all(len(set(pairs)) == len(pairs) for pairs in made.values())
    assert all(ranks[better] < ranks[worse] for better, worse in made["all"])
    tied = sum(ranks[i] == ranks[j] for j in range(len(ranks)) for i in range(j))
    assert len(made["all"]) + tied == len(ranks) * (len(ranks) - 1) // 2
    assert not any(ranks[i] < rank < ranks[j] for i, j in made["adjacent"] for rank in ranks)
    assert [(ranks[i], ranks[j]) for i, j in made["best_worst"]] == [(min(ranks), max(ranks))] * (len(set(ranks)) > 1)


@given(RANKS.flatmap(lambda ranks: st.tuples(st.just(ranks), st.permutations(range(len(ranks))))))
def test_the_order_of_a_lists_answers_changes_no_pair(case: tuple[list[int], list[int]]) -> None:
    ranks, order = case
    for how in ("all", "adjacent"):
        moved = places_of_pairs([ranks[i] for i in order], how)
        assert {(order[i], order[j]) for i, j in moved} == set(places_of_pairs(ranks, how))


def test_each_answer_meets_those_of_the_next_worse_rank() -> None:
    # ranks 1, 2, 2, 3: the best against both of rank 2, both of rank 2 against the worst
    assert places_of_pairs([1, 2, 2, 3], "adjacent") == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert places_of_pairs([2, 1], "best_worst") == places_of_pairs([2, 1], "all") == [(1, 0)]


# ---------------------------------------------------------------- rows that are lists
def test_a_ranked_row_is_a_list_and_its_best_answer_meets_the_worst() -> None:
    found = found_in(NECTAR)
    (one,), (pair,) = found.lists, found.preferences
    assert (one.answers, one.ranks, one.scores) == (("No.", "Mars is.", "Venus."), (3, 1, 2), None)
    assert (pair.chosen, pair.rejected, pair.id) == ("Mars is.", "No.", one.id)
    every = found_in(NECTAR, pairs_from="all").preferences
    assert [(p.chosen, p.rejected) for p in every] == [("Mars is.", "Venus."), ("Mars is.", "No."), ("Venus.", "No.")]
    assert len({p.id for p in every}) == 3 and all(p.id.startswith(f"{one.id}#") for p in every)


def test_ratings_rank_a_list_and_go_with_its_pairs() -> None:
    found = found_in(RATED, pairs_from="adjacent")
    (one,) = found.lists
    assert (one.ranks, one.scores) == ((2, 1, 1, 3), (2.0, 7.5, 7.5, 1.0))
    assert [(p.chosen, p.rejected, p.scores) for p in found.preferences] == [
        ("b", "a", (7.5, 2.0)),
        ("c", "a", (7.5, 2.0)),
        ("a", "d", (2.0, 1.0)),
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "responses": ["c", "a", "b"], "ranks": [3, 1, 2]},
        {"prompt": "Why?", "answers": ["c", "a", "b"], "ranks": [2, 0, 1]},
        {"prompt": "Why?", "answers": ["c", "a", "b"], "scores": [0.1, 9, "3"]},
        {"prompt": "Why?", "completions": ["c", "a", "b"], "ratings": [-1, 3, 0]},
        {"prompt": "Why?", "response": ["c", "a", "b"], "scores": [-1, 3, 0]},
        {"prompt": "Why?", "answers": [{"text": t, "rank": r} for t, r in zip("cab", (9, 2, 4), strict=True)]},
        {
            "instruction": "Why?",
            "completions": [{"response": t, "overall_score": s} for t, s in zip("cab", (1, 9, 2), strict=True)],
        },
    ],
)
def test_lists_are_read_under_the_names_that_people_have(row: dict[str, Any]) -> None:
    (one,) = found_in(row).lists
    assert (one.answers, one.ranks) == (("c", "a", "b"), (3, 1, 2))


def test_votes_of_annotators_rank_a_list() -> None:
    def vote(*best_first: str) -> dict[str, Any]:
        ranks = [{"rank": rank, "value": name} for rank, name in enumerate(best_first, start=1)]
        return {"user_id": "u", "value": ranks, "status": "submitted"}

    row = {"prompt": "Why?", "x": "X.", "y": "Y.", "z": "Z."}
    (one,) = found_in({**row, "order": [vote("y", "x", "z"), vote("y", "z", "x"), vote("y", "x", "z")]}).lists
    assert dict(zip(one.answers, one.ranks, strict=True)) == {"Y.": 1, "X.": 2, "Z.": 3}


def test_a_list_whose_answers_all_tie_is_left_out_and_counted() -> None:
    found = found_in({**RATED, "scores": [3, 3, 3, 3]}, RATED)
    assert found.notes == {"tie": [1]} and len(found.lists) == 1
    (told,) = Audit.of_file(found).beside
    assert told.startswith("1 lists of 4 answers, with 1 ties of two answers, which make no pair; 1 pairs made of them")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "Why?", "responses": ["a", "b"], "ranks": [1]}, "not one rank per answer"),
        ({"prompt": "Why?", "responses": ["a", "b"], "ranks": [1, "first"]}, "rank is no number"),
        ({"prompt": "Why?", "responses": ["a", "b"], "scores": [1, 2, 3]}, "not one score per answer"),
        ({"prompt": "Why?", "answers": [{"text": "a", "rank": 1}, {"text": "b"}]}, "rank is no number"),
        ({"prompt": "Why?", "completion": "a", "label": "perhaps"}, "label is neither true nor false"),
        ({"prompt": "Why?", "completion": " ", "label": True}, "empty answer"),
    ],
)
def test_a_bad_row_of_a_list_or_an_answer_is_named(row: dict[str, Any], problem: str) -> None:
    found = found_in(row)
    assert not (found.lists or found.answers or found.preferences)
    assert [fault.row for fault in found.faults] == [1] and problem in str(found.faults[0])


def test_an_answer_that_cannot_be_read_or_repeats_another_leaves_its_list() -> None:
    rows = [
        {**RATED, "responses": ["a", "b", "", "d"]},
        {**RATED, "prompt": "So?", "responses": ["a", "b", "a ", "d"], "scores": [3, 9, 2, 1]},
    ]
    found = found_in(*rows)
    assert [one.answers for one in found.lists] == [("a", "b", "d"), ("a", "b", "d")]
    assert [one.ranks for one in found.lists] == [(2, 1, 3), (2, 1, 3)] and not found.faults
    assert found.notes == {LEFT_LIST.format("empty answer"): [1], LEFT_LIST.format("it repeats another"): [2]}


def test_lists_lose_the_prompt_that_most_answers_repeat_and_equal_lists_are_one() -> None:
    row = {"prompt": "Why?", "responses": ["Why? a", "Why? b", "Why? c"], "scores": [1, 2, 3]}
    for how, pairs in (("best_worst", 1), ("all", 3)):
        found = found_in(row, row, {**row, "id": "own"}, pairs_from=how)
        assert [one.answers for one in found.lists] == [("a", "b", "c")] and len(found.preferences) == pairs
        assert found.notes["duplicated row"] == [2, 3]
    kept = found_in(row, {**row, "id": "own"}, row, duplicates="keep")
    assert [one.id for one in kept.lists] == [pair.id for pair in kept.preferences] and len(kept.lists) == 3


# ---------------------------------------------------------------- rows that are single answers
UNPAIRED = [
    {"prompt": "w1", "completion": "w2", "label": True, "score": 4},
    {"prompt": "w1", "completion": "w3 w4", "label": False, "score": 1},
    {"prompt": "w1", "completion": "w5", "label": 1},
    {"prompt": "w6", "completion": "w7", "label": "undesirable"},
]


def test_every_labelled_row_stays_an_answer_and_pairs_are_made_where_a_prompt_has_both() -> None:
    found = found_in(*UNPAIRED)
    assert [(a.answer, a.label, a.score) for a in found.answers] == [
        ("w2", True, 4.0),
        ("w3 w4", False, 1.0),
        ("w5", True, None),
        ("w7", False, None),
    ]
    assert [(p.chosen, p.rejected) for p in found.preferences] == [("w2", "w3 w4")] and found.notes == {UNMET: [3, 4]}
    counted, advice = Audit.of_file(found).beside
    assert (
        counted
        == "4 single answers to 2 prompts, 2 desirable, 2 undesirable; 1 pairs made of them, where a prompt has both"
    )
    assert advice.endswith("here 1 times at weights of 1, as advised")


@given(st.permutations(range(len(UNPAIRED))))
def test_the_order_of_labelled_rows_changes_no_answer(order: list[int]) -> None:
    rows = [(a.id, a.answer, a.label, a.score) for a in found_in(*(UNPAIRED[i] for i in order)).answers]
    assert sorted(rows) == sorted((a.id, a.answer, a.label, a.score) for a in found_in(*UNPAIRED).answers)
    assert [answer for _, answer, *_ in rows] == [UNPAIRED[i]["completion"] for i in order]


@given(st.integers(1, 500), st.integers(1, 500))
def test_the_advised_weights_bring_the_kinds_into_balance(good: int, bad: int) -> None:
    words = balance(good, bad).split()
    if words[-1] == "advised":
        assert 1 <= good / bad <= 4 / 3
        return
    name, low, high = words[-5], float(words[-3]), float(words[-1])
    for weight in (low, high):
        weights = {"desirable_weight": 1.0, "undesirable_weight": 1.0, name: weight}
        share = weights["desirable_weight"] * good / (weights["undesirable_weight"] * bad)
        assert 1 - 1e-3 <= share <= 4 / 3 + 1e-3  # of four digits
    assert name in get_loss("kto_unpaired").settings


def test_answers_of_one_label_are_balanced_by_no_weights() -> None:
    assert balance(3, 0) == balance(0, 2) == "all have one label, which no weights balance"


# ---------------------------------------------------------------- token items
def lists_of(*rows: dict[str, Any], tokenizer: Any, pairs_from: Any = "best_worst", **how: Any) -> Any:
    return read_items(found_in(*rows, pairs_from=pairs_from), tokenizer, **how)


LIST = {"id": "l", "prompt": "say w1", "responses": ["w2", "w3 w4 w5 w6", "w7 w8"], "scores": [3, 2, 1]}


def test_lists_become_token_lists_and_their_pairs_have_the_same_tokens(word_tokenizer: Any) -> None:
    both = {how: lists_of(LIST, tokenizer=word_tokenizer, pairs_from=how) for how in ("best_worst", "all", "adjacent")}
    (one,) = both["all"].lists
    assert (one.ranks, one.scores, one.id) == ((1, 2, 3), (3.0, 2.0, 1.0), "l")
    assert all(items.lists == [one] for items in both.values())
    for how, places in (("best_worst", [(0, 2)]), ("all", [(0, 1), (0, 2), (1, 2)]), ("adjacent", [(0, 1), (1, 2)])):
        made = [(one.prompt, one.responses[i], one.responses[j]) for i, j in places]
        assert [pair.sequences for pair in both[how].pairs] == made
        texts = pairs_of_lists(found_in(LIST).lists, how)
        assert how == "best_worst" or [p.id for p in both[how].pairs] == [p.id for p in texts]


def test_an_over_long_answer_leaves_its_list_and_the_others_keep_their_names(word_tokenizer: Any) -> None:
    (whole,) = lists_of(LIST, tokenizer=word_tokenizer).lists
    limit = len(whole.prompt) + len(whole.responses[2])
    how = {"max_length": limit, "max_prompt_length": len(whole.prompt)}
    short = lists_of(LIST, tokenizer=word_tokenizer, pairs_from="all", **how)
    (one,) = short.lists
    assert one.responses == (whole.responses[0], whole.responses[2]) and (one.ranks, one.scores) == ((1, 2), (3.0, 1.0))
    assert [pair.id for pair in short.pairs] == ["l#1-3"] and short.audit.notes == {
        LEFT_LIST.format("over-long answer"): [1]
    }
    cut = lists_of(LIST, tokenizer=word_tokenizer, truncation="cut", **how).lists[0]
    assert len(cut.responses[1]) == len(whole.responses[2]) and cut.responses[1][-1] == whole.responses[1][-1]
    with pytest.raises(PobenchError, match="over-long prompt"):
        lists_of(LIST, tokenizer=word_tokenizer, pairs_from="all", **{**how, "max_prompt_length": 1})


LOST = "w9 w9 w9 w9 w9 w9"  # over-long; its ranks and the others' are those of FOUR
FOUR = {"id": "l", "prompt": "say w1", "responses": ["w2", LOST, "w3 w4", "w7 w8"], "scores": [4, 3, 3, 1]}


@pytest.mark.parametrize(
    "responses, why, adjacent",
    [
        (["w2", LOST, "w3 w4", "w7 w8"], "over-long answer", ["l#1-3", "l#3-4"]),  # a tied one: its rank stays
        (["w2", "w3 w4", LOST, "w7 w8"], "over-long answer", ["l#1-2", "l#2-4"]),
        (["w2", "w3 w4", "w2", "w7 w8"], "it repeats another", ["l#1-2", "l#2-3"]),  # the worse of the same words
        (["w2", " ", "w3 w4", "w7 w8"], "empty answer", ["l#1-2", "l#2-3"]),
        (
            ["w2", LOST, f"{LOST} w9", "w7 w8"],
            "over-long answer",
            ["l#1-4"],
        ),  # the whole rank: its neighbours are adjacent
    ],
)
def test_a_lost_answer_is_in_no_pair_and_what_stood_around_it_is_adjacent(
    word_tokenizer: Any, responses: list[str], why: str, adjacent: list[str]
) -> None:
    (whole,) = lists_of(FOUR, tokenizer=word_tokenizer).lists
    limit = len(whole.prompt) + len(whole.responses[3])
    how: dict[str, Any] = {"tokenizer": word_tokenizer, "max_length": limit, "max_prompt_length": len(whole.prompt)}
    row = {**FOUR, "responses": responses}
    every, near, ends = (lists_of(row, pairs_from=of, **how) for of in ("all", "adjacent", "best_worst"))
    (made,) = every.lists
    assert made == near.lists[0] == ends.lists[0] and LEFT_LIST.format(why) in near.audit.notes
    assert [pair.id for pair in near.pairs] == adjacent
    best_worst = [(pair.chosen, pair.rejected) for pair in ends.pairs]
    assert best_worst == [(whole.responses[0], whole.responses[3])]  # as of the whole list, and among all
    of = {
        kind: {(p.chosen, p.rejected, p.scores) for p in items.pairs}
        for kind, items in (("all", every), ("near", near))
    }
    ranks = dict(zip(made.responses, zip(made.ranks, made.scores or (), strict=True), strict=True))
    expected = {
        (a, b, (ranks[a][1], ranks[b][1])) for a in ranks for b in ranks if ranks[a][0] < ranks[b][0]
    }  # fmt: skip
    assert of["all"] == expected and of["near"] <= of["all"] and len(every.pairs) == len(expected)


def test_a_list_that_keeps_one_rank_gives_no_pair_and_is_counted(word_tokenizer: Any) -> None:
    (whole,) = lists_of(FOUR, tokenizer=word_tokenizer).lists
    how: dict[str, Any] = {"max_length": len(whole.prompt) + 3, "max_prompt_length": len(whole.prompt)}
    row = {**FOUR, "responses": [LOST, "w3 w4", "w5 w6", f"{LOST} w9"]}
    for of in ("all", "adjacent"):
        items = lists_of(row, {**FOUR, "prompt": "say w2"}, tokenizer=word_tokenizer, pairs_from=of, **how)
        assert len(items.lists) == 1 and items.audit.notes[NO_LIST] == [1] and not items.audit.faults


def test_a_row_that_is_bad_as_a_pair_has_no_list(word_tokenizer: Any) -> None:
    rows = [{**LIST, "responses": ["w3 w4 w5 w6 w7 w8", "w2", "w9"]}, {**LIST, "prompt": "say w2", "id": "other"}]
    items = lists_of(*rows, tokenizer=word_tokenizer, max_length=13, max_prompt_length=7, on_bad_row="drop")
    assert [one.id for one in items.lists] == ["other"] and len(items.audit.faults) == 1


def test_answers_become_token_answers_and_pairs_are_made_of_their_tokens(word_tokenizer: Any) -> None:
    items = read_items(found_in(*UNPAIRED), word_tokenizer)
    assert [(a.label, a.score) for a in items.answers] == [(True, 4.0), (False, 1.0), (True, None), (False, None)]
    (pair,) = items.pairs
    assert pair.sequences == (items.answers[0].prompt, items.answers[0].response, items.answers[1].response)
    assert not items.lists and items.own == items.answers
    longest = max(len(Group.of(a).prompt) + len(a.response) for a in items.answers)
    short = read_items(
        found_in(*UNPAIRED), word_tokenizer, max_length=longest - 1, max_prompt_length=longest - 3, on_bad_row="drop"
    )
    assert len(short.answers) == 3 and not short.pairs  # the rejected answer is too long
    assert [str(fault) for fault in short.audit.faults] == [
        f"row 2, 'completion': over-long answer; got {longest} tokens; allowed {longest - 1}"
    ]


# ---------------------------------------------------------------- digests, order
PAIR = TokenPair("a", (1, 2), (3,), (4, 5))
ONE = TokenList("a", (1, 2), ((3,), (4, 5), (6,)), (1, 2, 2), (3.0, 2.0, 2.0))
SINGLE = TokenAnswer("a", (1, 2), (3,), True, 0.5)


def test_the_names_of_runs_on_pairs_are_what_they_were() -> None:
    # computed by the program before there were lists
    assert data_digest([PAIR]) == "5d0b22d9201f9484bda39e25ba41f09a72d9f42c0c80a3b55a596b519639afb3"
    assert items_digest([PAIR]) == "0fbc1e5ca84385b1913ad9fe596e2c0bf8c152c8b1e3c73f46e55d969b244d9b"


def test_a_digest_tells_apart_what_training_tells_apart_and_no_more() -> None:
    different = [
        *(PAIR, ONE, SINGLE, ONE._replace(ranks=(1, 1, 2)), ONE._replace(responses=ONE.responses[::-1])),
        *(SINGLE._replace(label=False), ONE._replace(id="b"), SINGLE._replace(prompt=(1,))),
    ]
    assert len({items_digest([item]) for item in different}) == len(different)
    assert items_digest([ONE._replace(scores=None)]) == items_digest([ONE])
    assert Ratings.of([ONE]).digest != Ratings.of([ONE._replace(scores=None)]).digest
    assert Ratings.of([SINGLE, SINGLE._replace(score=None, id="b")])[1:] == (1, ("b",))


def test_lists_and_answers_have_an_order_and_partners_as_pairs_have() -> None:
    pairs = [PAIR._replace(id=str(i), prompt=(i,)) for i in range(9)]
    for kind in (ONE, SINGLE):
        items = [kind._replace(id=str(i), prompt=(i,)) for i in range(9)]
        assert data_order(items, 3, 2).digest == data_order(pairs, 3, 2).digest
        partners = mismatch(items)
        assert sorted(partners) == [*range(9)] and all(i != j for i, j in enumerate(partners))


# ---------------------------------------------------------------- prepared, stored, planned
def job_of(tmp_path: Path, loss: str, rows: list[dict[str, Any]], **changes: Any) -> Any:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"data.source": str(tmp_path / "rows.jsonl"), **{k.replace("__", "."): v for k, v in changes.items()}}
    return resolve(str(tmp_path / "small.yaml"), loss, overrides=values)[0]


def ranked_rows(count: int) -> list[dict[str, Any]]:
    texts = [[f"w{i} w1", f"w{i} w2 w3", f"w{i} w4"] for i in range(count)]
    return [
        {"id": str(i), "prompt": f"say w{i}", "responses": text, "scores": [3, 1, 2]} for i, text in enumerate(texts)
    ]


def labelled_rows(count: int, *labels: bool) -> list[dict[str, Any]]:
    return [
        {"prompt": f"say w{i}", "completion": f"w{i} w{n}", "label": label, "score": n}
        for i in range(count)
        for n, label in enumerate(labels)
    ]


def test_a_loss_gets_lists_where_the_data_have_them_and_pairs_else(setting, tmp_path) -> None:
    prepared = prepare(job_of(tmp_path, "plackett_luce", ranked_rows(10), data__pairs_from="all"))
    lists = prepared.items("lists")
    assert lists == prepared.lists and prepared.items("answers") == prepared.items("pairs") == prepared.train
    assert len(prepared.train) == 3 * len(lists) and 0 < len(lists) < 10
    assert not {one.prompt for one in lists} & {pair.prompt for pair in prepared.heldout}
    assert f"{len(lists)} lists of 3 answers" in prepared.text()
    assert Extent.of(prepared.groups).longest == max(
        len(g.prompt) + max(map(len, g.responses)) for g in map(Group.of, lists)
    )
    plain = prepare(resolve(str(tmp_path / "small.yaml"), "simpo")[0])
    assert plain.items("lists") == plain.items("answers") == plain.train


def test_a_smaller_set_has_as_many_lists_as_pairs_and_twice_as_many_answers(setting, tmp_path) -> None:
    ranked = prepare(job_of(tmp_path, "simpo", ranked_rows(10), data__max_pairs=3))
    assert len(ranked.train) == len(ranked.lists) == 3
    assert {p.id for p in ranked.train} == {one.id for one in ranked.lists}  # the same prompts
    single = prepare(job_of(tmp_path, "simpo", labelled_rows(10, True, False, False), data__max_pairs=3))
    assert len(single.train) == 3 and len(single.answers) == 6
    counts = dict(zip(single.audit["fault"], single.audit["count"], strict=True))
    labels = [answer.label for answer in single.answers]
    assert counts["used for training, desirable answers"] == labels.count(True) < 6
    assert counts["used for training, undesirable answers"] == labels.count(False) < 6
    assert not {a.prompt for a in single.answers} & {p.prompt for p in single.heldout}


def test_prompts_of_held_out_pairs_leave_training_for_lists_and_answers_too(setting, tmp_path) -> None:
    held = [{"prompt": f"say  w{i}", "chosen": "w1", "rejected": "w2"} for i in (2, 5)]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    for rows, unit, left in ((ranked_rows(7), "lists", 5), (labelled_rows(7, True, True), "answers", 10)):
        prepared = prepare(job_of(tmp_path, "simpo", rows, data__held_out=str(tmp_path / "held.jsonl")))
        assert len(prepared.items(unit)) == left and len(prepared.heldout) == 2
        assert f"training {unit} left out: their prompts are held out" in prepared.text()


def test_biased_labels_are_read_by_losses_of_every_unit(setting, tmp_path) -> None:
    prepared = prepare(job_of(tmp_path, "simpo", ranked_rows(10), data__length_bias=1.0))
    assert prepared.items("lists") == prepared.train and "read the biased pairs" in prepared.text()
    with pytest.raises(PobenchError, match="the data have no pairs"):
        prepare(job_of(tmp_path, "kto_unpaired", labelled_rows(9, True), data__length_bias=0.5))


@pytest.mark.parametrize("rows", [ranked_rows(9), labelled_rows(9, True, False, False), labelled_rows(9, True)])
def test_items_are_stored_beside_the_pairs_and_damage_is_found(setting, tmp_path, rows) -> None:
    prepared = prepare(job_of(tmp_path, "simpo", rows))
    folder = PairsFolder(tmp_path / "stored")
    folder.store(prepared, {})
    loaded = folder.load()
    assert (loaded.train, loaded.heldout) == (prepared.train, prepared.heldout)
    assert (loaded.lists, loaded.answers) == (prepared.lists, prepared.answers) and (prepared.lists or prepared.answers)
    unit = "lists" if prepared.lists else "answers"
    assert folder.about["pairs"][unit] == len(prepared.items(unit)) and folder.extent == Extent.of(prepared.groups)
    assert folder.about["digests"][unit] == items_digest(prepared.items(unit))
    path = folder.path / f"{unit}.arrow"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert [str(fault) for fault in folder.faults()]
    with pytest.raises(CorruptError, match=unit):
        folder.load()


def test_a_folder_of_pairs_alone_is_what_it_was(setting, tmp_path) -> None:
    folder = PairsFolder(tmp_path / "stored")
    folder.store(prepare(resolve(str(tmp_path / "small.yaml"), "simpo")[0]), {})
    assert sorted(path.name for path in folder.path.iterdir()) == [
        "audit.json",
        "data.json",
        "heldout.arrow",
        "train.arrow",
    ]
    kept = ("causes", "digests", "pairs", "ratings", "prompts", "tokens", "extent", "summary", "files")
    assert tuple(folder.about) == kept
    assert list(folder.about["digests"]) == list(folder.about["pairs"]) == ["train", "heldout"]
    assert resolve(str(tmp_path / "small.yaml"), "simpo")[0].data.causes().keys().isdisjoint({"pairs_from"})


def test_a_loss_of_pairs_without_pairs_is_refused_with_the_losses_that_can_train(
    setting, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    rows = labelled_rows(9, True)
    with pytest.raises(PobenchError, match=r"^simpo: no prompt of the data has both .*\(.*kto_unpaired.*\)$"):
        make_plan([job_of(tmp_path, "simpo", rows)], tmp_path / "runs", ("train",))
    assert not (tmp_path / "runs").exists()
    plan = make_plan([job_of(tmp_path, "kto_unpaired", rows)], tmp_path / "runs", ("train",))
    assert plan.counts == Counts(0, 0, 0.0, 0, plan.pairs.own) and plan.pairs.own["answers"].items > 0


def test_what_is_measured_on_pairs_is_left_out_in_a_sentence_where_there_are_none(
    setting, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    stages = ("train", "heldout", "trainpairs", "gradient_norms", "answers", "judge")
    plan = make_plan([job_of(tmp_path, "kto_unpaired", labelled_rows(9, True))], tmp_path / "runs", stages)
    assert [task.stages for task in plan.tasks if task.kind == "loss"] == [("train",), ("answers", "judge")]
    assert {which for task in plan.tasks for which in task.references} == {"answers", "mismatched_answers"}
    assert [note for note in plan.notes if "held-out pairs" in note and "data.held_out" in note]
    only = make_plan([job_of(tmp_path, "kto_unpaired", labelled_rows(9, True))], tmp_path / "runs", ("reference",))
    assert {which for task in only.tasks for which in task.references} == {"answers", "mismatched_answers"}
    held = {"data__held_out": str(tmp_path / "pairs.jsonl")}
    whole = make_plan([job_of(tmp_path, "kto_unpaired", labelled_rows(12, True), **held)], tmp_path / "runs", stages)
    assert {*whole.tasks[-1].stages} == {"heldout", "gradient_norms", "answers", "judge"} and whole.counts.heldout == 10


def test_an_estimate_counts_what_a_loss_is_trained_on(setting, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    plan = make_plan(
        [job_of(tmp_path, loss, ranked_rows(10)) for loss in ("dpo", "plackett_luce")], tmp_path / "r", ("train",)
    )
    longest = max(Group.of(one).tokens for one in prepare(job_of(tmp_path, "dpo", ranked_rows(10))).lists)
    for counts in (plan.counts, plan.counts._replace(longest=5)):
        assert counts.longest_of("plackett_luce") == longest > counts.longest_of("dpo") == counts.longest
    plan.pairs.store()
    again = make_plan([job_of(tmp_path, "dpo", ranked_rows(10))], tmp_path / "r", ("train",))
    assert again.pairs.prepared is None and again.counts.own == plan.counts.own
    assert describe(again)["lists"] == len(plan.pairs.prepared.lists)


def test_runs_are_named_by_what_their_losses_train_on(setting, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    job = job_of(tmp_path, "plackett_luce", ranked_rows(10))
    made: list[dict[str, Any]] = []
    for how in ("best_worst", "all"):
        jobs = [job_of(tmp_path, loss, ranked_rows(10), data__pairs_from=how) for loss in ("plackett_luce", "dpo")]
        plan = make_plan(jobs, tmp_path / "runs", ("train",))
        made.append({task.job.loss: task.causes["pairs"] for task in plan.tasks if task.stages == ("train",)})
        assert made[-1]["plackett_luce"] == items_digest(prepare(job).lists)
    assert made[0]["plackett_luce"] == made[1]["plackett_luce"] and made[0]["dpo"] != made[1]["dpo"]


def content_of(**own: Any) -> Content:
    sha = "0" * 64
    return Content(sha, sha, sha, None, None, "fp32", lambda kind, name: sha, sha, sha, sha, own)


def test_losses_of_lists_and_answers_share_the_pairs_sums_where_pairs_are_all_there_is(setting, tmp_path) -> None:
    job = resolve(str(tmp_path / "small.yaml"), "plackett_luce")[0]
    pure, lists = content_of(), content_of(lists=("1" * 64, "2" * 64))
    assert reference.node_of(job, pure, "lists") == reference.node_of(job, pure, "pairs")
    assert reference.node_of(job, pure, "mismatched_answers") == reference.node_of(job, pure, "mismatched")
    assert reference.node_of(job, lists, "lists").name != reference.node_of(job, lists, "pairs").name
    assert reference.node_of(job, lists, "pairs") == reference.node_of(job, pure, "pairs")
    assert train.causes(job, lists)["pairs"] == "1" * 64 and train.causes(job, pure)["pairs"] == "0" * 64


# ---------------------------------------------------------------- the command line
def test_what_convert_writes_is_read_back_as_the_same_lists_and_answers(tmp_path) -> None:
    rows = {"lists": [NECTAR, {**NECTAR, "id": "own"}], "answers": UNPAIRED}
    for unit, given_rows in (*rows.items(), ("lists", [RATED, {**RATED, "id": "own", "prompt": "So?"}])):
        source, out = tmp_path / "mine.jsonl", tmp_path / "out.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in given_rows))
        done = CliRunner().invoke(app, ["data", "convert", str(source), "--out", str(out), "--unit", unit])
        assert done.exit_code == 0, done.output
        before, after = load_preferences(source), load_preferences(out)
        assert getattr(after, unit) == getattr(before, unit) and getattr(before, unit)
        assert after.preferences == before.preferences or unit == "answers"
    first = json.loads(out.read_text().splitlines()[0])
    assert first["answers"][1] == {"text": "b", "rank": 1, "score": 7.5} and set(first) == {
        "id",
        "prompt",
        "answers",
        "row",
    }


def test_convert_writes_pairs_unless_there_are_none_and_names_what_there_is(tmp_path) -> None:
    source, out = tmp_path / "mine.jsonl", tmp_path / "out.jsonl"

    def convert(rows: list[dict[str, Any]], *more: str) -> Any:
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return CliRunner().invoke(app, ["data", "convert", str(source), "--out", str(out), *more])

    assert "--unit lists writes the lists themselves" in convert([RATED]).output
    assert json.loads(out.read_text())["chosen"] == "b"
    assert convert(UNPAIRED[:1]).exit_code == 0 and json.loads(out.read_text())["label"] is True
    refused = convert([RATED], "--unit", "answers")
    assert refused.exit_code != 0 and "it has no answers; it has pairs and lists" in str(refused.exception)


def test_inspect_shows_lists_and_answers_as_they_are(setting, tmp_path, pobench_cli) -> None:
    (shown,) = inspect_items(job_of(tmp_path, "simpo", [LIST, {**LIST, "prompt": "say w9"}]), 1, "lists")
    row = shown.row()
    assert [(one["rank"], one["score"]) for one in row["answers"]] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert row["prompt"] == row["asked"] and shown.item.responses == tuple(one["ids"] for one in row["answers"])
    command = ("data", "inspect", str(tmp_path / "rows.jsonl"), "--setting", str(tmp_path / "small.yaml"))
    text = pobench_cli(*command, "--unit", "lists")[1]
    assert "list 1 of 2" in text and "rank 3, score 1, 3 tokens" in text
    assert "chosen" in pobench_cli(*command, "--rows", "1")[1]
    job_of(tmp_path, "simpo", labelled_rows(2, True))
    status, text, _ = pobench_cli(*command, "--json")
    assert status == 0 and [(row["label"], row["score"]) for row in json.loads(text)] == [(True, 0.0)] * 2
    assert "desirable, score 0" in pobench_cli(*command)[1]


def test_every_loss_of_answers_or_lists_is_found_by_its_unit() -> None:
    units = {name: get_loss(name).unit for name in list_losses()}
    assert units["kto_unpaired"] == "answers" and units["plackett_luce"] == "lists" and units["dpo"] == "pairs"
