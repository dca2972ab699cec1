"""A loss that returns the wrong thing, or spoils what it is given, is named before anything trains."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from pobench.errors import PobenchError
from pobench.registry import get_loss, list_losses, losses, register_loss
from pobench.settings.faults import HARMLESS, broken_contract, check_loss_settings
from pobench.settings.resolve import resolve
from pobench.types import LossOutput, Pair, SequenceLogps


@pytest.fixture
def registered() -> Iterator[Callable[[Callable[..., Any]], None]]:
    """Register a function as the loss `mine` for one test."""
    yield register_loss("mine", source="this test")
    losses._items.pop("mine", None)
    losses._aliases.pop("mine", None)


def rewards(policy: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    return policy.chosen.mean.detach(), policy.rejected.mean.detach()


def value(policy: Pair) -> torch.Tensor:
    return -logsigmoid(policy.chosen.total - policy.rejected.total)


def a_tuple(policy: Pair) -> Any:
    return value(policy), *rewards(policy)


def a_tensor(policy: Pair) -> Any:
    return value(policy)


def a_number(policy: Pair) -> Any:
    return value(policy).mean().item()


def nothing(policy: Pair) -> Any:
    value(policy)


def an_array(policy: Pair) -> Any:
    return LossOutput(value(policy).detach().numpy(), *rewards(policy))  # type: ignore[arg-type]


def a_list(policy: Pair) -> Any:
    return LossOutput(value(policy), *(r.tolist() for r in rewards(policy)))


def a_mean(policy: Pair) -> Any:
    return LossOutput(value(policy).mean(), *rewards(policy))


def a_column(policy: Pair) -> Any:
    return LossOutput(value(policy), *(r[:, None] for r in rewards(policy)))


def half_precision(policy: Pair) -> Any:
    return LossOutput(value(policy).bfloat16(), *rewards(policy))


def whether_ranked(policy: Pair) -> Any:
    chosen, rejected = rewards(policy)
    return LossOutput(value(policy), chosen > rejected, rejected)


def detached(policy: Pair) -> Any:
    return LossOutput(value(policy).detach(), *rewards(policy))


def without_gradient(policy: Pair) -> Any:
    with torch.no_grad():
        return LossOutput(value(policy), *rewards(policy))


def spoils_the_policy(policy: Pair) -> Any:
    policy.chosen.total.clamp_(max=-11.0)
    return LossOutput(value(policy), *rewards(policy))


def spoils_the_reference(policy: Pair, reference: Pair) -> Any:
    reference.chosen.total.mul_(0.1)
    return LossOutput(value(policy) + reference.chosen.total, *rewards(policy))


def spoils_kl(policy: Pair, kl: torch.Tensor) -> Any:
    kl.add_(1.0)
    return LossOutput(value(policy) - kl, *rewards(policy))


FOUR = re.escape("(4,)")
BROKEN = [
    (a_tuple, r"must return LossOutput\(loss, chosen_reward, rejected_reward\); got a tuple of 3"),
    (a_tensor, r"must return LossOutput\(.*\); got a tensor"),
    (a_number, r"must return LossOutput\(.*\); got a float"),
    (nothing, r"must return LossOutput\(.*\); got None: is its `return` missing\?"),
    (an_array, "must return a tensor each; got loss as a numpy array"),
    (a_list, "must return a tensor each; got chosen_reward as a list of 4, rejected_reward as a list of 4"),
    (a_mean, rf"must return one value per pair, {FOUR}; got loss \(\)"),
    (a_column, rf"must return one value per pair, {FOUR}; got chosen_reward \(4, 1\), rejected_reward \(4, 1\)"),
    (half_precision, "must return numbers as precise as the sums it is given, torch.float32; got loss torch.bfloat16"),
    (whether_ranked, "numbers as precise as the sums it is given, torch.float32; got chosen_reward torch.bool"),
    (detached, "must return a loss that can be differentiated by the policy's sums; its `loss` is detached"),
    (without_gradient, "its `loss` is detached from them"),
    (spoils_the_policy, r"changes its input in place \(the policy's sums\)"),
    (spoils_the_reference, r"changes its input in place \(the reference's sums\)"),
    (spoils_kl, r"changes its input in place \(kl\)"),
]


@pytest.mark.parametrize(("function", "words"), BROKEN, ids=[f.__name__ for f, _ in BROKEN])
def test_what_is_wrong_is_named_in_one_sentence(function, words, registered) -> None:
    registered(function)
    (fault,) = check_loss_settings(get_loss("mine"), {})
    assert fault.startswith("loss 'mine' ") and re.search(words, fault), fault


def test_a_run_is_refused_before_anything_trains(registered) -> None:
    registered(a_tuple)
    with pytest.raises(PobenchError, match=r"loss 'mine' must return LossOutput.*; got a tuple of 3"):
        resolve("tiny", "dpo,mine")


def test_in_training_too_a_result_is_looked_at(registered) -> None:
    registered(an_array)
    side = SequenceLogps(torch.tensor([-5.0, -6.0], requires_grad=True), torch.tensor([3, 4]))
    with pytest.raises(PobenchError, match="got loss as a numpy array"):
        get_loss("mine").evaluate(Pair(side, side))


def test_a_hinge_that_is_flat_at_some_pairs_is_no_fault(registered) -> None:
    @registered
    def hinge(policy: Pair) -> LossOutput:
        return LossOutput((1.0 - policy.chosen.total + policy.rejected.total).clamp(min=0.0), *rewards(policy))

    assert check_loss_settings(get_loss("mine"), {}) == []
    gaps = [sums[0] - sums[1] for sums, _, _ in HARMLESS]
    assert min(gaps) < 1.0 < max(gaps)  # flat at some, steep at others


def test_more_digits_than_were_given_are_no_fault(registered) -> None:
    registered(lambda policy: LossOutput(value(policy).double(), *(r.double() for r in rewards(policy))))
    assert check_loss_settings(get_loss("mine"), {}) == []


@pytest.mark.parametrize("name", list_losses())
def test_every_shipped_loss_keeps_the_contract(name) -> None:
    assert broken_contract(get_loss(name), get_loss(name).settings) == ""
