"""FlexAttention over shared-prefix rows, for GPUs. It skips blocks of tokens that do not see each other, and reads no
(width × width) mask.

Calls with a BlockMask go to FlexAttention. All other calls (one sequence, padded rows, answers) go to the model's base kind:
`sdpa`, or `eager` where scores are capped.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from pobench.errors import PobenchError
from pobench.model import flash
from pobench.model.attention import base_kind, can_change, current_kind, register_over
from pobench.model.layouts import Batch, Place
from pobench.model.products import product_type

BLOCK = 128  # tokens; FlexAttention's own block, so a row is as wide as a multiple of it
VARIANTS = 64  # of the kernels, more than a model and its reference can need
_NAMES = {base: f"flex_over_{base}" for base in ("sdpa", "eager")}


def use_flex(model: Any, attention: str = "auto", device: torch.device | None = None) -> None:
    """Let `model` take block masks if `attention` is "flex", or if it is "auto" and `device` (None: the model's own) is a GPU;
    let it take FlashAttention over padded rows if that is named.

    Raises PobenchError if the kind is named and this model or device does not support it.
    """
    if attention == flash.NAME:
        flash.use_flash(model)
        return
    able = can_change(model)
    on_gpu = (device or model.device).type == "cuda"
    if attention == "flex" and not (able and on_gpu):
        reason = "this model's attention cannot be exchanged" if on_gpu else "FlexAttention has no gradient on a CPU"
        raise PobenchError(f"model.attention: flex: {reason}; allowed here: auto, sdpa, eager")
    if able and on_gpu and attention in ("auto", "flex"):
        use_blocks(model)


def use_blocks(model: Any) -> None:
    """Let the model's layers take block masks in addition to the masks that they took before."""
    _register()
    model.set_attn_implementation(_NAMES[base_kind(model)])


def takes_blocks(model: Any) -> bool:
    """Whether the model's layers take block masks now."""
    return current_kind(model) in _NAMES.values()


def block_mask(batch: Batch, window: int | None = None) -> BlockMask:
    """`batch.sees(window)` as blocks, computed once a batch for all layers. The places of the groups suffice for it, so
    nothing is read from the device and no (width × width) matrix is built. Raises ValueError for rows that are no whole
    blocks."""
    rows, width = batch.input_ids.shape
    if width % BLOCK:
        raise ValueError(f"rows of {width} tokens are no whole blocks of {BLOCK}")
    device = batch.input_ids.device
    blocks = _visible_blocks(batch.places, rows, width // BLOCK, window, batch.root)
    partly, of_partly, wholly, of_wholly = (t.to(device, non_blocking=True) for kind in blocks for t in _listed(kind))
    return BlockMask.from_kv_blocks(
        partly,
        of_partly,
        wholly,
        of_wholly,
        BLOCK_SIZE=BLOCK,
        mask_mod=batch.sees(window),
        seq_lengths=(width, width),
    )


def _visible_blocks(
    places: Sequence[Place], rows: int, blocks: int, window: int | None, root: int
) -> tuple[Tensor, Tensor]:
    """Two masks, (rows, blocks of queries, blocks of keys) bool: some queries see some keys, but not all see all; and every
    query sees every key. root: how many tokens at the row's start belong to all groups."""
    partly = torch.eye(blocks, dtype=torch.bool).repeat(rows, 1, 1)  # every token sees itself
    pairs = torch.zeros(partly.shape, dtype=torch.int32)  # number of (query, key) pairs that certainly see each other

    def count(row: int, own: list[tuple[int, range]], seen: list[tuple[int, range]]) -> None:
        for (q, queries), (k, keys) in product(own, seen):
            # The ranges hold positions. All keys of an earlier block come before the query.
            if k >= q or (window is not None and queries.start - keys[-1] >= window):
                continue
            partly[row, q, k] = True
            if window is None or queries[-1] - keys.start < window:
                pairs[row, q, k] += len(queries) * len(keys)

    of_root = _cut(range(root), 0)
    if root:
        count(0, of_root, of_root)
    for row, start, prompt, responses in places:
        at = start + prompt
        before = of_root + _cut(range(start, at), root)
        count(row, before[len(of_root) :], before)
        for tokens in responses:
            own = _cut(range(at, at + tokens), root + prompt)
            count(row, own, before + own)
            at += tokens
    wholly = pairs == BLOCK**2
    return partly & ~wholly, wholly


def _cut(tokens: range, position: int) -> list[tuple[int, range]]:
    """For each block: (its index, positions of the tokens in it). position: of the first token."""
    cuts = sorted({tokens.start, *range(-(-tokens.start // BLOCK) * BLOCK, tokens.stop, BLOCK), tokens.stop})
    shift = position - tokens.start
    return [(a // BLOCK, range(a + shift, b + shift)) for a, b in pairwise(cuts)]


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The form that FlexAttention reads: (rows, 1, blocks) how many key blocks are true, and (rows, 1, blocks, blocks) their
    indices, the true ones first."""
    which = torch.argsort(blocks.to(torch.int8), dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], which.to(torch.int32)[:, None].contiguous()


@cache
def _register() -> None:
    register_over(_NAMES, _flex_or)


def _flex_or(base: Any) -> Any:
    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any) -> Any:
        if isinstance(attention_mask, BlockMask):
            return _flex(query, key, value, attention_mask, **how), None
        return base(module)(module, query, key, value, attention_mask, **how)

    return attention


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

    Raises ValueError for an attention sink, a bias of positions and dropout: these are not passed on to FlexAttention.
    """
    unsupported = [name for name in ("s_aux", "position_bias") if how.get(name) is not None]
    if unsupported or how.get("dropout"):
        unsupported += ["dropout"] if how.get("dropout") else []
        raise ValueError(f"FlexAttention is given no {', '.join(unsupported)}")
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
    """On a GPU the fused kernels, compiled once per kind of shape; on a CPU the plain form, which has no gradient."""
    if device == "cpu":
        return flex_attention
    # With and without gradient, window, fp32 and one block a row are variants each. Beyond the limit, which is 8 by itself,
    # attention would be computed unfused without a word.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VARIANTS)
    return torch.compile(flex_attention)
