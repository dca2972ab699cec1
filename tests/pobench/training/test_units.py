"""Losses of lists and of single answers on true lists and answers: what they are given, what a step logs, how it is cut."""

from __future__ import annotations

import math

import pytest
import torch

from pobench.data.order import mismatch
from pobench.errors import PobenchError
from pobench.registry import get_loss, register_loss
from pobench.training.objectives import PreferenceObjective, mismatched_groups
from pobench.training.reference import ReferenceSums, sequence_keys
from pobench.types import (
    AnswerOutput,
    Group,
    ListOutput,
    Responses,
    TokenAnswer,
    TokenList,
    TokenLogps,
    TokenPair,
)

LISTS = [
    TokenList("l0", (1, 2), ((3,), (4, 5), (6, 7, 8, 9)), (2, 1, 3), (3.0, 5.0, 1.0)),
    TokenList("l1", (3,), ((4, 4), (5,)), (1, 1), (2.0, 2.0)),
    TokenList("l2", (4,), ((1,), (2,), (3,), (4,)), (2, 1, 4, 2), (2.0, 7.0, 0.0, 2.0)),
]
ANSWERS = [
    TokenAnswer("a0", (1, 2), (3,), True, 4.0),
    TokenAnswer("a1", (3,), (4, 5), True, 3.0),
    TokenAnswer("a2", (3,), (5,), False, 1.0),
    TokenAnswer("a3", (4,), (6, 7), True, 5.0),
]


def known(items, totals, mismatched=()) -> ReferenceSums:
    """Reference sums as given, response by response, and -1 of each mismatched answer."""
    keys = [key for item in items for key in sequence_keys(Group.of(item))]
    borrowed = [
        key for group in (mismatched_groups(items, mismatched) if mismatched else []) for key in sequence_keys(group)
    ]
    return ReferenceSums({**dict.fromkeys(borrowed, -1.0), **dict(zip(keys, totals, strict=True))}, "made up")


def measured(
    objective: PreferenceObjective, rows: list[int], values: list[float]
) -> tuple[list[float], dict[str, float]]:
    """(slopes, what a step logs) of a batch that is one micro-batch."""
    got = objective.measure(rows, torch.tensor(values))
    return got.slope.tolist(), objective.means(got.logged.tolist(), rows)


# ---------------------------------------------------------------- lists
def test_a_list_of_three_and_a_tie_of_two_give_what_arithmetic_gives() -> None:
    objective = PreferenceObjective(LISTS, get_loss("plackett_luce"), {"beta": 0.5}, known(LISTS, [-4.0] * 9))
    slopes, logged = measured(objective, [1, 0], [-1.0, -7.0, -2.0, -6.0, -8.0])
    # Rewards of l0: 0.5·(-2 + 4) = 1, 0.5·(-6 + 4) = -1, 0.5·(-8 + 4) = -2; its order is second, first, third:
    # log(1 + e^2 + e^-1) + log(1 + e^-3) = 2.16985 + 0.04859. l1 ties, so its loss is 0. The mean of both is 1.10922.
    first = math.log(1 + math.exp(2) + math.exp(-1)) + math.log(1 + math.exp(-3))
    assert logged["loss"] == pytest.approx(first / 2) == pytest.approx(1.10922, abs=1e-5)
    assert slopes[:2] == [0, 0] and sum(slopes) == pytest.approx(0, abs=1e-6)
    assert logged["rewards/chosen"] == pytest.approx((-1 + 0) / 2)  # of l1 the mean of 1.5 and -1.5
    assert logged["rewards/rejected"] == pytest.approx((-2 + 0) / 2)
    assert (logged["rewards/margins"], logged["rewards/accuracies"]) == (pytest.approx(0.5), pytest.approx(0.75))
    assert logged["logps/chosen"] == pytest.approx((-6 - 4) / 2) and logged["logps/rejected"] == pytest.approx(-6)
    assert logged["logps/chosen_per_token"] == pytest.approx((-3 + (-0.5 - 7) / 2) / 2)
    assert logged["saturated"] == 0.5  # l1 pulls at nothing


def test_a_loss_of_lists_is_given_pads_on_the_right_and_no_more_than_its_lists_need(forget) -> None:
    seen = []

    @register_loss("t_seen", source="here")
    def t_seen(responses: Responses, reference: Responses, tokens: TokenLogps, scores: torch.Tensor) -> ListOutput:
        seen.append((responses, reference, tokens, scores))
        return ListOutput(responses.total.sum(1), responses.total.detach())

    class Tokens(ReferenceSums):
        def tokens(self, groups):
            return -torch.ones(sum(g.learnt_tokens for g in groups))

    objective = PreferenceObjective(LISTS, get_loss("t_seen"), {}, Tokens(known(LISTS, [-4.0] * 9)._totals, "made up"))
    slope = objective.measure([1, 0], -torch.arange(1.0, 11.0)).slope
    ((responses, reference, tokens, scores),) = seen
    assert responses.total.tolist() == [[-3, -3, 0], [-4, -11, -34]] and slope.tolist() == [1.0] * 10
    assert responses.length.tolist() == [[2, 1, 1], [1, 2, 4]] and responses.rank.tolist() == [[1, 1, 0], [2, 1, 3]]
    assert responses.mask.tolist() == [[True, True, False], [True] * 3]
    assert reference.total.tolist() == [[-4, -4, 0], [-4] * 3] and scores[1].tolist() == [3, 5, 1]
    assert scores[0, :2].tolist() == [2, 2] and scores[0, 2].isnan()
    assert tokens.policy.shape == (2, 3, 4) and tokens.mask.sum(-1).tolist() == [[2, 1, 0], [1, 2, 4]]
    assert tokens.policy[1].tolist() == [[-4, 0, 0, 0], [-5, -6, 0, 0], [-7, -8, -9, -10]]
    objective.measure([1], -torch.ones(3))
    assert seen[-1][0].total.shape == (1, 2)


# ---------------------------------------------------------------- answers
def test_answers_are_logged_by_their_labels_each_mean_over_its_own_count() -> None:
    partners = mismatch(ANSWERS)
    objective = PreferenceObjective(
        ANSWERS, get_loss("kto_unpaired"), {"beta": 0.1}, known(ANSWERS, [-12.0] * 4, partners), partners
    )
    objective.kl = torch.tensor(10.0)
    slopes, logged = measured(objective, [0, 1, 2, 3], [-8.0, -8.0, -16.0, -2.0])
    # z = 1; rewards are 0.4, 0.4, -0.4 and 1: 1 - σ(-0.6) twice, 1 - σ(1.4) = 0.19781611 of the undesirable, 1 - σ(0) = 0.5
    assert logged["loss"] == pytest.approx((2 * 0.64565631 + 0.19781611 + 0.5) / 4)
    assert logged["rewards/chosen"] == pytest.approx((0.4 + 0.4 + 1.0) / 3) == pytest.approx(0.6)
    assert logged["rewards/rejected"] == pytest.approx(-0.4) and logged["rewards/margins"] == pytest.approx(1.0)
    assert logged["logps/chosen"] == pytest.approx(-6) and logged["logps/rejected"] == pytest.approx(-16)
    assert logged["logps/chosen_per_token"] == pytest.approx((-8 - 4 - 1) / 3)
    assert math.isnan(logged["rewards/accuracies"]) and [slope < 0 for slope in slopes] == [True, True, False, True]
    desirable = measured(objective, [0, 1], [-8.0, -8.0])[1]
    assert math.isnan(desirable["rewards/rejected"]) and math.isnan(desirable["rewards/margins"])
    assert desirable["rewards/chosen"] == pytest.approx(0.4)


def test_an_answers_kl_is_of_its_prompt_with_the_answer_to_another_prompt() -> None:
    partners = mismatch(ANSWERS)
    groups = mismatched_groups(ANSWERS, partners)
    assert [g.prompt for g in groups] == [a.prompt for a in ANSWERS]
    assert [g.responses for g in groups] == [ANSWERS[j].responses for j in partners]
    assert all(ANSWERS[j].prompt != a.prompt for a, j in zip(ANSWERS, partners, strict=True))
    with pytest.raises(PobenchError, match="2 answers share one prompt"):
        mismatch(ANSWERS[1:3])


def test_a_loss_reads_rows_of_its_own_unit_or_pairs_and_of_one_kind(forget) -> None:
    pair = TokenPair("p", (1,), (2,), (3,))
    dpo, lists = get_loss("simpo"), get_loss("plackett_luce")
    for loss, items in ((dpo, LISTS), (dpo, ANSWERS), (lists, ANSWERS), (lists, [pair, LISTS[0]])):
        with pytest.raises(PobenchError, match="reads rows of one kind"):
            PreferenceObjective(items, loss, loss.settings)
    with pytest.raises(PobenchError, match=r"t_rated needs scores, and 1 of 4 answers have none: a0"):
        register_loss("t_rated", source="here")(lambda response, scores: AnswerOutput(response.total, response.total))
        PreferenceObjective([ANSWERS[0]._replace(score=None), *ANSWERS[1:]], get_loss("t_rated"), {})
