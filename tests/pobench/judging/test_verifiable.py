from __future__ import annotations

import math

import pytest

from pobench.errors import PobenchError
from pobench.judging import PointwiseJudge
from pobench.judging.verifiable import checks, obeys, plain, says_something, sentences, words
from pobench.registry import judges

# kind, parameters, an answer that obeys, an answer that does not
CASES = [
    ("at_most_words", {"n": 6}, "Bees make honey in their hives.", "Bees make honey in their very own hives."),
    ("at_least_words", {"n": 6}, "Bees make honey in their hives.", "Bees make honey in hives."),
    ("between_words", {"low": 5, "high": 6}, "Bees make honey in hives.", "Bees make honey in their very own hives."),
    ("exact_sentences", {"n": 2}, "Bees fly, e.g. to flowers. They make honey.", "Bees fly to flowers and make honey."),
    ("exact_sentences", {"n": 1}, "A bee weighs 0.1 grams, Dr. Brown says.", "A bee weighs 0.1 grams, Dr. Brown says"),
    ("exact_sentences", {"n": 2}, "Bees fly all day. They make honey!", "1. Bees fly all day.\n2. They make honey."),
    (
        "exact_paragraphs",
        {"n": 2},
        "Bees fly all day long.\n\nThey make honey in hives.",
        "Bees fly.\n\nThey make honey.",
    ),
    ("bullet_points", {"n": 2}, "- Bees fly all day\n- They make honey", "- Bees fly all day\n- Bees fly all day"),
    ("bullet_points", {"n": 2}, "Here:\n* Bees fly\n* They make honey", "1. Bees fly all day\n2. They make honey"),
    ("numbered_list", {"n": 2}, "1. Bees fly all day\n2) They make honey", "1. Bees fly all day\n1. They make honey"),
    ("numbered_list", {"n": 2}, "1. Bees fly\n2. They make honey", "1. Bees fly\n2. They make honey\n3. They sting"),
    ("comma_list", {"n": 3}, "honey, bee hive, and wax", "The hive, honey which is sweet, wax"),
    (
        "labelled_lines",
        {"labels": ["Good", "Bad"]},
        "Good: They make honey\nBad: They may sting",
        "Good: They make honey",
    ),
    (
        "json_keys",
        {"keys": ["a", "b"]},
        '```json\n{"a": "bees fly", "b": "honey"}\n```',
        '{"a": "bees fly far", "b": ""}',
    ),
    ("no_commas", {}, "Bees make honey in their hives.", "Bees, as we know, make honey."),
    ("no_digits", {}, "A hive has two thousand bees.", "A hive has 2000 bees in it."),
    ("lowercase", {}, "bees make honey in their hives.", "Bees make honey in their hives."),
    ("uppercase", {}, "BEES MAKE 100 POTS OF HONEY!", "BEES MAKE 100 pots OF HONEY!"),
    ("quoted", {}, "“Bees make honey in their hives.”", 'She said "bees make honey in their hives".'),
    ("one_bold", {}, "Bees make **sweet honey** in hives.", "**Bees** make **honey** in their hives."),
    ("one_question", {}, "Why do bees make honey?", "I know this one. Why do bees make honey?"),
    ("ends_with_question", {}, "Bees make honey. Do you like it?", "Do you like honey? Bees make it."),
    ("ends_with_exclamation", {}, '"Bees make honey in their hives!"', "Bees make honey! We eat it."),
    ("begins_with", {"phrase": "In short"}, "In short, bees make sweet honey.", "In shorts, bees make sweet honey."),
    ("ends_with", {"phrase": "the end"}, "Bees make honey in their hives, the end!", "The bees make the end."),
    (
        "contains_words",
        {"all_of": ["good", "sun"]},
        "In the sun, bees make Good honey.",
        "Bees make goods in the sunshine.",
    ),
    ("avoids_words", {"none_of": ["the"]}, "Bees make honey; they bathe there.", "Bees make The best honey around."),
    (
        "word_times",
        {"word": "honey", "n": 2},
        "Honey is sweet; bees make honey.",
        "Bees make honey, just honey, good honey.",
    ),
]


@pytest.mark.parametrize(("kind", "parameters", "good", "bad"), CASES)
def test_a_demand_is_met_by_the_answer_that_obeys_and_not_by_the_other(kind, parameters, good, bad):
    check = {"kind": kind, **parameters}
    assert obeys(good, check)
    assert not obeys(bad, check)


# What checks once got wrong: kind, parameters, answers that obey, answers that do not.
TRAPS = [
    (
        "one_question",
        {},
        ["*Why do bees make honey?*", "“Why do bees buzz?”", 'Would you call a bee "busy"?', "Why do bees buzz? 🐝"],
        [
            'A child might ask: "Why do bees buzz?"',
            'A teacher might ask, "Why do bees buzz?',
            "A curious child might ask, why do bees buzz?",
            "Question: Why do bees buzz?",
            'What is the answer to "Why do bees buzz?"',
            "What I would ask is: why do bees buzz?",
        ],
    ),
    (
        "one_question",
        {},
        ["Which is true of bees: do they sleep or not?", "If you could ask a bee, what would it be?"],
        [],
    ),
    (
        "ends_with_exclamation",
        {},
        ["Bees make the best honey! 🐝", "Bees make the best honey!\u200b", "Bees make the best honey!\u00a0"],
        ["Do bees make the best honey?!", "Do bees make the best honey⁈"],
    ),
    ("ends_with_question", {}, ["Bees make honey. Do you like it? 😀"], ["Bees make honey. Do you like it!?"]),
    (
        "ends_with",
        {"phrase": "the end"},
        ["Bees make honey in their hives, **the end**. 🐝"],
        ["Bees make honey at the bathe-the end-"],
    ),
    ("ends_with", {"phrase": "known"}, [], ["Bees that make this honey are well-known."]),
    (
        "begins_with",
        {"phrase": "In short"},
        ["**In\u00a0short**, bees make honey."],
        ["In short-lived hives bees make honey."],
    ),
    ("quoted", {}, ['**"Bees make honey in hives."**'], ['"Bees make honey in hives.”', '“Bees make honey in hives."']),
    (
        "avoids_words",
        {"none_of": ["café", "it's"]},
        ["Bees like the cafés in town."],
        [
            "Bees like the cafe\u0301 in town.",
            "Bees like the _café_ in town.",
            "Bees say it’s their own town.",
            "Bees like the ca\u00adfé in town.",
        ],
    ),
    ("contains_words", {"all_of": ["good"]}, ["Bees make __good__ honey in hives."], []),
    ("word_times", {"word": "good", "n": 1}, [], ["Bees make _good_ and good honey."]),
    ("no_digits", {}, [], ["A hive has nine m² of wax.", "They use ½ of the honey.", "Bees fly ① and then sting."]),
    ("no_commas", {}, [], ["Bees， as we know make honey."]),
    ("lowercase", {}, [], ["10 20 30 40 50 60"]),
    ("at_least_words", {"n": 5}, [], ["10 20 30 40 50 60"]),
    ("at_most_words", {"n": 2}, ["Sweet honey."], ["Sweet golden honey."]),
    ("at_most_words", {"n": 1}, ["Honey."], ["12."]),
    ("between_words", {"low": 1, "high": 3}, ["Bees make honey."], []),
    ("numbered_list", {"n": 2}, ["1. honey\n2. wax", "**1.** honey\n**2.** wax"], []),
    ("numbered_list", {"n": 2, "last": True}, [], ["1. sweet honey\n2. yellow wax\nThat is all."]),
    ("numbered_list", {"n": 2, "item_words": 3}, [], ["1. sweet honey\n2. a lot of wax"]),
    ("comma_list", {"n": 2}, ["honey, wax"], []),
    ("bullet_points", {"n": 2}, [f"{m} Bees fly all day\n{m} They make honey" for m in "-*+–•◦‣·"], []),
    ("bullet_points", {"n": 2, "mark": "*"}, ["* Bees *fly*\n* They make honey"], ["- Bees fly\n- They make honey"]),
    ("bullet_points", {"n": 2, "item_words": 3}, [], ["- Bees fly all day\n- They make honey"]),
    ("json_keys", {"keys": ["a"]}, ['{"a": "_honey_"}'], ['{"a": "bees", "a": "honey"}']),
    (
        "exact_sentences",
        {"n": 2},
        [
            "bees fly all day. they make honey.",
            "Bees fly until 5 p.m. They make honey. 🐝",
            "Bees need vitamin C. It helps them.",
        ],
        ["Bees fly until 5 p.m. every day.", "Bees... they make sweet honey."],
    ),
    (
        "exact_sentences",
        {"n": 1},
        ["Bees, wasps, etc. make honey."],
        ["bees fly all day. they make honey.", "Bees fly all day.They make honey."],
    ),
    ("exact_sentences", {"n": 2}, ["Bees said no. They do not fly."], ["See No. 5 about the bees."]),
]


@pytest.mark.parametrize(("kind", "parameters", "good", "bad"), TRAPS)
def test_marks_that_a_reader_does_not_see_and_words_around_the_answer_change_no_verdict(kind, parameters, good, bad):
    check = {"kind": kind, **parameters}
    assert [text for text in good if not obeys(text, check)] == []
    assert [text for text in bad if obeys(text, check)] == []


def test_a_stated_number_of_sentences_is_part_of_the_demand():
    check = {"kind": "no_commas", "sentences": [1, 2]}
    assert obeys("Bees make honey in hives.", check) and obeys("Bees make honey. They also sting.", check)
    assert not obeys("Bees make honey. They also sting. Wasps do too.", check)
    with pytest.raises(PobenchError, match="no_commas"):
        obeys("Bees make honey in hives.", {"kind": "no_commas", "sentences": [1]})


def test_a_text_is_read_without_what_a_reader_does_not_see():
    assert plain("**Bees** _make_ ***sweet*** ho\u200bney") == "Bees make sweet honey"
    assert plain("* snake_case_name \n* 2 * 3") == "* snake_case_name \n* 2 * 3"  # neither is emphasis
    assert plain("**bold _and_ italic**", emphasis=True) == "**bold _and_ italic**"
    assert plain("**bold _and_ italic**") == "bold and italic"


def test_every_kind_of_check_has_a_case():
    assert {kind for kind, *_ in CASES} == set(checks)
    assert len(checks) >= 12


@pytest.mark.parametrize("kind", sorted({kind for kind, *_ in CASES}))
@pytest.mark.parametrize(
    "text", ["", " \n", "...", "!!!", "bees bees bees bees bees bees", "the the the. the the the?"]
)
def test_no_degenerate_answer_meets_any_demand(kind, text):
    parameters = next(p for k, p, *_ in CASES if k == kind)
    assert not obeys(text, {"kind": kind, **parameters})


def test_a_looping_answer_says_nothing():
    assert says_something("Bees make honey in their hives.")
    assert not says_something("Bees make honey. " * 6)  # 3 of 18 words are distinct
    assert not says_something("Bees make very very very sweet honey in hives.")
    assert not says_something("Bees make honey in hives. They also sting people. Bees make honey in hives.")
    assert not says_something("Yes, they do.")


def test_a_stock_answer_is_not_about_the_topic():
    check = {"kind": "no_commas", "about": ["ant", "colon*"]}
    assert obeys("Ants live in large groups.", check)
    assert obeys("They live together in big colonies.", check)
    assert not obeys("I want to give an important answer.", check)  # "ant" inside other words does not count
    assert not obeys("Sorry but I cannot help you with that.", check)


def test_an_answer_that_was_cut_off_scores_zero():
    judge = judges.get("verifiable")()
    row = {"id": "1", "prompt": "Describe bees without commas.", "check": {"kind": "no_commas"}}
    text = "Bees make honey in their hives"
    assert judge.score(row, text) == 1.0
    assert judge.score(row, text, finished=False) == 0.0


def test_a_row_without_a_check_is_not_scored():
    judge = judges.get("verifiable")()
    assert isinstance(judge, PointwiseJudge)
    assert math.isnan(judge.score({"id": "1", "prompt": "Describe bees."}, "Bees make honey."))


def test_an_unknown_check_names_the_nearest():
    with pytest.raises(PobenchError, match="did you mean 'no_commas'"):
        obeys("Bees make honey.", {"kind": "no_comma"})


@pytest.mark.parametrize("parameters", [{}, {"n": 3, "m": 4}])
def test_a_check_with_wrong_parameters_is_refused(parameters):
    with pytest.raises(PobenchError, match="at_most_words"):
        obeys("Bees make honey.", {"kind": "at_most_words", **parameters})


def test_words_and_sentences_are_counted_as_people_count_them():
    assert words("It's a well-known fact: 3.5 km, isn't it?") == [
        "It's",
        "a",
        "well-known",
        "fact",
        "3",
        "5",
        "km",
        "isn't",
        "it",
    ]
    assert len(sentences("Dr. Lee met Mr. Fox at 3.30 p.m. yesterday. “Hello!” she said. He left...")) == 3
    assert len(sentences("bees fly. they make honey. do they sting?")) == 3
    assert sentences("...\n\n?!") == []
