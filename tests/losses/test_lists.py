"""Losses of lists beyond pairs: against a formula in 350 digits, and what must hold of every list; and a pair read as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from mpmath import mpf
from oracles import LISTS
from torch import Tensor

from pobench.errors import PobenchError
from pobench.registry import get_loss, list_losses
from pobench.types import AnswerOutput, ListOutput, Pair, Responses, SequenceLogps
from pobench.units import as_answers, as_list

NAMES = [name for name in list_losses() if get_loss(name).unit == "lists"]
RANKS = ((1, 2, 3, 4), (4, 2, 1, 3), (1, 2, 2, 4), (1, 1, 1, 1), (1, 3, 2))  # ties, all tied, and a shorter list


class Evaluated(NamedTuple):
    output: ListOutput
    slopes: Tensor  # (prompts, k)


def lists(ranks: Sequence[Sequence[int]] = RANKS, scale: float = 9.0) -> tuple[Responses, Tensor]:
    """(policy, the reference's totals), fp64, padded to the longest."""
    draw = torch.Generator().manual_seed(7)
    shape = len(ranks), max(map(len, ranks))
    rank = torch.zeros(shape, dtype=torch.int64)
    for row, here in zip(rank, ranks, strict=True):
        row[: len(here)] = torch.tensor(here)
    mask = rank > 0
    length = torch.where(mask, torch.randint(1, 90, shape, generator=draw), 1)
    total = -length * torch.rand(shape, generator=draw, dtype=torch.float64) * mask
    moved = scale * torch.randn(shape, generator=draw, dtype=torch.float64) * mask
    return Responses(total, length, rank, mask), total - moved


def at(name: str, policy: Responses, known: Tensor) -> Evaluated:
    total = policy.total.clone().requires_grad_()
    given = {"responses": policy._replace(total=total), "reference": policy._replace(total=known)}
    output = get_loss(name)(*(value for key, value in given.items() if key in get_loss(name).needs))
    return Evaluated(output, *torch.autograd.grad(output.loss.sum(), total))


def test_every_loss_of_lists_has_an_oracle_of_lists() -> None:
    assert NAMES and set(NAMES) == set(LISTS), "write a row of `LISTS` in tests/losses/oracles.py"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", [9.0, 2000.0])
def test_a_list_has_the_formulas_value_and_slopes(name, scale) -> None:
    policy, known = lists(scale=scale)
    got = at(name, policy, known)
    settings, h = get_loss(name).settings, mpf("1e-60")
    for i, ranks in enumerate(RANKS):
        drifts = [mpf(p) - mpf(r) for p, r in zip(policy.total[i].tolist(), known[i].tolist(), strict=True)][
            : len(ranks)
        ]
        value = LISTS[name](drifts, ranks, **settings)
        assert got.output.loss[i].item() == pytest.approx(float(value), rel=1e-10, abs=1e-290)
        for j in range(len(ranks)):
            up = [u + h * (j == other) for other, u in enumerate(drifts)]
            slope = float((LISTS[name](up, ranks, **settings) - value) / h)
            assert got.slopes[i, j].item() == pytest.approx(slope, rel=1e-9, abs=1e-50), (ranks, j)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_in_which_a_list_is_written_changes_nothing(name) -> None:
    policy, known = lists()
    order = torch.stack([torch.randperm(4, generator=torch.Generator().manual_seed(i)) for i in range(len(RANKS))])
    here, there = (
        at(name, policy, known),
        at(name, Responses(*(t.gather(1, order) for t in policy)), known.gather(1, order)),
    )
    assert len({tuple(row) for row in order.tolist()}) > 2
    torch.testing.assert_close(there.output.loss, here.output.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(there.output.rewards, here.output.rewards.gather(1, order), rtol=0, atol=0)
    torch.testing.assert_close(there.slopes, here.slopes.gather(1, order), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("name", NAMES)
def test_pads_change_nothing_and_have_no_slope(name) -> None:
    policy, known = lists()

    def padded(tensor: Tensor, pad: float) -> Tensor:
        return torch.cat([tensor, torch.full((len(tensor), 3), pad, dtype=tensor.dtype)], dim=1)

    wide = Responses(*(padded(t, pad) for t, pad in zip(policy, (0.0, 1, 9, False), strict=True)))  # any rank there
    here, there = at(name, policy, known), at(name, wide, padded(known, 0.0))
    torch.testing.assert_close(there.output.loss, here.output.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(there.slopes[:, :4], here.slopes, rtol=1e-12, atol=1e-300)
    assert not there.slopes[:, 4:].any() and not here.slopes[~policy.mask].any()


@pytest.mark.parametrize("name", NAMES)
def test_a_list_stands_for_itself_and_rewards_carry_no_gradient(name) -> None:
    policy, known = lists()
    together = at(name, policy, known)
    alone = [at(name, Responses(*(t[i : i + 1] for t in policy)), known[i : i + 1]) for i in range(len(RANKS))]
    torch.testing.assert_close(together.output.loss, torch.cat([one.output.loss for one in alone]))
    torch.testing.assert_close(together.slopes, torch.cat([one.slopes for one in alone]))
    assert together.output.loss.requires_grad and not together.output.rewards.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_a_step_raises_the_best_of_a_list_and_lowers_the_worst(name) -> None:
    policy, known = lists([(3, 1, 4, 2)])
    slopes = at(name, policy, known).slopes[0]
    assert slopes[1] < 0 < slopes[2]


def test_tied_answers_do_not_order_each_other() -> None:
    policy, known = lists([(1, 1, 1), (1, 2, 2)])
    got = at("plackett_luce", policy, known)
    assert got.output.loss[0] == 0 and not got.slopes[0].any()
    assert got.slopes[1, 0] < 0 and (got.slopes[1, 1:] > 0).all()


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

    fresh: registry.Registry = registry.Registry("loss", "pobench.losses")
    fresh._loaded = True
    monkeypatch.setattr(registry, "losses", fresh)
    registry.register_loss("mine", source="here")(function)
    side = SequenceLogps(torch.tensor([-5.0, -6.0]), torch.tensor([3, 4]))
    assert get_loss("mine").unit == name
    with pytest.raises(PobenchError, match=fault):
        get_loss("mine").evaluate(Pair(side, side))
