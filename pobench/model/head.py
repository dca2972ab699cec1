"""The output head, computed in tiles of the vocabulary: log-probabilities of the target tokens, without all logits at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pobench.model.products import Arithmetic, add_products
from pobench.model.scratch import scratch_like

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
    gradient to add to, or None. room: bytes of softmax that may be kept for the backward pass. arithmetic: of the
    model, which computes the product."""

    tile: int
    scale: float
    softcap: float | None
    product_weight: Tensor
    grad: Tensor | None
    room: int
    arithmetic: Arithmetic

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
        products are fp32 or wider."""
        if self.dtype.itemsize >= torch.float32.itemsize:
            return None
        return (hidden.float() * weight.index_select(0, target).float()).sum(-1)

    def logits(
        self,
        narrow: Tensor,
        bias: Tensor | None,
        tile: _Tile,
        own: Tensor | None,
        dtype: torch.dtype = torch.float32,
        *,
        reuse: bool = False,
    ) -> Tensor:
        """(tokens, tile) of `dtype`. reuse: into memory that the next such call takes, if the product is narrower."""
        product = self.arithmetic.product(narrow, self.product_weight[tile.entries])
        reuse = reuse and product.dtype != dtype
        logits = scratch_like("logits", product, dtype).copy_(product) if reuse else product.to(dtype)
        if own is not None:
            tile.put(own, logits)
        if self.scale != 1.0:
            logits *= self.scale
        if bias is not None:
            logits += bias[tile.entries].to(dtype)
        return torch.tanh_(logits.div_(self.softcap)).mul_(self.softcap) if self.softcap is not None else logits

    def steepness(self, logits: Tensor) -> Tensor:
        """d(capped) / d(scaled logits before the cap), of softcap · tanh(z / softcap)."""
        assert self.softcap is not None
        return 1 - (logits / self.softcap) ** 2


class _Gradients:
    """The gradients by hidden states, weight and bias, added up tile by tile."""

    def __init__(
        self, head: _Head, hidden: Tensor, narrow: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]
    ) -> None:
        """narrow: the hidden states in the type of the matrix product. wanted: by hidden states, by weight, by bias."""
        self.head, self.narrow, self.types = head, narrow, (hidden.dtype, weight.dtype)
        self.by_hidden = torch.zeros_like(hidden, dtype=head.sums) if wanted[0] else None
        self.by_weight = None
        if wanted[1]:
            self.by_weight = torch.zeros_like(weight, dtype=head.sums) if head.grad is None else head.grad
        self.by_bias = torch.zeros_like(bias, dtype=head.sums) if wanted[2] and bias is not None else None

    def add(self, tile: _Tile, slope: Tensor) -> None:
        """slope: (tokens, tile), by the scaled logits before the cap; it is changed in place."""
        if self.by_bias is not None:
            self.by_bias[tile.entries] += slope.sum(0)
        if self.head.scale != 1.0:
            slope *= self.head.scale
        if slope.dtype != self.head.dtype:
            slope = scratch_like("slope", slope, self.head.dtype).copy_(slope)
        if self.by_hidden is not None:
            add_products(self.by_hidden, slope, self.head.product_weight[tile.entries])
        if self.by_weight is not None:
            add_products(self.by_weight[tile.entries], slope.T, self.narrow)

    def of_inputs(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """By hidden states, weight and bias, in their types; None for a weight whose gradient is added in place."""
        of_hidden, of_weight = self.types
        return (
            None if self.by_hidden is None else self.by_hidden.to(of_hidden),
            None if self.by_weight is None or self.head.grad is not None else self.by_weight.to(of_weight),
            None if self.by_bias is None else self.by_bias.to(of_weight),
        )


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
            logits = head.logits(narrow, bias, tile, own, reuse=True)
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
        if not any(ctx.needs_input_grad[1:3]):
            (slope,) = ctx.saved_tensors
            return (slope * grad[:, None]).to(slope.dtype), None, None, None, None
        hidden, weight, bias, target, own, logsumexp, *softmax_parts = ctx.saved_tensors
        head: _Head = ctx.head
        narrow = hidden.to(head.dtype)
        gradients = _Gradients(head, hidden, narrow, weight, bias, ctx.needs_input_grad)
        for turn, tile in enumerate(head.tiles(target)):
            # grad · d logp / d(scaled logits before the cap) = grad · (onehot - softmax)
            if 2 * turn < len(softmax_parts):
                mass, peak = softmax_parts[2 * turn : 2 * turn + 2]
                # Widened first: torch would widen it into fresh memory, and write the product to more of it.
                g = (
                    scratch_like("logits", mass, head.sums)
                    .copy_(mass)
                    .mul_(((peak - logsumexp).exp() * -grad)[:, None])
                )
                tile.add(grad, g)
            else:
                logits = head.logits(narrow, bias, tile, own)
                g = (logits - logsumexp[:, None]).exp_().mul_(-grad[:, None])
                tile.add(grad, g)
                if head.softcap is not None:
                    g *= head.steepness(logits)
            gradients.add(tile, g)
        return (*gradients.of_inputs(), None, None)


def tile_for(positions: int, device: str) -> int:
    """Vocabulary entries per tile of the head: a power of two, so that tiles recur."""
    entries = TILE_LOGITS.get(device, TILE_LOGITS["cpu"]) // max(1, positions)
    return max(LEAST_TILE, 1 << max(0, entries.bit_length() - 1))
