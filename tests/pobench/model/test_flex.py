"""Attention by blocks gives the sums of attention by matrices, and is left alone where no block mask comes."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from architectures import CONFIGS, some_groups, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from pobench.errors import PobenchError
from pobench.model import choose_layout as choose
from pobench.model import flex
from pobench.model.attention import base_kind, use_matrices
from pobench.model.choose_layout import choose_layout, plain_logps
from pobench.model.flex import BLOCK, block_mask, takes_blocks, use_blocks, use_flex
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.types import Group

NAMES = ["llama", "mistral with a sliding window", "gemma2", "qwen2 with a sliding window", "cohere"]


def by_blocks(name: str) -> ResponseLogps:
    model = tiny(name)
    use_blocks(model)
    return ResponseLogps(model, tile=5)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_give_the_sums_of_one_sequence_at_a_time(name: str) -> None:
    groups = some_groups(12)
    model = tiny(name)
    plain = torch.cat([plain_logps(model, g) for g in groups])
    policy = by_blocks(name)
    batch = policy.layout("shared_prefix").collate(groups, policy.window)
    assert batch.input_ids.shape[1] % BLOCK == 0
    with torch.no_grad():
        sums = policy(batch)
    assert plain.std() > 1
    torch.testing.assert_close(sums.double(), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_block_mask_serves_every_layer_and_is_made_once_for_each_kind(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = by_blocks(name)
    made, used = [], []
    monkeypatch.setattr("pobench.model.logps.block_mask", lambda *a: made.append(block_mask(*a)) or made[-1])
    own = flex._flex
    monkeypatch.setattr(flex, "_flex", lambda q, k, v, mask, **how: used.append(mask) or own(q, k, v, mask, **how))
    with torch.no_grad():
        policy(policy.layout("shared_prefix").collate(some_groups(3), policy.window))
    assert len(made) == (2 if policy.mixed_windows and policy.window else 1)
    assert len(used) == CONFIGS[name].num_hidden_layers
    assert {id(m) for m in used} == {id(m) for m in made}


def test_a_block_of_strangers_is_left_out() -> None:
    policy = by_blocks("llama")
    long, *others = [g._replace(prompt=g.prompt * 9) for g in some_groups(12)]
    batch = policy.layout("shared_prefix").collate([long._replace(prompt=long.prompt * 9), *others])
    blocks, mask = block_mask(batch), batch.mask()
    computed = torch.nn.functional.max_pool2d(mask.float(), BLOCK)
    assert torch.equal(blocks.to_dense().bool(), computed.bool())
    in_a_row = batch.input_ids.shape[1] // BLOCK
    assert in_a_row > 4
    causal = len(batch.input_ids) * in_a_row * (in_a_row + 1) / 2
    assert blocks.to_dense().sum() < 0.8 * causal


@settings(max_examples=10)
@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.lists(st.integers(1, 300), min_size=1, max_size=3)), min_size=1, max_size=4
    ),
    st.sampled_from([None, 1, 130, 300]),
    st.booleans(),
)
def test_the_blocks_are_those_of_the_whole_mask(lengths, window, one_row) -> None:
    groups = [Group((1,) * prompt, tuple((2,) * n for n in answers)) for prompt, answers in lengths]
    batch = get_layout("shared_prefix", width_step=BLOCK, one_row=one_row).collate(groups)
    rows, width = batch.input_ids.shape
    ours = block_mask(batch, window)
    theirs = create_block_mask(batch.sees(window), rows, None, width, width, device="cpu")
    assert ours.shape == theirs.shape
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    for mine, other in (
        (ours.kv_num_blocks, theirs.kv_num_blocks),
        (ours.full_kv_num_blocks, theirs.full_kv_num_blocks),
    ):
        assert mine.dtype == other.dtype and torch.equal(mine, other)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_call_without_blocks_is_what_it_was(name: str) -> None:
    ids = torch.arange(1, 25).view(2, 12)
    pads = torch.tensor([[0] * 3 + [1] * 9, [1] * 12])
    before, after = tiny(name), tiny(name)
    use_blocks(after)
    assert takes_blocks(after) and base_kind(after) == base_kind(before)
    for mask in (None, pads):
        one, other = (m(input_ids=ids, attention_mask=mask).logits for m in (before, after))
        assert torch.equal(one, other)
    use_matrices(after)
    assert not takes_blocks(after) and after.config._attn_implementation == before.config._attn_implementation


def test_a_stored_model_knows_nothing_of_blocks(tmp_path) -> None:
    model = tiny("llama")
    use_blocks(model)
    model.save_pretrained(tmp_path)
    assert "flex" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_auto_takes_blocks_that_prove_themselves_and_leaves_those_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = by_blocks("llama")
    name, why = choose_layout(policy, some_groups())
    assert name == "shared_prefix" and why.startswith("by blocks") and takes_blocks(policy.model)

    def broken(*args: object, **how: object) -> None:
        raise OSError("no compiler")

    monkeypatch.setattr(flex, "_flex", broken)
    name, why = choose_layout(policy, some_groups())
    assert name == "shared_prefix" and "OSError: no compiler" in why and not takes_blocks(policy.model)
    with torch.no_grad():
        policy(policy.layout(name).collate(some_groups(), policy.window))


def test_a_model_that_takes_no_block_mask_goes_back_to_matrices() -> None:
    policy = by_blocks("gpt2")  # its code asks for a mask's number of dimensions, and a block mask has none
    name, why = choose_layout(policy, some_groups())
    assert name == "shared_prefix" and "by blocks: AttributeError" in why and not takes_blocks(policy.model)


def test_wrong_blocks_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = by_blocks("llama")
    own = flex._flex
    monkeypatch.setattr(flex, "_flex", lambda q, k, v, m, **how: own(q, k, v, m, **{**how, "scaling": 0.5}))
    name, why = choose_layout(policy, some_groups())
    assert name == "shared_prefix" and "by blocks: differs by" in why and not takes_blocks(policy.model)


def test_a_way_is_taken_only_if_it_passes_in_every_process() -> None:
    others = iter([1.5, *[0.0] * 9])  # another process's first way does not pass
    policy = by_blocks("llama")
    name, why = choose_layout(policy, some_groups(), most=lambda here: max(here, next(others)))
    assert name == "shared_prefix" and not takes_blocks(policy.model)
    assert "by blocks: does not pass in another process" in why


def test_a_sum_that_is_no_number_is_found_in_any_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, own = by_blocks("llama"), flex._flex
    width = policy.layout("shared_prefix").collate(some_groups()).input_ids.shape[1]

    def broken_in_wider_rows(q: torch.Tensor, *args: object, **how: object) -> torch.Tensor:
        y = own(q, *args, **how)
        return y * torch.nan if q.shape[2] > width else y

    monkeypatch.setattr(flex, "_flex", broken_in_wider_rows)
    _, why = choose_layout(policy, some_groups())
    assert "by blocks: differs by nan" in why and not takes_blocks(policy.model)


def test_kernels_are_tried_in_the_type_that_training_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow, own = partial(torch.autocast, "cpu", torch.bfloat16), flex._flex
    policy = by_blocks("llama")
    assert "by blocks" in choose_layout(policy, some_groups(), autocast=narrow)[1] and takes_blocks(policy.model)

    def broken_in_bf16(*args: object, **how: object) -> torch.Tensor:
        return own(*args, **how) * (2 if torch.is_autocast_enabled("cpu") else 1)

    monkeypatch.setattr(flex, "_flex", broken_in_bf16)
    _, why = choose_layout(policy, some_groups(), autocast=narrow)
    assert "and in bf16 by more than it may" in why and not takes_blocks(policy.model)


def test_blocks_are_tried_on_no_more_tokens_than_tell_and_on_none_beyond_the_models_context() -> None:
    long = Group((1,) * 3000, ((2,) * 900, (3,) * 800))
    policy = by_blocks("llama")
    context = policy.model.config.max_position_embeddings = 700
    (group,) = choose._telling(policy, [long])
    assert len(group.prompt) == 2 * BLOCK and {*map(len, group.responses)} == {BLOCK}
    for prompt in (3, 100, 300, 600, 650):
        longer = choose._longer(Group((1,) * prompt, ((2,) * 90,)), choose._reach(policy.model))
        assert len(longer.prompt) % prompt == 0 and len(longer.prompt) <= max(prompt, context - 90)


def test_the_kernels_may_have_as_many_variants_as_a_model_needs() -> None:
    flex._kernel.cache_clear()
    with torch._dynamo.config.patch(recompile_limit=8):
        flex._kernel("cuda")  # nothing is compiled before the first call
        assert torch._dynamo.config.recompile_limit == flex.VARIANTS
    flex._kernel.cache_clear()


def test_rows_that_are_no_whole_blocks_get_no_block_mask() -> None:
    batch = get_layout("shared_prefix", one_row=True).collate(some_groups())
    with pytest.raises(ValueError, match="no whole blocks"):
        block_mask(batch)


def test_on_a_processor_blocks_are_refused_when_asked_for_and_not_taken_by_auto() -> None:
    model = tiny("llama")
    use_flex(model, "auto")
    assert not takes_blocks(model)
    with pytest.raises(PobenchError, match=r"no gradient on a CPU.*auto, sdpa, eager"):
        use_flex(model, "flex")


@pytest.mark.parametrize("wanted", ["auto", "flex"])
def test_a_gpu_is_given_blocks(wanted: str) -> None:
    model = tiny("llama")
    use_flex(model, wanted, torch.device("cuda"))
    assert takes_blocks(model)
    for other in ("sdpa", "eager"):
        model = tiny("llama")
        use_flex(model, other, torch.device("cuda"))
        assert not takes_blocks(model)


def test_an_attention_sink_is_not_silently_dropped() -> None:
    q = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ValueError, match="s_aux"):
        flex._flex(q, q, q, None, s_aux=torch.zeros(2))


def test_rotated_queries_and_narrower_values_meet_in_autocasts_type(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def kernel(*tensors: torch.Tensor, **how: object) -> torch.Tensor:
        seen.append({t.dtype for t in tensors})
        return tensors[0]

    monkeypatch.setattr(flex, "_kernel", lambda device: kernel)
    q, k = torch.zeros(1, 9, 4, 8), torch.zeros(1, 3, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = flex._flex(q, k, k.bfloat16(), None)
    assert seen == [{torch.bfloat16}] and y.shape == (1, 4, 9, 8)
