"""Every layout gives the sums of one sequence at a time, on every architecture the settings use."""

from __future__ import annotations

import copy

import pytest
import torch
from architectures import CONFIGS, some_groups, tiny

from pobench.model.choose_layout import PROVEN_ON, choose_layout, plain_logps
from pobench.model.layouts import LEAST_SHARED, get_layout
from pobench.model.logps import ResponseLogps
from pobench.types import Group


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_layout_gives_the_sums_of_one_sequence_at_a_time(name: str, layout: str, attention: str) -> None:
    model, groups = tiny(name, attention), some_groups()
    plain = torch.cat([plain_logps(model, g) for g in groups])  # before its layers are exchanged for lean ones
    policy = ResponseLogps(model, tile=5)
    with torch.no_grad():
        sums = policy(get_layout(layout).collate(groups, policy.window))
    assert plain.std() > 1  # random inputs vary
    torch.testing.assert_close(sums.double(), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere"])
def test_gradients_equal_those_of_the_models_own_logits(name: str) -> None:
    model, groups = tiny(name).double(), some_groups(3)
    weight = torch.randn(sum(len(g.responses) for g in groups), dtype=torch.float64)
    untouched = copy.deepcopy(model)
    policy = ResponseLogps(model, tile=4)
    grads = []
    for layout in ("shared_prefix", "padded", "own logits"):
        model.zero_grad()
        model = untouched if layout == "own logits" else model
        if layout == "own logits":
            sums = []
            for g in groups:
                for r in g.responses:
                    logits = model(input_ids=torch.tensor([g.prompt + r])).logits[0, len(g.prompt) - 1 : -1]
                    sums.append(logits.log_softmax(-1).gather(1, torch.tensor(r)[:, None]).sum())
            total = torch.stack(sums)
        else:
            total = policy(get_layout(layout).collate(groups, policy.window))
        (total * weight).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert grads[2].norm() > 1e-3
    for got in grads[:2]:
        torch.testing.assert_close(got, grads[2], atol=2e-6 * float(grads[2].norm()), rtol=1e-5)


@pytest.mark.parametrize("tile", [1, 3, 1000])
def test_the_tile_changes_neither_value_nor_gradient(tile: int) -> None:
    model, groups = tiny("llama"), some_groups(4)
    results = []
    for size in (17, tile):
        model.zero_grad()
        policy = ResponseLogps(model, tile=size)
        total = policy(get_layout("shared_prefix").collate(groups))
        total.sum().backward()
        results.append((total.detach(), model.lm_head.weight.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "granite"])
def test_a_frozen_head_pulls_as_a_trained_one_whatever_caps_or_scales_its_logits(name: str) -> None:
    grads = []
    for trained in (True, False):
        model = tiny(name)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=trained)
        sums = ResponseLogps(model, tile=13)(get_layout("shared_prefix").collate(some_groups(3)))
        (sums * torch.linspace(-1, 1, len(sums))).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.base_model.parameters()]))
    assert grads[0].norm() > 1e-3
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5 * float(grads[0].norm()))


def test_a_token_of_one_response_never_moves_the_other() -> None:
    model = tiny("llama")
    policy = ResponseLogps(model)
    before = Group((5, 6, 7), ((8, 9, 10), (11, 12)))
    after = Group((5, 6, 7), ((8, 9, 10), (90, 91)))
    layout = get_layout("shared_prefix")
    with torch.no_grad():
        a, b = policy(layout.collate([before])), policy(layout.collate([after]))
    torch.testing.assert_close(a[0], b[0], atol=1e-5, rtol=0)
    assert abs(a[1] - b[1]) > 1e-2


@pytest.mark.parametrize(
    ("layout", "how"), [("shared_prefix", {}), ("shared_prefix", {"one_row": True}), ("padded", {})]
)
@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_a_plan_holds_every_group_once_and_keeps_to_its_budget(layout: str, how: dict, budget: int) -> None:
    groups = some_groups(40)
    strategy = get_layout(layout, **how)
    plan = strategy.plan(groups, budget)
    assert sorted(i for batch in plan for i in batch) == list(range(40))
    for batch in plan:
        assert len(batch) == 1 or strategy.collate([groups[i] for i in batch]).input_ids.numel() <= budget


def test_auto_takes_the_shared_prefix_where_the_model_proves_it_and_padding_where_not() -> None:
    policy = ResponseLogps(tiny("llama"))
    assert choose_layout(policy, some_groups())[0] == "shared_prefix"

    model = tiny("llama")
    inner = model.model.forward
    model.model.forward = lambda attention_mask=None, **inputs: inner(
        **inputs
    )  # an attention that takes no custom mask
    name, why = choose_layout(ResponseLogps(model), some_groups())
    assert name == "padded" and "shared_prefix" in why


@pytest.mark.parametrize(("name", "whole"), [("llama", False), ("mistral with a sliding window", True)])
def test_a_layout_is_proven_on_short_groups_where_the_model_looks_no_shorter_way(
    name: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(
        "pobench.model.choose_layout.plain_logps", lambda model, g: seen.append(g.tokens) or plain_logps(model, g)
    )
    groups = [Group((start, *range(1, 40)), ((6,) * 30, (7,) * 31)) for start in (41, 42)]
    assert choose_layout(ResponseLogps(tiny(name)), groups)[0] == "shared_prefix"
    assert max(seen) >= 101 if whole else max(seen) <= 4 * PROVEN_ON + LEAST_SHARED
