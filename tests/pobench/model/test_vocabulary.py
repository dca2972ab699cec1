"""What is computed of the whole vocabulary at response positions, against the model's own logits, with gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from architectures import some_groups, tiny
from torch import Tensor

from pobench.model.head import KEPT_BYTES
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.model.vocabulary import Beside
from pobench.types import Group

KINDS = ("collision", "entropy", "reference", "reference_entropy", "forward_kl")
# layout, its settings, bytes of softmax that are kept for the backward pass: all of it, some, none
WAYS = [("shared_prefix", {}, 2**20), ("shared_prefix", {"one_row": True}, 8000), ("padded", {}, 0)]


def moved(model: Any) -> Any:
    """A copy, some way off."""
    other = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for weight in other.parameters():
            weight += 0.3 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0.0
    return other


def own_values(model: Any, reference: Any, groups: list[Group]) -> Tensor:
    """(1 + kinds, tokens) of whole softmaxes, one sequence at a time."""
    columns = []
    for group in groups:
        for response in group.responses:
            ids, start = torch.tensor([group.prompt + response]), len(group.prompt) - 1
            p, q = (m(input_ids=ids).logits[0, start:-1].log_softmax(-1) for m in (model, reference))
            at = torch.tensor(response)[:, None]
            rows = [p.gather(1, at)[:, 0], (2 * p).logsumexp(1), -(p.exp() * p).sum(1)]
            rows += [q.gather(1, at)[:, 0], -(q.exp() * q).sum(1), (q.exp() * (q - p)).sum(1)]
            columns.append(torch.stack(rows))
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in ("llama", "gpt2", "gemma2", "cohere")),
        ("gpt2", torch.float64),  # the others' norms are fp32 in any model
    ],
)
def test_values_and_gradients_are_those_of_whole_softmaxes(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, groups = tiny(name).to(dtype), some_groups(3)
    model, plain = moved(start), moved(start)
    expected = own_values(plain.double(), copy.deepcopy(start).double(), groups)
    policy, frozen = ResponseLogps(model, tile=4), ResponseLogps(start)
    slope = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected).clone()
    slope[1:5] = 0  # only the log-probability and the divergence have a gradient
    (expected * slope).sum().backward()
    theirs = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
    assert (expected.std(1) > 0.003).all() and theirs.norm() > 1e-3
    close = {"atol": 1e-10, "rtol": 0.0} if dtype == torch.float64 else {"atol": 3e-5, "rtol": 0.0}
    for layout, how, kept in WAYS:
        monkeypatch.setitem(KEPT_BYTES, "cpu", kept)
        batch = get_layout(layout, **how).collate(groups, policy.window)
        model.zero_grad()
        values = policy(batch, beside=Beside(KINDS, frozen.positions(batch)))
        assert values.dtype == dtype
        torch.testing.assert_close(values.double(), expected, **close)
        (values * slope).sum().backward()
        ours = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        assert float((ours - theirs).norm() / theirs.norm()) < (1e-10 if dtype == torch.float64 else 3e-6)


def test_equal_models_do_not_diverge_and_have_no_slope_there() -> None:
    model, groups = tiny("llama"), some_groups(3)
    policy, frozen = ResponseLogps(model), ResponseLogps(copy.deepcopy(model))
    batch = get_layout("shared_prefix").collate(groups, policy.window)
    values = policy(batch, beside=Beside(("forward_kl", "reference"), frozen.positions(batch)))
    assert (values[1] == 0).all() and torch.equal(values[2], values[0])  # to the bit
    values[1].sum().backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None) < 1e-6


def test_an_adapter_gets_the_same_gradient_as_a_head_that_is_trained() -> None:
    start, groups = tiny("llama"), some_groups(3)
    grads = []
    for frozen_head in (False, True):
        model = moved(start)
        model.get_output_embeddings().weight.requires_grad_(not frozen_head)
        policy = ResponseLogps(model, tile=7)
        batch = get_layout("shared_prefix").collate(groups, policy.window)
        policy(batch, beside=Beside(("forward_kl",), ResponseLogps(start).positions(batch))).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.base_model.layers.parameters()]))
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-6 * float(grads[0].norm()))


def test_nothing_far_from_one_logit_is_lost() -> None:
    model, groups = tiny("llama"), some_groups(2)
    with torch.no_grad():
        model.get_output_embeddings().weight *= 60.0  # nearly certain distributions
    start = moved(model)
    policy, frozen = ResponseLogps(model, tile=3), ResponseLogps(start)
    batch = get_layout("padded").collate(groups)
    values = policy(batch, beside=Beside(KINDS, frozen.positions(batch)))
    expected = own_values(copy.deepcopy(model).double(), copy.deepcopy(start).double(), groups)
    torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=2e-3)
    assert values.isfinite().all() and (values[[2, 4, 5]] >= -1e-4).all()
