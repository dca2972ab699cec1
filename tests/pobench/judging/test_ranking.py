"""Several answers to a prompt become one preference, whichever kind of judge ranks them."""

from __future__ import annotations

import math

import pytest

from pobench.data.shapes import recognise
from pobench.errors import PobenchError
from pobench.judging.pairwise import Comparison, TwoOrders, Verdict
from pobench.judging.ranking import Ranked, Sample, best_against_worst, human_over_own

ROWS = [{"id": f"p{i}", "prompt": text, "kind": "any"} for i, text in enumerate(("hi", "what is a bee?", "go on"))]


def said(pair: Ranked) -> tuple[str, str]:
    return pair.chosen.text, pair.rejected.text


class ByFirstLetter:
    """Scores by the answer's first letter: a is 1, z is 0; no letter, no opinion."""

    name = "first-letter"

    def score(self, row, text, finished=True):
        letter = text[:1].lower()
        return 1 - (ord(letter) - ord("a")) / 25 if letter.isascii() and letter.isalpha() else math.nan


def of(prompt: str, *answers: tuple[str, int], finished: bool = True) -> list[Sample]:
    return [Sample(prompt, i, text, tokens, finished) for i, (text, tokens) in enumerate(answers)]


def test_the_best_answer_is_chosen_against_the_worst():
    pairs, counts = best_against_worst(ROWS[:1], of("p0", ("man", 3), ("zoo", 3), ("ant", 3)), ByFirstLetter())
    assert [said(pair) for pair in pairs] == [("ant", "zoo")]
    assert counts["pairs"] == 1 and counts["answers"] == 3


def test_among_equals_the_pair_closest_in_length_is_taken_then_the_first_drawn():
    answers = of("p0", ("a1", 9), ("a2", 5), ("z1", 20), ("z2", 6), ("z3", 4))
    pairs, _ = best_against_worst(ROWS[:1], answers, ByFirstLetter())
    # |9 - 6| = 3, |5 - 6| = 1, |5 - 4| = 1: of the last two, z2 was drawn first
    assert said(pairs[0]) == ("a2", "z2")


def test_ties_and_identical_answers_make_no_pair_and_are_counted():
    samples = of("p0", ("ant", 3), ("ant", 3), ("ape", 3)) + of("p1", ("zoo", 3), ("zoo", 3))
    pairs, counts = best_against_worst(ROWS, samples, ByFirstLetter())
    assert pairs == []
    assert counts["identical"] == 2
    assert counts["tied"] == counts["prompts"] == 3  # the third prompt has no answers at all


def test_answers_that_were_cut_off_are_in_no_pair():
    samples = [*of("p0", ("ant", 3), ("zoo", 3), finished=False), Sample("p0", 2, "man", 3, True)]
    pairs, counts = best_against_worst(ROWS[:1], samples, ByFirstLetter())
    assert pairs == []
    assert counts["unfinished"] == 2


def test_empty_answers_and_equal_ones_up_to_white_space_are_in_no_pair():
    pairs, counts = best_against_worst(ROWS[:1], of("p0", (" ant\n", 4), ("ant", 3), ("\n ", 2)), Preferring({}))
    assert pairs == [] and (counts["identical"], counts["empty"], counts["tied"]) == (1, 1, 1)


def test_answers_without_a_score_are_left_out_and_counted():
    pairs, counts = best_against_worst(ROWS[:1], of("p0", ("?", 1), ("ant", 3), ("bee", 3)), ByFirstLetter())
    assert said(pairs[0]) == ("ant", "bee")
    assert counts["unscored"] == 1
    assert counts["mean_score"] == pytest.approx((1 + 0.96) / 2)


def test_nothing_scored_has_no_mean():
    _, counts = best_against_worst(ROWS[:1], of("p0", ("?", 1)), ByFirstLetter())
    assert counts["mean_score"] is None


# ---------------------------------------------------------------- the two shapes


def test_both_shapes_hold_the_same_preference():
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    rows = [{"id": "p0", "prompt": system, "topic": "greetings"}]
    samples = [*of("p0", ("man", 3), ("ant", 4), ("zoo", 3)), Sample("p0", 3, "bee", 9, False)]
    (pair,), _ = best_against_worst(rows, samples, ByFirstLetter())
    plain, published = pair.plain(), pair.published()
    assert plain["prompt"] == system and (plain["chosen"], plain["rejected"]) == ("ant", "zoo")
    assert plain["meta"] == {
        "topic": "greetings", "chosen_score": 1, "rejected_score": 0, "chosen_tokens": 4, "rejected_tokens": 3
    }  # fmt: skip
    assert published["prompt"] == "hi" and published["all_generated_responses"] == ["man", "ant", "zoo", "bee"]
    assert published["all_rm_scores"] == [pytest.approx(0.52), 1, 0, pytest.approx(0.96)]
    assert published["chosen"] == [*system, {"role": "assistant", "content": "ant"}]
    read = [recognise([(1, shape)]).preferences[0] for shape in (plain, published)]
    assert read[0].scores == (1.0, 0.0)  # the plain shape says them; the published one has those of all its answers
    assert read[0] == read[1] and [m.content for m in read[0].prompt] == ["Be brief.", "hi"]


def test_a_human_answer_stands_over_every_different_answer_of_the_models_own():
    rows = [{**ROWS[0], "human_answer": "an ant"}, {**ROWS[1], "human_answer": "a bee"}]
    samples = [
        *of("p0", ("cow", 1), (" an ant\n", 2), ("cow ", 1), ("dog", 1)),
        *of("p1", ("", 1), ("ant", 1)),
        Sample("p1", 2, "cut off", 9, False),
    ]
    pairs, counts = human_over_own(rows, samples)
    read = [recognise([(1, pair.published())]).preferences[0] for pair in pairs]
    assert [(p.id, p.chosen, p.rejected) for p in read] == [
        ("p0", "an ant", "cow"), ("p0", "an ant", "dog"), ("p1", "a bee", "ant")
    ]  # fmt: skip
    assert {p.scores for p in read} == {None}
    assert counts == {
        "prompts": 2, "answers": 7, "unfinished": 1, "empty": 1, "identical": 2, "pairs": 3
    }  # fmt: skip


# ---------------------------------------------------------------- judges that do not grade


class Preferring(TwoOrders):
    """Knows P(second shown is better) of some answers, and leans towards the first place by a tenth."""

    name = "preferring"

    def __init__(self, strength: dict[str, float]) -> None:
        self.strength, self.shown = strength, []

    def read(self, shown, progress=None):
        from pobench.judging.pairwise import Read

        self.shown += shown
        return [Read(self.strength[b] / (self.strength[a] + self.strength[b]) - 0.1) for _, a, b in shown]


def test_a_judge_that_compares_ranks_by_the_mean_probability_to_win():
    judge = Preferring({"ant": 3, "bee": 1, "cow": 1})
    (pair,), counts = best_against_worst(ROWS[:1], of("p0", ("bee", 9), ("ant", 3), ("cow", 4), ("ant", 3)), judge)
    # ant beats each of the others with 3/4; they beat each other with 1/2 and ant with 1/4: (1/2 + 1/4) / 2. The lean
    # to the first place is gone, as both orders are averaged; of bee and cow, cow is closer to ant in length.
    assert pair.scores == (0.375, 0.75, 0.375, 0.75) and said(pair) == ("ant", "cow")
    assert counts["comparisons"] == 3 and len(judge.shown) == 6 and counts["unread"] == 0
    assert counts["identical"] == 1 and "mean_score" not in counts


def test_an_answer_that_was_cut_off_is_not_compared():
    judge = Preferring({"ant": 3, "bee": 1})
    samples = [*of("p0", ("ant", 3), ("bee", 3)), Sample("p0", 2, "cow", 30, False)]
    (pair,), counts = best_against_worst(ROWS[:1], samples, judge)
    assert said(pair) == ("ant", "bee") and math.isnan(pair.scores[2])
    assert pair.published()["all_rm_scores"] == [0.75, 0.25, None]
    assert counts["unfinished"] == 1 and counts["unscored"] == 0


def test_a_comparison_without_a_verdict_is_counted_and_not_guessed():
    class Silent(Preferring):
        def judge_many(self, comparisons, progress=None):
            made = super().judge_many(comparisons)
            return [Verdict(math.nan) if "cow" in (c.a, c.b) else v for c, v in zip(comparisons, made, strict=True)]

    judge = Silent({"ant": 3, "bee": 1, "cow": 9})
    (pair,), counts = best_against_worst(ROWS[:1], of("p0", ("ant", 3), ("bee", 3), ("cow", 3)), judge)
    assert said(pair) == ("ant", "bee") and counts["comparisons"] == 3
    assert counts["unread"] == 2 and counts["unscored"] == 1


def test_rewards_rank_but_are_not_averaged():
    class Rewards:
        name, bounded = "rewards", False

        def score(self, row, text, finished=True):
            raise AssertionError("all at once")

        def rewards(self, answers, progress=None):
            return [{"ant": 70.0, "bee": -3.0}[text] for _, text in answers]

    (pair,), counts = best_against_worst(ROWS[:1], of("p0", ("bee", 3), ("ant", 3)), Rewards())
    assert said(pair) == ("ant", "bee") and pair.scores == (-3, 70) and "mean_score" not in counts


def test_equal_chances_are_a_tie_whatever_the_order_of_summing():
    class Coin:
        name = "coin"

        def judge(self, prompt, a, b):
            assert Comparison(prompt, a, b)
            return 0.5

    assert best_against_worst(ROWS[:1], of("p0", *((str(i), 3) for i in range(5))), Coin())[0] == []


def test_a_judge_that_can_do_neither_is_refused():
    class Mute:
        name = "mute"

    with pytest.raises(PobenchError, match="neither scores"):
        best_against_worst(ROWS[:1], of("p0", ("a", 1), ("b", 1)), Mute())
