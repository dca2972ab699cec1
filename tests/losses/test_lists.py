"""Losses of lists beyond pairs: against a formula in 350 digits, and what must hold of every list; and a pair read as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from mpmath import mpf
from oracles import LISTS, ORACLES, Answer, exact
from torch import Tensor

from pobench.errors import PobenchError
from pobench.registry import get_loss, list_losses
from pobench.types import AnswerOutput, ListOutput, Pair, Responses, SequenceLogps
from pobench.units import as_answers, as_list

NAMES = [name for name in list_losses() if get_loss(name).unit == "lists"]
# ties, at the best, at the worst and of all; and shorter lists
RANKS = ((1, 2, 3, 4, 5), (4, 2, 1, 3), (1, 2, 2, 4), (1, 1, 3, 4), (3, 1, 3, 1, 3), (1, 1, 1, 1), (1, 3, 2), (2, 1))


class Lists(NamedTuple):
    """Lists of answers, padded to the longest, fp64. scores: (prompts, k), which order the answers as the ranks do, nan at
    pads."""

    policy: Responses
    known: Tensor
    scores: Tensor

    def take(self, of: slice) -> Lists:
        return Lists(Responses(*(t[of] for t in self.policy)), self.known[of], self.scores[of])

    def gather(self, order: Tensor) -> Lists:
        return Lists(
            Responses(*(t.gather(1, order) for t in self.policy)),
            self.known.gather(1, order),
            self.scores.gather(1, order),
        )

    def answers(self, i: int) -> list[Answer]:
        rows = zip(
            *(t[i].tolist() for t in (self.policy.total, self.known, *self.policy[1:3], self.scores)), strict=True
        )
        return [Answer(*map(mpf, row[:3]), row[3], mpf(row[4])) for row in rows if row[3]]


class Evaluated(NamedTuple):
    output: ListOutput
    slopes: Tensor  # (prompts, k)


def lists(ranks: Sequence[Sequence[int]] = RANKS, scale: float = 9.0) -> Lists:
    draw = torch.Generator().manual_seed(7)
    shape = len(ranks), max(map(len, ranks))
    rank = torch.zeros(shape, dtype=torch.int64)
    for row, here in zip(rank, ranks, strict=True):
        row[: len(here)] = torch.tensor(here)
    mask = rank > 0
    length = torch.where(mask, torch.randint(1, 90, shape, generator=draw), 1)
    total = -length * torch.rand(shape, generator=draw, dtype=torch.float64) * mask
    moved = scale * torch.randn(shape, generator=draw, dtype=torch.float64) * mask
    scores = (8 - 1.25 * rank.double() ** 0.5).masked_fill(~mask, math.nan)
    return Lists(Responses(total, length, rank, mask), total - moved, scores)


def at(name: str, of: Lists, **settings: Any) -> Evaluated:
    total = of.policy.total.clone().requires_grad_()
    given = {
        "responses": of.policy._replace(total=total),
        "reference": of.policy._replace(total=of.known),
        "scores": of.scores,
    }
    output = get_loss(name)(*(value for key, value in given.items() if key in get_loss(name).needs), **settings)
    return Evaluated(output, *torch.autograd.grad(output.loss.sum(), total))


def test_every_loss_of_lists_has_an_oracle_of_lists() -> None:
    assert NAMES and set(NAMES) == set(LISTS), "write a row of `LISTS` in tests/losses/oracles.py"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [9.0, 2000.0])
def test_a_list_has_the_formulas_value_and_slopes(name, scale) -> None:
    of, h = lists(scale=scale), mpf("1e-60")
    for settings in ({}, *ORACLES[name].settings):
        got = at(name, of, **settings)
        exactly = {key: exact(value) for key, value in {**get_loss(name).settings, **settings}.items()}
        for i, ranks in enumerate(RANKS):
            answers = of.answers(i)
            value = LISTS[name](answers, **exactly)
            assert got.output.loss[i].item() == pytest.approx(float(value), rel=1e-10, abs=1e-290), (settings, ranks)
            slopes = []
            for j, answer in enumerate(answers):
                moved = [*answers[:j], answer._replace(total=answer.total + h), *answers[j + 1 :]]
                slopes.append(float((LISTS[name](moved, **exactly) - value) / h))
            beside = 1e-50 + 1e-15 * max(map(abs, slopes)) * ORACLES[name].cancels
            assert got.slopes[i, : len(ranks)].tolist() == pytest.approx(slopes, rel=1e-9, abs=beside), (
                settings,
                ranks,
            )


@pytest.mark.parametrize("name", NAMES)
def test_the_order_in_which_a_list_is_written_changes_nothing(name) -> None:
    of = lists()
    order = torch.stack([torch.randperm(5, generator=torch.Generator().manual_seed(i)) for i in range(len(RANKS))])
    assert len({tuple(row) for row in order.tolist()}) > 2
    for before in (of, of._replace(known=of.policy.total)):  # before the first step every reward ties
        here, there = at(name, before), at(name, before.gather(order))
        torch.testing.assert_close(there.output.loss, here.output.loss, rtol=1e-12, atol=1e-300)
        torch.testing.assert_close(there.output.rewards, here.output.rewards.gather(1, order), rtol=0, atol=0)
        torch.testing.assert_close(there.slopes, here.slopes.gather(1, order), rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("name", NAMES)
def test_pads_change_nothing_and_have_no_slope(name) -> None:
    of = lists()

    def padded(tensor: Tensor, pad: float) -> Tensor:
        return torch.cat([tensor, torch.full((len(tensor), 3), pad, dtype=tensor.dtype)], dim=1)

    policy = Responses(
        *(padded(t, pad) for t, pad in zip(of.policy, (0.0, 1, 9, False), strict=True))
    )  # any rank there
    here, there = at(name, of), at(name, Lists(policy, padded(of.known, 0.0), padded(of.scores, math.nan)))
    torch.testing.assert_close(there.output.loss, here.output.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(there.slopes[:, :5], here.slopes, rtol=1e-12, atol=1e-300)
    assert not there.slopes[:, 5:].any() and not here.slopes[~of.policy.mask].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_list_stands_for_itself_and_rewards_carry_no_gradient(name) -> None:
    of = lists()
    together = at(name, of)
    alone = [at(name, of.take(slice(i, i + 1))) for i in range(len(RANKS))]
    torch.testing.assert_close(together.output.loss, torch.cat([one.output.loss for one in alone]))
    torch.testing.assert_close(together.slopes, torch.cat([one.slopes for one in alone]))
    assert together.output.loss.requires_grad and not together.output.rewards.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_a_step_raises_the_best_of_a_list_and_lowers_the_worst(name) -> None:
    of = lists([(3, 1, 4, 2)])
    wrong = 0.1 * of.policy.rank.double()  # the worse, the likelier, and the more it has risen
    length = torch.full_like(of.policy.length, 20)
    backwards = Lists(of.policy._replace(total=20 * (wrong - 1), length=length), 20 * (wrong - 1) - wrong, of.scores)
    slopes = at(name, backwards).slopes[0]
    assert slopes[1] < 0 < slopes[2]


@pytest.mark.parametrize("name", NAMES)
def test_tied_answers_do_not_order_each_other(name) -> None:
    of = lists([(1, 1, 1), (1, 2, 2)])
    level = of._replace(policy=of.policy._replace(total=of.policy.total * 0 - 9, length=of.policy.length * 0 + 9))
    got = at(name, level._replace(known=level.policy.total))
    for tied in (got.slopes[0], got.slopes[1, 1:]):
        torch.testing.assert_close(tied, tied.mean().expand_as(tied), rtol=1e-12, atol=1e-16)
    if name in ("plackett_luce", "lipo_lambda", "infonca", "exo_rw"):  # of log-ratios: neither rises
        assert got.slopes[0].abs().max() < 1e-15


def test_before_the_first_step_lipo_places_answers_by_rating_whatever_the_rounding() -> None:
    of = lists([(4, 2, 1, 3)])
    still = of._replace(known=of.policy.total)
    noisy = still._replace(known=still.known + torch.tensor([[2e-5, -1e-5, 3e-5, 0.0, 0.0]])[:, :4])
    here, there = at("lipo_lambda", still), at("lipo_lambda", noisy)
    torch.testing.assert_close(here.slopes, there.slopes, rtol=1e-4, atol=0)
    assert (here.slopes != 0).all()


def test_a_pair_is_a_list_of_two_and_two_answers() -> None:
    chosen = SequenceLogps(torch.tensor([-1.0, -2.0]), torch.tensor([3, 4]))
    rejected = SequenceLogps(torch.tensor([-5.0, -6.0]), torch.tensor([7, 8]))
    read = as_list(Pair(chosen, rejected))
    assert (read.total.tolist(), read.length.tolist()) == ([[-1, -5], [-2, -6]], [[3, 7], [4, 8]])
    assert read.rank.tolist() == [[1, 2], [1, 2]] and read.mask.all()
    assert read.mean[0].tolist() == pytest.approx([-1 / 3, -5 / 7])
    answers = as_answers(Pair(chosen, rejected))
    assert (answers.total.tolist(), answers.length.tolist()) == ([-1, -5, -2, -6], [3, 7, 4, 8])


def test_answers_that_are_not_of_pairs_are_scored_by_their_labels() -> None:
    label = torch.tensor([True, False, False])
    policy, known = (SequenceLogps(torch.tensor([t] * 3), torch.full((3,), 5)) for t in (-8.0, -12.0))
    output = get_loss("kto_unpaired")(policy, label, known, torch.tensor(10.0), beta=0.1, undesirable_weight=2.0)
    # z = 1 and the reward is 0.4: 1 - σ(-0.6) = 0.64565631, and 2·(1 - σ(0.6)) = 2·0.35434369
    assert output.loss.tolist() == pytest.approx([0.64565631, 0.70868738, 0.70868738])
    assert output.reward.tolist() == pytest.approx([0.4, 0.4, 0.4])


@pytest.mark.parametrize(
    ("name", "function", "fault"),
    [
        ("lists", lambda responses: responses.total, r"must return ListOutput\(loss, rewards\); got a tensor"),
        (
            "lists",
            lambda responses: ListOutput(responses.total, responses.total),
            r"one loss per list, \(2,\), and one reward per answer, \(2, 2\); got loss \(2, 2\)",
        ),
        (
            "answers",
            lambda response: AnswerOutput(response.total[:1], response.total),
            r"one value per answer, \(4,\); got loss \(1,\)",
        ),
    ],
)
def test_what_a_loss_of_another_unit_must_return_is_said(name, function, fault, monkeypatch) -> None:
    from pobench import registry

    for place, value in {"_items": {}, "_aliases": {}, "_loaded": True}.items():
        monkeypatch.setattr(registry.losses, place, value)
    registry.register_loss("mine", source="here")(function)
    side = SequenceLogps(torch.tensor([-5.0, -6.0]), torch.tensor([3, 4]))
    assert get_loss("mine").unit == name
    with pytest.raises(PobenchError, match=fault):
        get_loss("mine").evaluate(Pair(side, side))
