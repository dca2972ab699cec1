"""Attention over shared-prefix rows on a processor: only scores that the mask leaves visible are computed.

    [prompt | chosen | rejected]     prompt and chosen are one causal sequence; rejected sees the prompt and itself

A root, with which all prompts of a row begin, lies before them once; what follows sees it.

Most of a row's (width × width) scores are masked: the upper half of a causal triangle, chosen against rejected, groups that
share a row, pads. The rest is cut into blocks of queries, each with the keys up to its last query. A block takes a few matrix
products over two reused scratch buffers. All is fp32, whatever the type of the model's products: bf16 scores would be
somewhat faster, but rounded to three digits.

The backward pass computes the scores S and their softmax P again, from queries and keys:

    dV = Pᵀ dO,   dS = P · (dO Vᵀ - Σ dO · O),   dQ = dS K · scale,   dK = dSᵀ Q · scale
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pobench.model.attention import added_mask
from pobench.model.layouts import Batch, Place
from pobench.model.scratch import scratch, scratch_like

QUERIES = 128  # most queries of a block: more would compute more masked scores, fewer would make the products small
SCORES = 2**21  # most scores of a block, all heads together: 8 MB


class Part(NamedTuple):
    """Queries of a row, and the keys that they see. keys: slices of the same row, in order. bias: (queries, keys), added to the
    scores. causal: the last keys are those of the queries' own tokens, and no query sees a later one."""

    row: int
    queries: slice
    keys: tuple[slice, ...]
    bias: Tensor
    causal: bool


class _Carried(NamedTuple):
    """Attached to a mask that stands for its parts. whole: builds the mask as a matrix."""

    parts: list[Part]
    whole: Callable[[], Tensor]


def parts_of(places: Sequence[Place], window: int | None, root: int) -> list[Part]:
    """The parts of all groups. window: a token sees only tokens less than so many positions before it. root: how many tokens
    at the row's start belong to all groups."""
    of_root = slice(0, root)
    parts = [Part(0, of_root, (of_root,), _triangle(root, window), True)] if root else []
    before = (of_root,) if root else ()
    for row, start, prompt, (first, *others) in places:
        of_prompt, at = slice(start, start + prompt), start + prompt + first
        queries, whole = slice(start, at), root + prompt
        parts.append(Part(row, queries, (*before, queries), _triangle(whole + first, window)[root:], True))
        for tokens in others:
            queries = slice(at, at + tokens)
            keys = (*before, *([of_prompt] if prompt else []), queries)
            parts.append(Part(row, queries, keys, _triangle(whole + tokens, window)[whole:], True))
            at += tokens
    return parts


def standing_for(
    parts: list[Part], build_matrix: Callable[[], Tensor], shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """A placeholder in the shape of the mask that `build_matrix` builds, (rows, 1, width, width). It carries the parts to the
    attention that computes by them. Its numbers are NaN, so code that reads them by mistake is noticed."""
    mask = torch.full((1, 1, 1, 1), math.nan, dtype=dtype).expand(*shape)
    mask.carried = _Carried(parts, cache(build_matrix))  # type: ignore[attr-defined]
    return mask


def parts_under(mask: Tensor) -> list[Part] | None:
    """The parts of a mask that stands for them; None for any other mask."""
    carried: _Carried | None = getattr(mask, "carried", None)
    return None if carried is None else carried.parts


def whole_mask(mask: Tensor) -> Tensor:
    """The mask that a mask of parts stands for; any other mask is returned as it is."""
    carried: _Carried | None = getattr(mask, "carried", None)
    return mask if carried is None else carried.whole()


def mask_of_parts(batch: Batch, window: int | None, dtype: torch.dtype) -> Tensor:
    """The mask of a shared-prefix batch, as one that stands for its parts."""
    rows, width = batch.input_ids.shape
    build_matrix = partial(_whole, batch, window, dtype)
    return standing_for(parts_of(batch.places, window, batch.root), build_matrix, (rows, 1, width, width), dtype)


def _whole(batch: Batch, window: int | None, dtype: torch.dtype) -> Tensor:
    return added_mask(batch.mask(window), dtype)


_triangles: dict[int | None, Tensor] = {}


def _triangle(tokens: int, window: int | None) -> Tensor:
    """(tokens, tokens) fp32, added to the scores of one causal sequence. It is a corner of the largest one so far, which is
    cached. Positions count from the start of the prompt, so the bias of every part is a slice of its lines."""
    triangle = _triangles.get(window)
    if triangle is None or len(triangle) < tokens:
        at = torch.arange(-(-tokens // QUERIES) * QUERIES)
        before = at[:, None] - at
        triangle = added_mask((before >= 0) & (before < (window or len(at))), torch.float32)
        _triangles[window] = triangle
    return triangle[:tokens, :tokens]


def whole_rows(mask: Tensor) -> list[Part]:
    """Parts for any mask to add to the scores, (rows, 1, width, width): each row is one part, with the mask as bias."""
    rows, _, width, keys = mask.shape
    return [Part(row, slice(0, width), (slice(0, keys),), mask[row, 0].float(), False) for row in range(rows)]


def _blocks(part: Part, heads: int) -> list[tuple[slice, Tensor]]:
    """For each block: (its queries in the row, their bias). The bias has a column for every key up to the last one seen."""
    n, keys = part.bias.shape
    size = max(16, min(QUERIES, SCORES // (heads * keys)))
    first = part.queries.start
    return [
        (slice(first + at, first + stop), part.bias[at:stop, : keys - n + stop if part.causal else keys])
        for at in range(0, n, size)
        for stop in [min(at + size, n)]
    ]


def _by_head(x: Tensor) -> Tensor:
    """(rows, width, heads, features) as (rows, heads, width, features), at least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).transpose(1, 2)


def _keys(x: Tensor, part: Part, shared: int) -> Tensor:
    """(shared · heads, keys, features) from x (rows, heads, width, features). A key head that several query heads share is
    repeated: one product for each query head spreads over threads more evenly than fewer, larger ones."""
    slices = [x[part.row, :, s] for s in part.keys]
    keys = slices[0] if len(slices) == 1 else torch.cat(slices, 1)
    return keys[:, None].expand(-1, shared, -1, -1).flatten(0, 1) if shared > 1 else keys


def _softmax(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """(heads, queries, keys), in scratch memory; that of the scores is free again."""
    shape = (*query.shape[:2], key.shape[1])
    scores = torch.bmm(query, key.transpose(1, 2), out=scratch("scores", shape, query.dtype, query.device)).add_(bias)
    # softmax, not exp: exp takes six times as long where it underflows, and it would for every masked score.
    return torch.softmax(scores, -1, out=scratch("softmax", shape, query.dtype, query.device))


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, parts: Sequence[Part]) -> Tensor:
    """(rows, width, heads, features) attended values, in the shape and type of the queries.

    key, value: the same shape, or with fewer heads, which are shared. Queries outside all parts give zeros.
    """
    heads = query.shape[2]
    shared = heads // key.shape[2]
    attended = torch.zeros_like(query, memory_format=torch.contiguous_format)
    query, key, value = (_by_head(t) for t in (query, key, value))
    query = query * scale
    for part in parts:
        k, v = (_keys(t, part, shared) for t in (key, value))
        for queries, bias in _blocks(part, heads):
            seen = slice(0, bias.shape[1])
            p = _softmax(query[part.row, :, queries], k[:, seen], bias)
            attended[part.row, queries] = torch.bmm(p, v[:, seen]).transpose(0, 1)
    return attended


def attend_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attended: Tensor,
    scale: float,
    parts: Sequence[Part],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value in their shapes, at least fp32. grad: the gradient of `attended`."""
    heads = query.shape[2]
    shared = heads // key.shape[2]
    shapes = query.shape, key.shape, value.shape
    query, key, value, grad, attended = (_by_head(t) for t in (query, key, value, grad, attended))
    grads = [query.new_zeros(shape) for shape in shapes]
    along = (grad * attended).sum(-1, keepdim=True)
    query = query * scale
    for part in parts:
        k, v = (_keys(t, part, shared) for t in (key, value))
        for queries, bias in reversed(_blocks(part, heads)):  # the last block first, because it sees all keys
            seen = slice(0, bias.shape[1])
            q, do, o = (t[part.row, :, queries] for t in (query, grad, along))
            p = _softmax(q, k[:, seen], bias)
            to_value = torch.bmm(p.transpose(1, 2), do)
            free = scratch_like("scores", p)
            ds = torch.bmm(do, v[:, seen].transpose(1, 2), out=free).sub_(o).mul_(p)
            grads[0][part.row, queries] = torch.bmm(ds, k[:, seen]).transpose(0, 1)
            to_key = torch.bmm(ds.transpose(1, 2), q)
            if queries.stop == part.queries.stop:
                dk, dv = to_key, to_value
            else:
                dk[:, seen] += to_key
                dv[:, seen] += to_value
        for total, part_grad in zip(grads[1:], (dk, dv), strict=True):
            part_grad = (part_grad.unflatten(0, (-1, shared)).sum(1) if shared > 1 else part_grad).transpose(0, 1)
            at = 0
            for s in part.keys:
                total[part.row, s] += part_grad[at : at + s.stop - s.start]
                at += s.stop - s.start
    return grads[0].mul_(scale), grads[1], grads[2]


class PrefixAttention(torch.autograd.Function):
    """`attend` with its gradient, for layers that compute queries, keys and values in their own way."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, parts: Sequence[Part]) -> Tensor:
        attended = attend(query, key, value, scale, parts)
        ctx.save_for_backward(query, key, value, attended)
        ctx.scale, ctx.parts = scale, parts
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        query, key, value, attended = ctx.saved_tensors
        grads = attend_backward(grad, query, key, value, attended, ctx.scale, ctx.parts)
        return (*(g.to(query.dtype) for g in grads), None, None)
