"""Values of prompts: the copy's state at a prompt's last token, whatever stands beside the prompt in its row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.model.value import Prompts, PromptValue
from pobench.types import Group

GROUPS = [
    Group((5, 6, 7), ((8, 9), (1,))),
    Group((3,), ((4, 4, 4),)),
    Group((9, 8, 7, 6, 5, 4, 3), ((2,), (2, 2), (1, 1, 1))),
]
LAYOUTS = {
    "packed": get_layout("shared_prefix"),
    "one row": get_layout("shared_prefix", one_row=True),
    "padded": get_layout("padded"),
}


@pytest.fixture
def valued(start_model: Any) -> ResponseLogps:
    """A policy and a value model with a head that is not 0."""
    model = copy.deepcopy(start_model)
    value = PromptValue(model)
    torch.nn.init.normal_(value.head.weight, generator=torch.Generator().manual_seed(3))
    torch.nn.init.constant_(value.head.bias, 0.5)
    policy = ResponseLogps(model)
    policy.value = value
    return policy


def by_hand(policy: ResponseLogps, start_model: Any, groups: list[Group]) -> Tensor:
    """Each prompt by itself, through the start model."""
    assert policy.value is not None
    states = [start_model.base_model(torch.tensor([g.prompt])).last_hidden_state[0, -1] for g in groups]
    values = policy.value.head(torch.stack(states))[:, 0]
    return values.repeat_interleave(torch.tensor([len(g.responses) for g in groups]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_response_has_the_value_of_its_prompt_alone(layout, valued, start_model) -> None:
    batch = LAYOUTS[layout].collate(GROUPS)
    sums, values = valued(batch, valued=True)
    assert torch.equal(sums, valued(batch))
    assert torch.allclose(values, by_hand(valued, start_model, GROUPS), atol=1e-5)
    assert len({round(v, 3) for v in values.tolist()}) == len(GROUPS)


def test_a_prompt_is_read_whole_where_its_row_has_a_root_and_where_it_is_the_root(valued, start_model) -> None:
    groups = [g._replace(prompt=tuple(range(9)) + rest) for g, rest in zip(GROUPS, [(5,), (6, 6), ()], strict=True)]
    batch = LAYOUTS["one row"].collate(groups)
    assert batch.root == 9
    assert torch.allclose(valued(batch, valued=True)[1], by_hand(valued, start_model, groups), atol=1e-5)


def test_a_packed_row_has_each_prompt_once() -> None:
    prompts = Prompts.of(LAYOUTS["packed"].collate(GROUPS))
    assert sorted(
        row[: last + 1] for row, last in zip(prompts.ids.tolist(), prompts.last.tolist(), strict=True)
    ) == sorted(list(group.prompt) for group in GROUPS)
    assert len(Prompts.of(LAYOUTS["padded"].collate(GROUPS)).ids) == 6


def test_a_value_model_begins_at_0_and_shares_no_weight_with_the_policy(start_model) -> None:
    model = copy.deepcopy(start_model)
    policy = ResponseLogps(model)
    policy.value = PromptValue(model)
    values = policy(LAYOUTS["packed"].collate(GROUPS), valued=True)[1]
    assert not values.any()
    values.sum().backward()
    assert all(p.grad is None for p in model.parameters()) and policy.value.head.weight.grad.abs().min() > 0
    own = {p.data_ptr() for p in policy.value.parameters()}
    assert own and not own & {p.data_ptr() for p in model.parameters()}


def test_frozen_weights_are_refused(start_model) -> None:
    with pytest.raises(PobenchError, match="a value model begins as the policy and trains all of its weights; some"):
        PromptValue(copy.deepcopy(start_model).requires_grad_(False))
