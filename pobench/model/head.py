"""The output head, computed in tiles of the vocabulary: log-probabilities of the target tokens, without all logits at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pobench.model.products import add_products

KEPT_BYTES = {
    "cpu": 64 * 2**20,
    "cuda": 2**30,
}  # of a micro-batch's softmax, kept for the backward pass; the rest is computed again
# Logits of a tile: on a CPU they should fit into the cache; on a GPU a small product leaves most of the chip idle.
TILE_LOGITS = {"cpu": 2**22, "cuda": 2**27}
LEAST_TILE = 512  # vocabulary entries


class _Tile(NamedTuple):
    """A tile of the vocabulary. holds: (tokens,) whether a token's target lies in it. place: (tokens, 1) index of the target
    in the tile, meaningful only where `holds`."""

    entries: slice
    place: Tensor
    holds: Tensor

    def put(self, values: Tensor, into: Tensor) -> None:
        """Write `values`, (tokens,), into `into`, (tokens, tile), at the targets that lie in this tile."""
        into.scatter_(1, self.place, torch.where(self.holds, values, into.gather(1, self.place)[:, 0])[:, None])

    def add(self, values: Tensor, to: Tensor) -> None:
        """Add `values`, (tokens,), to `to`, (tokens, tile), at the targets that lie in this tile."""
        to.scatter_add_(1, self.place, torch.where(self.holds, values, 0.0).to(to.dtype)[:, None])


class _Head(NamedTuple):
    """The settings of a head. tile: vocabulary entries. product_weight: the weight in the type of the matrix product. grad: the
    gradient to add to, or None. room: bytes of softmax that may be kept for the backward pass."""

    tile: int
    scale: float
    softcap: float | None
    product_weight: Tensor
    grad: Tensor | None
    room: int

    @property
    def dtype(self) -> torch.dtype:
        """The type of the matrix product."""
        return self.product_weight.dtype

    @property
    def sums(self) -> torch.dtype:
        """The type of sums over tiles."""
        return torch.promote_types(self.dtype, torch.float32)

    def tiles(self, target: Tensor) -> Iterator[_Tile]:
        """The tiles, in order."""
        for at in range(0, len(self.product_weight), self.tile):
            entries = slice(at, min(at + self.tile, len(self.product_weight)))
            place = target - at
            holds = (place >= 0) & (place < entries.stop - at)
            yield _Tile(entries, place.clamp_(0, entries.stop - at - 1)[:, None], holds)

    def own(self, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor | None:
        """(tokens,) the logit of each target in fp32: its rounding error would go into the log-probability in full. None if all
        products are fp32."""
        if self.dtype == torch.float32:
            return None
        return (hidden.float() * weight.index_select(0, target).float()).sum(-1)

    def logits(self, narrow: Tensor, bias: Tensor | None, tile: _Tile, own: Tensor | None) -> Tensor:
        """(tokens, tile) fp32."""
        logits = (narrow @ self.product_weight[tile.entries].T).float()
        if own is not None:
            tile.put(own, logits)
        if self.scale != 1.0:
            logits *= self.scale
        if bias is not None:
            logits += bias[tile.entries].float()
        return torch.tanh_(logits.div_(self.softcap)).mul_(self.softcap) if self.softcap is not None else logits

    def steepness(self, logits: Tensor) -> Tensor:
        """d(capped) / d(scaled logits before the cap), of softcap · tanh(z / softcap)."""
        assert self.softcap is not None
        return 1 - (logits / self.softcap) ** 2


class _TiledHead(torch.autograd.Function):
    """(tokens, hidden) → (tokens,) fp32 log-probability of each target, in nats."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: _Head) -> Tensor:
        want_hidden, *want_head = ctx.needs_input_grad[:3]
        narrow, own = hidden.to(head.dtype), head.own(hidden, weight, target)
        expected = torch.zeros_like(hidden, dtype=head.sums) if want_hidden and not any(want_head) else None
        room = head.room if any(want_head) and head.softcap is None else 0
        softmax_parts: list[Tensor] = []
        chosen = hidden.new_zeros(len(target), dtype=torch.float32)
        logsumexp = torch.full_like(chosen, -math.inf)
        for tile in head.tiles(target):
            logits = head.logits(narrow, bias, tile, own)
            chosen = torch.where(tile.holds, logits.gather(1, tile.place)[:, 0], chosen)
            peak = logits.amax(1)
            steep = None if head.softcap is None or expected is None else head.steepness(logits)
            mass = logits.sub_(peak[:, None]).exp_()
            before, logsumexp = logsumexp, torch.logaddexp(logsumexp, peak + mass.sum(1).log())
            room -= mass.numel() * head.dtype.itemsize
            if room >= 0:
                softmax_parts += [mass.to(head.dtype), peak]
            if expected is not None:  # softmax(z) @ weight, of the tiles so far
                mass *= (peak - logsumexp).exp()[:, None]
                mass = mass if steep is None else mass * steep
                expected *= (before - logsumexp).exp()[:, None]
                add_products(expected, mass.to(head.dtype), head.product_weight[tile.entries])
        if expected is None:
            ctx.save_for_backward(hidden, weight, bias, target, own, logsumexp, *softmax_parts)
        else:
            at_target = weight.index_select(0, target).to(head.sums)
            if head.softcap is not None:
                at_target *= head.steepness(chosen)[:, None]
            ctx.save_for_backward(at_target.sub_(expected).mul_(head.scale).to(hidden.dtype))
        ctx.head = head
        return chosen - logsumexp

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        if not (want_weight or want_bias):
            (slope,) = ctx.saved_tensors
            return (slope * grad[:, None]).to(slope.dtype), None, None, None, None
        hidden, weight, bias, target, own, logsumexp, *softmax_parts = ctx.saved_tensors
        head: _Head = ctx.head
        narrow = hidden.to(head.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=head.sums) if want_hidden else None
        grad_weight = None
        if want_weight:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if head.grad is None else head.grad
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias and bias is not None else None
        for turn, tile in enumerate(head.tiles(target)):
            # grad · d logp / d(scaled logits before the cap) = grad · (onehot - softmax)
            if 2 * turn < len(softmax_parts):
                mass, peak = softmax_parts[2 * turn : 2 * turn + 2]
                g = mass * ((peak - logsumexp).exp() * -grad)[:, None]
                tile.add(grad, g)
            else:
                logits = head.logits(narrow, bias, tile, own)
                g = (logits - logsumexp[:, None]).exp_().mul_(-grad[:, None])
                tile.add(grad, g)
                if head.softcap is not None:
                    g *= head.steepness(logits)
            if grad_bias is not None:
                grad_bias[tile.entries] += g.sum(0)
            if head.scale != 1.0:
                g *= head.scale
            g = g.to(head.dtype)
            if grad_hidden is not None:
                add_products(grad_hidden, g, head.product_weight[tile.entries])
            if grad_weight is not None:
                add_products(grad_weight[tile.entries], g.T, narrow)
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None or head.grad is not None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            None,
            None,
        )


def tile_for(positions: int, device: str) -> int:
    """Vocabulary entries per tile of the head: a power of two, so that tiles recur."""
    entries = TILE_LOGITS.get(device, TILE_LOGITS["cpu"]) // max(1, positions)
    return max(LEAST_TILE, 1 << max(0, entries.bit_length() - 1))
