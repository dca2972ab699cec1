"""What all prompts of a row begin with is laid out once, and every sum and gradient is as if it stood before each prompt."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, some_groups, tiny
from hypothesis import given
from hypothesis import strategies as st

from pobench.model import cpu
from pobench.model.choose_layout import choose_layout, plain_logps
from pobench.model.flex import BLOCK, use_blocks
from pobench.model.layouts import LEAST_SHARED, get_layout, plan_step
from pobench.model.logps import ResponseLogps
from pobench.model.value import PromptValue
from pobench.types import Group

ROOT = LEAST_SHARED + 5
ONE_ROW = get_layout("shared_prefix", one_row=True)


@pytest.mark.parametrize("attention", ["as chosen", "matrices", "blocks"])
@pytest.mark.parametrize("name", CONFIGS)
def test_sums_are_those_of_one_sequence_at_a_time(name: str, attention: str) -> None:
    if attention == "blocks" and name == "gpt2":
        pytest.skip("GPT-2 takes no block mask")
    model, groups = tiny(name), some_groups(7, root=ROOT)
    plain = torch.cat([plain_logps(model, g) for g in groups])
    if attention == "blocks":
        use_blocks(model)
    policy = ResponseLogps(model, tile=5)
    if attention == "matrices":
        policy.use_attention("matrices")
    layout = get_layout("shared_prefix", one_row=True, width_step=BLOCK if attention == "blocks" else 8)
    batch = layout.collate(groups, policy.window)
    assert batch.root == ROOT
    with torch.no_grad():
        sums = policy(batch)
    assert plain.std() > 1
    torch.testing.assert_close(sums.double(), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral with a sliding window"])
def test_gradients_are_those_of_rows_without_a_root(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = tiny(name).double(), some_groups(5, root=ROOT)
    policy = ResponseLogps(model)
    weight = torch.randn(sum(len(g.responses) for g in groups), dtype=torch.float64)
    grads = []
    for least in (LEAST_SHARED, 10**6):
        monkeypatch.setattr("pobench.model.layouts.LEAST_SHARED", least)
        batch = policy.layout("shared_prefix").collate(groups, policy.window)
        assert batch.root == (ROOT if least == LEAST_SHARED else 0)
        model.zero_grad()
        (policy(batch) * weight).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert grads[1].norm() > 1e-3
    torch.testing.assert_close(grads[0], grads[1], atol=2e-6 * float(grads[1].norm()), rtol=1e-5)


def test_prompts_that_are_the_root_and_nothing_else_are_one_prompt() -> None:
    model = tiny("llama")
    groups = [Group((5,) * ROOT, ((8, 9, 10), (11, 12))), Group((5,) * ROOT, ((7,), (6, 5)))]
    plain = torch.cat([plain_logps(model, g) for g in groups])
    policy = ResponseLogps(model)
    batch = policy.layout("shared_prefix").collate(groups)
    assert batch.root == ROOT and [place.prompt for place in batch.places] == [0, 0]
    with torch.no_grad():
        torch.testing.assert_close(policy(batch).double(), plain, atol=1e-4, rtol=0)


@given(st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=5), st.integers(0, 12))
def test_the_root_is_the_longest_beginning_of_all_prompts(rest: list[list[int]], root: int) -> None:
    groups = [Group((2,) * root + tuple(r), ((1,),)) for r in rest]
    longest = next(
        n
        for n in range(99, -1, -1)
        if len({g.prompt[:n] for g in groups}) == 1 and n <= min(len(g.prompt) for g in groups)
    )
    assert ONE_ROW.root(groups) == (longest if len(groups) > 1 and longest >= LEAST_SHARED else 0)


@given(st.integers(1, 200), st.integers(2, 12), st.sampled_from([1, 64, 256, 1024]), st.sampled_from([1, 2, 3]))
def test_a_plan_counts_the_root_once_and_keeps_to_its_budget(root: int, n: int, budget: int, world: int) -> None:
    groups = some_groups(n, root=root)
    batches = [b for of_process in plan_step(groups, world, ONE_ROW, budget) for b in of_process if b]
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    for batch in batches:
        assert len(batch) == 1 or ONE_ROW.collate([groups[i] for i in batch]).input_ids.numel() <= budget


def test_eight_pairs_under_a_system_message_take_fewer_and_shorter_micro_batches() -> None:
    pairs = [Group((1,) * 24 + (10 + i,) * 20, ((2,) * 30, (3,) * 32)) for i in range(8)]
    strangers = [Group((100 + i, *g.prompt[1:]), g.responses) for i, g in enumerate(pairs)]
    for groups, micro_batches, tokens in ((strangers, 3, 864), (pairs, 2, 704)):
        plan = ONE_ROW.plan(groups, 384)
        assert len(plan) == micro_batches
        assert sum(ONE_ROW.collate([groups[i] for i in batch]).input_ids.numel() for batch in plan) == tokens


def test_two_processes_share_what_a_long_root_leaves() -> None:
    """Seventeen groups a process fit one micro-batch each, though with every root counted they would take nine turns."""
    groups = [Group((1,) * 1000 + (10 + i,) * 4, ((2,) * 30, (3,) * 30)) for i in range(34)]
    plan = plan_step(groups, 2, ONE_ROW, 2112)
    assert [[len(batch) for batch in of_process] for of_process in plan] == [[17], [17]]
    widths = {ONE_ROW.collate([groups[i] for i in batch]).input_ids.numel() for (batch,) in plan}
    assert widths == {2112}


def test_a_policy_with_a_value_model_lays_out_every_prompt_whole(start_model) -> None:
    """The value model reads whole prompts, of which a micro-batch holds no more tokens than its budget."""
    value, policy = PromptValue(start_model), ResponseLogps(start_model)
    groups = some_groups(5, root=ROOT)
    assert policy.layout("shared_prefix").collate(groups).root == ROOT
    policy.value = value
    assert policy.layout("shared_prefix").collate(groups).root == 0


def test_attention_that_does_not_see_the_root_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial groups have no common beginning of their own, so the proof makes some that do."""
    own = cpu.prefix_attention.parts_of
    monkeypatch.setattr(cpu.prefix_attention, "parts_of", lambda places, window, root: own(places, window, 0))
    groups = some_groups(5)
    assert not ONE_ROW.root(groups)
    policy = ResponseLogps(tiny("llama"))
    _, why = choose_layout(policy, groups)
    assert policy.attention != "parts" and "differs" in why
