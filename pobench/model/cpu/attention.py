"""Which attention a model's layers call over shared-prefix rows, where what is masked need not be computed.

    on a GPU        FlexAttention: blocks of tokens that see nothing of each other are left out, and no (width × width)
                    matrix is read
    on a processor  the parts of `prefix_attention.py`

transformers is handed further kinds of attention. A call whose mask is a BlockMask, or carries parts, goes there; every
other (one sequence, padded rows, answers) is what it would have been: `sdpa`, or `eager` where scores are capped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pobench.errors import PobenchError
from pobench.model.cpu.prefix_attention import PrefixAttention, parts_under, whole_mask
from pobench.model.layouts import Batch, Place

BLOCK = 128  # tokens; FlexAttention's own block, so a row is as wide as a multiple of it
_NAMES = {base: f"flex_over_{base}" for base in ("sdpa", "eager")}
_PARTS = "parts_over_sdpa"


def use_flex(model: Any, wanted: str = "auto", device: torch.device | None = None) -> None:
    """Let `model` take block masks where `wanted` is "flex", or "auto" and `device` (None: the model's own) is a GPU.

    Raises PobenchError where "flex" is asked for and cannot be had.
    """
    able = getattr(model, "_can_set_attn_implementation", lambda: False)()
    on_gpu = (device or model.device).type == "cuda"
    if wanted == "flex" and not (able and on_gpu):
        reason = "this model's attention cannot be exchanged" if on_gpu else "FlexAttention has no gradient on a CPU"
        raise PobenchError(f"model.attention: flex: {reason}; allowed here: auto, sdpa, eager")
    if able and on_gpu and wanted in ("auto", "flex"):
        take_blocks(model)


def take_blocks(model: Any) -> None:
    """Exchange the model's kind of attention for the one that takes block masks beside what it took before."""
    _register()
    model.set_attn_implementation(_NAMES[kind_of(model)])


def take_matrices(model: Any) -> None:
    """Undo `take_blocks` and `take_parts`."""
    model.set_attn_implementation(kind_of(model))


def take_parts(model: Any) -> None:
    """Let a model on a processor whose attention is `sdpa` take masks that carry parts, where its attention can be
    exchanged."""
    able = getattr(model, "_can_set_attn_implementation", lambda: False)()
    if able and kind_of(model) == "sdpa" and not takes_blocks(model):
        _register()
        model.set_attn_implementation(_PARTS)


def takes_parts(model: Any) -> bool:
    """Whether `take_parts` was called on it, and could do it."""
    return model.config.get_text_config()._attn_implementation == _PARTS


def takes_blocks(model: Any) -> bool:
    """Whether `take_blocks` was called on it."""
    return model.config.get_text_config()._attn_implementation in _NAMES.values()


def kind_of(model: Any) -> str:
    """The kind of attention that calls without a block mask get."""
    found: str = model.config.get_text_config()._attn_implementation
    return found.removeprefix("flex_over_").removeprefix("parts_over_")


def block_mask(batch: Batch, window: int | None = None) -> BlockMask:
    """`batch.sees(window)` block by block; made once a batch, for all layers. From where its groups lie, on the processor:
    nothing is asked of the device, and no (width × width) matrix is made."""
    rows, width = batch.input_ids.shape
    device = batch.input_ids.device
    seeing = _blocks_that_see(batch.places, rows, width // BLOCK, window)
    partly, of_partly, wholly, of_wholly = (
        t.to(device, non_blocking=True) for blocks in seeing for t in _listed(blocks)
    )
    return BlockMask.from_kv_blocks(
        partly,
        of_partly,
        wholly,
        of_wholly,
        BLOCK_SIZE=BLOCK,
        mask_mod=batch.sees(window),
        seq_lengths=(width, width),
    )


def _blocks_that_see(places: Sequence[Place], rows: int, blocks: int, window: int | None) -> tuple[Tensor, Tensor]:
    """(rows, blocks of queries, blocks of keys) bool: of which some token sees another, but not all see all; and all."""
    some = torch.eye(blocks, dtype=torch.bool).repeat(rows, 1, 1)  # at the least every token sees itself
    pairs = torch.zeros(some.shape, dtype=torch.int32)  # of tokens of which one certainly sees the other
    for row, start, prompt, responses in places:
        at = start + prompt
        asked = _cut(range(start, at), 0)
        spans = [asked]
        for tokens in responses:
            spans.append(_cut(range(at, at + tokens), prompt))
            at += tokens
        for own in spans:
            seen = own if own is asked else asked + own
            for (q, queries), (k, keys) in product(own, seen):
                # Positions of tokens; in an earlier block all stand before the query.
                if k >= q or (window is not None and queries.start - keys[-1] >= window):
                    continue
                some[row, q, k] = True
                if window is None or queries[-1] - keys.start < window:
                    pairs[row, q, k] += len(queries) * len(keys)
    wholly = pairs == BLOCK**2
    return some & ~wholly, wholly


def _cut(tokens: range, position: int) -> list[tuple[int, range]]:
    """(block, positions of the tokens in it), block by block. position: of the first token."""
    cuts = sorted({tokens.start, *range(-(-tokens.start // BLOCK) * BLOCK, tokens.stop, BLOCK), tokens.stop})
    shift = position - tokens.start
    return [(a // BLOCK, range(a + shift, b + shift)) for a, b in pairwise(cuts)]


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many, (rows, 1, blocks), and which, (rows, 1, blocks, blocks), the true ones first, as FlexAttention has them."""
    which = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], which.to(torch.int32)[:, None].contiguous()


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import eager_mask, sdpa_mask

    AttentionInterface.register(_PARTS, _parts_or(sdpa_attention_forward))
    AttentionMaskInterface.register(_PARTS, sdpa_mask)
    AttentionInterface.register(_NAMES["sdpa"], _flex_or(lambda module: sdpa_attention_forward))
    AttentionMaskInterface.register(_NAMES["sdpa"], sdpa_mask)
    # Every architecture brings an eager form of its own, beside its layers.
    AttentionInterface.register(_NAMES["eager"], _flex_or(lambda module: _home(module).eager_attention_forward))
    AttentionMaskInterface.register(_NAMES["eager"], eager_mask)


def _home(module: Any) -> Any:
    return sys.modules[type(module).__module__]


def _flex_or(base: Any) -> Any:
    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any) -> Any:
        if isinstance(attention_mask, BlockMask):
            return _flex(query, key, value, attention_mask, **how), None
        return base(module)(module, query, key, value, attention_mask, **how)

    return attention


def _parts_or(base: Any) -> Any:
    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any) -> Any:
        parts = None if attention_mask is None else parts_under(attention_mask)
        if parts is None or how.get("dropout") or how.get("position_bias") is not None:
            whole = None if attention_mask is None else whole_mask(attention_mask)
            return base(module, query, key, value, whole, **how)
        scale = how.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        dtype = product_type(query)
        by_token = (t.to(dtype).transpose(1, 2) for t in (query, key, value))
        return PrefixAttention.apply(*by_token, scale, parts), None

    return attention


def product_type(x: Tensor) -> torch.dtype:
    """Of a matrix product of `x`, as autocast would have it: it knows torch's own operations and sdpa, and not ours."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    scaling: float | None = None,
    softcap: float | None = None,
    **how: Any,
) -> Tensor:
    """(rows, width, heads, features) of query (rows, heads, width, features), key and value (rows, fewer heads, …).

    Raises ValueError for what it does not do: an attention sink, a bias of positions.
    """
    odd = [name for name in ("s_aux", "position_bias") if how.get(name) is not None]
    if odd or how.get("dropout"):
        raise ValueError(f"FlexAttention is given no {', '.join([*odd, *(['dropout'] if how.get('dropout') else [])])}")
    device, dtype = query.device.type, product_type(query)
    shared = query.shape[1] // key.shape[1]
    if shared & (shared - 1):  # its kernels share a head among a power of two
        key, value = (t.repeat_interleave(shared, dim=1) for t in (key, value))
    y = _kernel(device)(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        score_mod=None if softcap is None else _capped(softcap),
        block_mask=mask,
        scale=scaling,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return y.transpose(1, 2).contiguous()


@cache
def _capped(softcap: float) -> Any:
    def capped(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped


@cache
def _kernel(device: str) -> Any:
    """On a GPU the fused kernels, compiled once for a kind of shape; on a CPU the plain form, which has no gradient."""
    return flex_attention if device == "cpu" else torch.compile(flex_attention)
