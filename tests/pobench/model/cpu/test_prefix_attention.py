"""Attention by parts is masked attention, whatever lies in a row, and computes little of what is masked."""

from __future__ import annotations

import pytest
import torch
from architectures import CONFIGS, some_groups, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import pobench.model.cpu.prefix_attention as prefix_attention
from pobench.model.attention import added_mask, base_kind
from pobench.model.choose_layout import choose_layout, plain_logps
from pobench.model.cpu.attention import takes_parts, use_parts
from pobench.model.cpu.prefix_attention import (
    PrefixAttention,
    attend,
    parts_of,
    parts_under,
    standing_for,
    whole_mask,
    whole_rows,
)
from pobench.model.layouts import LEAST_SHARED, NO_GROUP, Batch, get_layout
from pobench.model.logps import ResponseLogps
from pobench.types import Group

SCALE = 0.3
responses = st.lists(st.integers(1, 9), min_size=1, max_size=3)
rows = st.lists(st.tuples(st.integers(1, 9), responses), min_size=1, max_size=4)
roots = st.sampled_from([None, 0, LEAST_SHARED, 17])


def batch_of(lengths: list[tuple[int, list[int]]], root: int | None = None) -> Batch:
    """root: put all groups in one row, and this many tokens before each prompt; None: several rows. Prompts of different
    lengths consist of different tokens, so they share these alone."""
    groups = [
        Group((1,) * (root or 0) + (3 + prompt,) * prompt, tuple((2,) * n for n in answers))
        for prompt, answers in lengths
    ]
    return get_layout("shared_prefix", width_step=8, one_row=root is not None).collate(groups)


def projections(
    batch: Batch, dtype: torch.dtype = torch.float32, heads: int = 4, shared: int = 2
) -> list[torch.Tensor]:
    """Queries, keys, values and a slope that is zero at pads, (rows, width, heads, 3)."""
    draw = torch.Generator().manual_seed(0)
    shape, kept = batch.input_ids.shape, heads // shared
    q, k, v, slope = (torch.randn(*shape, n, 3, generator=draw, dtype=dtype) for n in (heads, kept, kept, heads))
    assert batch.member is not None
    return [
        q.requires_grad_(),
        k.requires_grad_(),
        v.requires_grad_(),
        slope * (batch.member != NO_GROUP)[..., None, None],
    ]


@settings(max_examples=40)
@given(rows, roots, st.sampled_from([None, 3, 8]), st.sampled_from([2, 5, 128]))
def test_value_and_gradients_are_those_of_masked_attention(lengths, root, window, queries) -> None:
    batch = batch_of(lengths, root)
    mask = added_mask(batch.mask(window), torch.float32)
    q, k, v, slope = projections(batch)
    repeated = (t.transpose(1, 2).repeat_interleave(n, 1) for t, n in ((q, 1), (k, 2), (v, 2)))
    want = scaled_dot_product_attention(*repeated, attn_mask=mask, scale=SCALE).transpose(1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_attention, "QUERIES", queries)
        got = PrefixAttention.apply(q, k, v, SCALE, parts_of(batch.places, window, batch.root))
        gots = torch.autograd.grad((got * slope).sum(), (q, k, v))
    wants = torch.autograd.grad((want * slope).sum(), (q, k, v))
    real = batch.member != NO_GROUP
    torch.testing.assert_close(got[real], want[real], atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(gots, wants, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@settings(max_examples=40)
@given(rows, roots)
def test_the_parts_hold_every_token_once_and_all_that_it_sees(lengths, root) -> None:
    batch = batch_of(lengths, root)
    sees = batch.mask()[:, 0]
    covered = torch.zeros_like(batch.input_ids)
    looked = torch.zeros_like(sees)
    for part in parts_of(batch.places, None, batch.root):
        covered[part.row, part.queries] += 1
        for keys in part.keys:
            looked[part.row, part.queries, keys] = True
    real = batch.member != NO_GROUP
    assert torch.equal(covered, real.long())
    assert not (sees & real[..., None] & ~looked).any()


@pytest.mark.parametrize("root", [None, LEAST_SHARED])
def test_the_gradient_is_that_of_finite_differences(root: int | None) -> None:
    batch = batch_of([(2, [3, 2]), (1, [2])], root)
    assert batch.root == (root or 0)
    parts = parts_of(batch.places, 3, batch.root)
    q, k, v, _ = projections(batch, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: PrefixAttention.apply(*t, SCALE, parts), (q, k, v))


def test_any_mask_can_be_taken_row_by_row() -> None:
    batch = batch_of([(3, [4, 2]), (2, [5, 5])])
    q, k, v, _ = projections(batch)
    mask = torch.zeros(len(batch.input_ids), 1, *[batch.input_ids.shape[1]] * 2)
    mask[0, 0, 1, 2] = torch.finfo(torch.float32).min
    repeated = (t.transpose(1, 2).repeat_interleave(n, 1) for t, n in ((q, 1), (k, 2), (v, 2)))
    want = scaled_dot_product_attention(*repeated, attn_mask=mask, scale=SCALE).transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(attend(q, k, v, SCALE, whole_rows(mask)), want, atol=1e-5, rtol=1e-5)


def test_narrow_inputs_are_multiplied_in_fp32() -> None:
    batch = batch_of([(9, [9, 9])])
    q, k, v, _ = (t.detach() for t in projections(batch))
    narrow = [t.bfloat16() for t in (q, k, v)]
    exact = attend(*(t.float() for t in narrow), SCALE, parts_of(batch.places, None, 0))
    got = attend(*narrow, SCALE, parts_of(batch.places, None, 0))
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, exact.bfloat16())


def test_less_than_half_of_the_scores_of_two_groups_in_a_row_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_attention, "QUERIES", 16)
    batch = batch_of([(20, [60, 50]), (20, [60, 46])])
    width = batch.input_ids.shape[1]
    blocks = [b for p in parts_of(batch.places, None, 0) for _, b in prefix_attention._blocks(p, 4)]
    assert batch.input_ids.shape == (2, width)
    assert sum(b.numel() for b in blocks) < 0.45 * 2 * width**2
    packed = batch_of([(20, [60, 50]), (5, [20, 20]), (5, [20, 20]), (5, [18, 19])])
    blocks = [b for p in parts_of(packed.places, None, 0) for _, b in prefix_attention._blocks(p, 4)]
    assert sum(b.numel() for b in blocks) < 0.35 * packed.input_ids.shape[0] * packed.input_ids.shape[1] ** 2


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_whose_attention_is_sdpa_computes_it_by_parts(name: str, monkeypatch) -> None:
    model = tiny(name)
    policy = ResponseLogps(model)  # whose layers are tried first
    calls = []
    true = prefix_attention.attend

    def counted(*arguments):
        calls.append(1)
        return true(*arguments)

    monkeypatch.setattr(prefix_attention, "attend", counted)
    monkeypatch.setattr("pobench.model.cpu.layers.attend", counted)
    groups = some_groups(3)
    batch = policy.layout("shared_prefix").collate(groups, policy.window)
    with torch.no_grad():
        sums = policy(batch)
    layers = model.config.num_hidden_layers
    by_parts = name != "gemma2"  # its scores are capped
    assert len(calls) == (layers if by_parts else 0)
    assert (len(batch.input_ids) == 1) == by_parts
    plain = torch.cat([plain_logps(tiny(name), g) for g in groups])
    torch.testing.assert_close(sums.double(), plain, atol=1e-4, rtol=0)


def test_a_mask_without_parts_goes_the_models_own_way() -> None:
    model = tiny("qwen2")
    ids = torch.arange(1, 13)[None]
    want = model(input_ids=ids).logits
    use_parts(model)
    assert takes_parts(model) and base_kind(model) == "sdpa"
    assert torch.equal(model(input_ids=ids).logits, want)
    mask = torch.zeros(1, 1, 12, 12).masked_fill_(~torch.ones(12, 12).tril().bool(), torch.finfo(torch.float32).min)
    assert parts_under(mask) is None
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits, want, atol=1e-5, rtol=1e-5)


def test_a_mask_that_stands_for_its_parts_is_nan_to_whoever_reads_it() -> None:
    batch = batch_of([(3, [4, 2])])
    whole = added_mask(batch.mask(), torch.float32)
    mask = standing_for(parts_of(batch.places, None, 0), lambda: whole, whole.shape, torch.float32)
    assert mask.shape == whole.shape and mask.isnan().all()
    assert whole_mask(mask) is whole and whole_mask(whole) is whole
    assert parts_under(mask) is not None and parts_under(whole) is None


def test_what_parts_cannot_do_gets_the_whole_mask() -> None:
    model = tiny("gpt2")
    use_parts(model)
    module = model.transformer.h[0].attn
    batch = batch_of([(3, [4, 2]), (2, [5, 5])])
    whole = added_mask(batch.mask(), torch.float32)
    mask = standing_for(parts_of(batch.places, None, 0), lambda: whole, whole.shape, torch.float32)
    call = ALL_ATTENTION_FUNCTIONS["parts_over_sdpa"]
    q, k, v = (t.detach().transpose(1, 2) for t in projections(batch, shared=1)[:3])
    by_parts = call(module, q, k, v, mask, scaling=SCALE)[0]
    bias = torch.zeros(1, 4, 1, 1)
    by_mask = call(module, q, k, v, mask, scaling=SCALE, position_bias=bias)[0]
    real = batch.member != NO_GROUP
    assert torch.equal(by_mask, call(module, q, k, v, whole, scaling=SCALE)[0])
    torch.testing.assert_close(by_parts[real], by_mask[real], atol=1e-5, rtol=1e-5)


def test_a_model_that_reads_the_mask_itself_goes_back_to_matrices() -> None:
    model = tiny("llama")
    inner = model.model.forward

    def copies(attention_mask=None, **named):
        return inner(attention_mask=None if attention_mask is None else attention_mask + 0.0, **named)

    model.model.forward = copies
    policy = ResponseLogps(model)
    assert takes_parts(model)
    name, why = choose_layout(policy, some_groups())
    assert name == "shared_prefix" and "by parts: differs by nan" in why
    assert not takes_parts(model)
    with torch.no_grad():
        sums = policy(policy.layout(name).collate(some_groups(3)))
    torch.testing.assert_close(
        sums.double(), torch.cat([plain_logps(tiny("llama"), g) for g in some_groups(3)]), atol=1e-4, rtol=0
    )


def test_a_larger_window_or_a_longer_row_makes_no_wrong_triangle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_attention, "_triangles", {})
    for tokens, window in ((5, None), (3, 2), (300, 2), (300, None), (5, 500), (600, 500)):
        at = torch.arange(tokens)
        before = at[:, None] - at
        sees = (before >= 0) & (before < (window or tokens))
        assert torch.equal(prefix_attention._triangle(tokens, window) == 0, sees)


def test_an_eager_model_keeps_its_attention() -> None:
    model = tiny("llama", "eager")
    use_parts(model)
    assert not takes_parts(model)


def test_compiled_layers_have_the_models_own_attention() -> None:
    model = tiny("llama")
    use_parts(model)
    ResponseLogps(model, compiled=True)
    assert not takes_parts(model)
