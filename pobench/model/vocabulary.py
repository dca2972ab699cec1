"""What the distribution over the whole vocabulary says at each response position, computed in tiles of the vocabulary.

p is the policy's distribution of the next token, q the reference's. In nats, beside the token's own log-probability:

    collision          log Σ_v p(v)²
    entropy            -Σ_v p(v) log p(v)
    reference          log q of the token
    reference_entropy  -Σ_v q(v) log q(v)
    forward_kl         Σ_v q(v) [log q(v) - log p(v)], the only one with gradient, to the policy

The (tokens × vocabulary) matrix never exists, nor do its gradients: the forward pass keeps (tokens,) sums over tiles and a few
tiles' softmax (`KEPT_BYTES`), and the backward pass computes the other tiles again, those of the reference from its hidden
states. By the policy's logits,

    ∂ log p(y) / ∂ z = onehot(y) - p,    ∂ forward_kl / ∂ z = p - q.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pobench.model.head import _Gradients, _Head, _Tile

Kind = Literal["collision", "entropy", "reference", "reference_entropy", "forward_kl"]
OF_REFERENCE = frozenset(("reference", "reference_entropy", "forward_kl"))  # they need its hidden states


class Positions(NamedTuple):
    """A model at the response positions of a micro-batch. states: (positions, hidden) its last hidden states. weight, bias,
    head: of the output head."""

    states: Tensor
    weight: Tensor
    bias: Tensor | None
    head: _Head


class Beside(NamedTuple):
    """What to compute beside the tokens' log-probabilities. reference: the frozen model at the same positions; None if no kind
    needs it."""

    kinds: tuple[Kind, ...]
    reference: Positions | None = None


def values_of(policy: Positions, target: Tensor, beside: Beside) -> Tensor:
    """(1 + kinds, positions): the log-probability of `target` under the policy, and each kind below it."""
    values: Tensor = _Values.apply(policy.states, policy.weight, policy.bias, target, policy.head, beside)
    return values


class _Logits:
    """The logits of a model, tile by tile."""

    def __init__(self, at: Positions, target: Tensor) -> None:
        self.head, self.bias = at.head, at.bias
        self.narrow, self.own = at.states.to(at.head.dtype), at.head.own(at.states, at.weight, target)

    def of(self, tile: _Tile) -> Tensor:
        """(positions, tile), in the type of sums."""
        return self.head.logits(self.narrow, self.bias, tile, self.own, self.head.sums)


class _Sums:
    """Sums over the vocabulary, added up tile by tile: log Σ_v e^z, log Σ_v e^2z, the target's logit, and means under
    softmax(z) of its logarithm and of another value, each of them only if it is asked for."""

    def __init__(self, positions: int, like: Tensor) -> None:
        """like: a tensor of the type and device of the sums."""
        self.logsumexp = like.new_full((positions,), torch.finfo(like.dtype).min)
        self.of_squares = self.logsumexp.clone()
        self.at_target = like.new_zeros(positions)
        self.mean_logp, self.mean_value = self.at_target, self.at_target

    def add(
        self, tile: _Tile, logits: Tensor, *, squares: bool = False, entropy: bool = False, value: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """logits, value: (positions, tile). Returns e^(z - peak) of the tile, and its peak, (positions,)."""
        self.at_target = torch.where(tile.holds, logits.gather(1, tile.place)[:, 0], self.at_target)
        peak = logits.amax(1)
        mass = (logits - peak[:, None]).exp_()
        before, self.logsumexp = self.logsumexp, torch.logaddexp(self.logsumexp, peak + mass.sum(1).log())
        kept, added = (before - self.logsumexp).exp(), (peak - self.logsumexp).exp()
        if entropy:
            of_tile = (mass * (logits - self.logsumexp[:, None])).sum(1)
            self.mean_logp = kept * (self.mean_logp + before - self.logsumexp) + added * of_tile
        if value is not None:
            self.mean_value = kept * self.mean_value + added * (mass * value).sum(1)
        if squares:
            norm = torch.linalg.vector_norm(mass, dim=1)
            self.of_squares = torch.logaddexp(self.of_squares, 2 * (peak + norm.log()))
        return mass, peak

    @property
    def logp(self) -> Tensor:
        """Of the target."""
        return self.at_target - self.logsumexp


class _Values(torch.autograd.Function):
    """`values_of`, with gradient to hidden states, weight and bias of the policy."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: _Head, beside: Beside
    ) -> Tensor:
        kinds, reference = beside
        ours = _Logits(Positions(states, weight, bias, head), target)
        theirs = None if reference is None else _Logits(reference, target)
        like = states.new_empty(0, dtype=head.sums)
        policy, frozen = _Sums(len(target), like), _Sums(len(target), like)
        room = head.room if head.softcap is None else 0
        softmax_parts: list[Tensor] = []
        for tile in head.tiles(target):
            z = ours.of(tile)
            parts = [*policy.add(tile, z, squares="collision" in kinds, entropy="entropy" in kinds)]
            if theirs is not None:
                y = theirs.of(tile)
                gap = y - z if "forward_kl" in kinds else None
                of_reference = frozen.add(tile, y, entropy="reference_entropy" in kinds, value=gap)
                parts += [] if gap is None else of_reference
            room -= len(parts) // 2 * z.numel() * head.dtype.itemsize
            if room >= 0:
                softmax_parts += [part.to(head.dtype) if part.ndim > 1 else part for part in parts]
        ctx.save_for_backward(states, weight, bias, target, policy.logsumexp, frozen.logsumexp, *softmax_parts)
        ctx.head, ctx.beside = head, beside
        computed = {
            "collision": lambda: policy.of_squares - 2 * policy.logsumexp,
            "entropy": lambda: -policy.mean_logp,
            "reference": lambda: frozen.logp,
            "reference_entropy": lambda: -frozen.mean_logp,
            "forward_kl": lambda: frozen.mean_value - (frozen.logsumexp - policy.logsumexp),
        }
        return torch.stack([policy.logp, *(computed[kind]() for kind in kinds)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        states, weight, bias, target, of_policy, of_reference, *softmax_parts = ctx.saved_tensors
        head: _Head = ctx.head
        kinds, reference = ctx.beside
        ours = _Logits(Positions(states, weight, bias, head), target)
        by_logp = grad[0]
        by_kl = grad[1 + kinds.index("forward_kl")] if "forward_kl" in kinds else None
        theirs = None if by_kl is None else _Logits(reference, target)
        by_p = -by_logp if by_kl is None else by_kl - by_logp
        gradients = _Gradients(head, states, ours.narrow, weight, bias, ctx.needs_input_grad)
        a_tile = 2 if by_kl is None else 4  # kept tensors
        for turn, tile in enumerate(head.tiles(target)):
            if kept := softmax_parts[a_tile * turn : a_tile * (turn + 1)]:
                slope = kept[0] * ((kept[1] - of_policy).exp() * by_p)[:, None]
                if by_kl is not None:
                    slope -= kept[2] * ((kept[3] - of_reference).exp() * by_kl)[:, None]
                tile.add(by_logp, slope)
            else:
                z = ours.of(tile)
                slope = (z - of_policy[:, None]).exp_().mul_(by_p[:, None])
                if theirs is not None and by_kl is not None:
                    slope -= theirs.of(tile).sub_(of_reference[:, None]).exp_().mul_(by_kl[:, None])
                tile.add(by_logp, slope)
                if head.softcap is not None:
                    slope *= head.steepness(z)
            gradients.add(tile, slope)
        return (*gradients.of_inputs(), None, None, None)
