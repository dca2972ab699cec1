"""One plan of micro-batches a step: every process makes the same, in as many turns, with tokens shared out evenly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pobench.model.layouts import get_layout, plan_step
from pobench.types import Group

LAYOUTS = {
    "rows": get_layout("shared_prefix"),
    "one row": get_layout("shared_prefix", one_row=True),
    "padded": get_layout("padded"),
}
a_group = st.builds(
    lambda prompt, responses: Group((1,) * prompt, tuple((2,) * n for n in responses)),
    st.integers(1, 90),
    st.lists(st.integers(1, 60), min_size=1, max_size=3),
)


@settings(max_examples=150)
@given(
    st.lists(a_group, min_size=1, max_size=40),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from([1, 64, 256, 2048]),
)
def test_a_plan_is_whole_even_and_within_its_budget(groups, world, name, budget) -> None:
    layout = LAYOUTS[name]
    plan = plan_step(groups, world, layout, budget)
    assert plan == plan_step([Group(*g) for g in groups], world, layout, budget)  # made of nothing but the tokens
    assert len(plan) == world and len({len(of_process) for of_process in plan}) == 1
    batches = [batch for of_process in plan for batch in of_process]
    assert sorted(i for batch in batches for i in batch) == list(range(len(groups)))
    for batch in batches:
        assert len(batch) < 2 or layout.collate([groups[i] for i in batch]).input_ids.numel() <= budget
    assert any(all(turn) or any(turn) for turn in zip(*plan, strict=True))
    tokens = [layout.tokens(group) - layout.root(groups) for group in groups]
    totals = [sum(tokens[i] for batch in of_process for i in batch) for of_process in plan]
    assert max(totals) - min(totals) <= max(tokens)


@settings(max_examples=50)
@given(st.lists(a_group, min_size=1, max_size=40), st.sampled_from(sorted(LAYOUTS)), st.sampled_from([1, 64, 2048]))
def test_the_plan_of_one_process_is_the_layouts_own(groups, name, budget) -> None:
    assert plan_step(groups, 1, LAYOUTS[name], budget) == [LAYOUTS[name].plan(groups, budget)]


@pytest.mark.parametrize("name", sorted(LAYOUTS))
@pytest.mark.parametrize("batch_size", [64, 128])
def test_eight_processes_share_the_tokens_of_a_batch_to_a_twentieth(name, batch_size) -> None:
    """Lengths as UltraFeedback's: prompts of 134 tokens in the median, answers of 245, a few of 2,000 in all."""
    layout, strided = LAYOUTS[name], []
    for seed in range(12):
        draw = random.Random(seed)
        groups = []
        for _ in range(batch_size):
            prompt = min(1800, max(8, int(draw.lognormvariate(4.9, 0.9))))
            answers = [max(2, min(2048 - prompt, int(draw.lognormvariate(5.5, 0.75)))) for _ in range(2)]
            groups.append(Group((1,) * prompt, tuple((2,) * n for n in answers)))
        tokens = [layout.tokens(g) for g in groups]
        totals = [sum(tokens[i] for batch in share for i in batch) for share in plan_step(groups, 8, layout, 8192)]
        assert max(totals) / (sum(totals) / 8) <= 1.05
        strided.append(max(sum(tokens[r::8]) for r in range(8)) / (sum(tokens) / 8))
    assert sum(strided) / len(strided) > 1.15  # what dealing by turns gave


def test_a_process_without_a_pair_has_an_empty_turn() -> None:
    groups = [Group((1, 2), ((3,), (4,)))] * 3
    assert sorted(plan_step(groups, 4, LAYOUTS["one row"], 100)) == [[[]], [[0]], [[1]], [[2]]]
    assert plan_step([], 4, LAYOUTS["one row"], 100) == [[], [], [], []]
