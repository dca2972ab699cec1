"""What is computed of the whole vocabulary at response positions, against the model's own logits, with gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from architectures import some_groups, tiny
from torch import Tensor

from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.model.vocabulary import Beside
from pobench.types import Group

KINDS = ("collision", "entropy", "reference", "reference_entropy", "forward_kl")
LAYOUTS = [("shared_prefix", {}), ("shared_prefix", {"one_row": True}), ("padded", {})]


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
def test_values_and_gradients_are_those_of_whole_softmaxes(name: str, dtype: torch.dtype) -> None:
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
    for layout, how in LAYOUTS:
        batch = get_layout(layout, **how).collate(groups, policy.window)
        model.zero_grad()
        values = policy(batch, beside=Beside(KINDS, frozen.positions(batch)))
        assert values.dtype == dtype
        torch.testing.assert_close(values.double(), expected, **close)
        (values * slope).sum().backward()
        ours = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        assert float((ours - theirs).norm() / theirs.norm()) < (1e-10 if dtype == torch.float64 else 3e-6)
