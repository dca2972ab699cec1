"""Hidden states → fp32 sums of log-probabilities per response. The only file that knows the label shift:
the hidden state at a token's predecessor predicts the token.

    log π(y | x) = Σ_t [ z_t[y_t] - logsumexp(z_t) ],   z_t = head(h_{t-1})

The head runs on response positions alone, a tile of the vocabulary at a time, so that the (tokens × vocabulary) matrix
never exists, and a micro-batch reads the weight, and adds to its gradient, once. The softmax and the sums are fp32; the
logsumexp of all tiles is made of those of each. Where the head's weight is trained, the backward pass needs every tile's
softmax: the first ones are kept, `KEPT_BYTES` of them, and the others computed again. A frozen head (an adapter is trained)
is passed once: a token's log-probability depends on its own hidden state alone, so its slope there,

    ∂ log π(y_t) / ∂ h = weight[y_t] - softmax(z_t) @ weight,

is one vector a token, made in the forward pass while the tiles' softmax is at hand and kept in the hidden state's place.
The backward pass only scales it: no weight gradient, nothing recomputed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pobench.attention import BLOCK, block_mask, kind_of, take_matrices, take_parts, takes_blocks, takes_parts
from pobench.compiled import compile_layers
from pobench.layouts import WIDTH_STEP, Batch, Group, Layout, get_layout
from pobench.lean import Arithmetic, add_products, make_lean
from pobench.prefix_attention import added_mask, parts_of, standing_for
from pobench.registry import PobenchError

KEPT_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}  # of a micro-batch's softmax, so that so much is not computed twice
# Logits of a tile: on a CPU they should stay near the cache; on a GPU a small product wastes the chip.
TILE_LOGITS = {"cpu": 2**22, "cuda": 2**27}
LEAST_TILE = 512  # vocabulary entries


class _Tile(NamedTuple):
    """A tile of the vocabulary. place: (tokens, 1) of each target in it, any where `holds`, (tokens,), says that it is not
    there."""

    entries: slice
    place: Tensor
    holds: Tensor

    def put(self, values: Tensor, into: Tensor) -> None:
        """Into (tokens, tile), in place: `values`, (tokens,), at the targets that are here."""
        into.scatter_(1, self.place, torch.where(self.holds, values, into.gather(1, self.place)[:, 0])[:, None])

    def add(self, values: Tensor, to: Tensor) -> None:
        """`put`, adding."""
        to.scatter_add_(1, self.place, torch.where(self.holds, values, 0.0).to(to.dtype)[:, None])


class _Head(NamedTuple):
    """How hidden states become logits. tile: vocabulary entries. product_weight: the weight in the type of the matrix
    product. grad: where its gradient is added, or None. room: bytes of softmax that may be kept for the backward pass."""

    tile: int
    scale: float
    softcap: float | None
    product_weight: Tensor
    grad: Tensor | None
    room: int

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix product."""
        return self.product_weight.dtype

    @property
    def sums(self) -> torch.dtype:
        """Of what is added up tile by tile."""
        return torch.promote_types(self.dtype, torch.float32)

    def tiles(self, target: Tensor) -> Iterator[_Tile]:
        """The tiles, in order."""
        for at in range(0, len(self.product_weight), self.tile):
            entries = slice(at, min(at + self.tile, len(self.product_weight)))
            place = target - at
            holds = (place >= 0) & (place < entries.stop - at)
            yield _Tile(entries, place.clamp_(0, entries.stop - at - 1)[:, None], holds)

    def own(self, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor | None:
        """(tokens,) fp32 product for each target, whose rounding would go straight into the log-probability; None where
        every product is as wide."""
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
        kept: list[Tensor] = []
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
                kept += [mass.to(head.dtype), peak]
            if expected is not None:  # softmax(z) @ weight, of the tiles so far
                mass *= (peak - logsumexp).exp()[:, None]
                mass = mass if steep is None else mass * steep
                expected *= (before - logsumexp).exp()[:, None]
                add_products(expected, mass.to(head.dtype), head.product_weight[tile.entries])
        if expected is None:
            ctx.save_for_backward(hidden, weight, bias, target, own, logsumexp, *kept)
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
        hidden, weight, bias, target, own, logsumexp, *kept = ctx.saved_tensors
        head: _Head = ctx.head
        narrow = hidden.to(head.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=head.sums) if want_hidden else None
        grad_weight = None
        if want_weight:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if head.grad is None else head.grad
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias and bias is not None else None
        for turn, tile in enumerate(head.tiles(target)):
            # grad · d logp / d(scaled logits before the cap) = grad · (onehot - softmax)
            if 2 * turn < len(kept):
                mass, peak = kept[2 * turn : 2 * turn + 2]
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
    wanted = TILE_LOGITS.get(device, TILE_LOGITS["cpu"]) // max(1, positions)
    return max(LEAST_TILE, 1 << max(0, wanted.bit_length() - 1))


class ResponseLogps(nn.Module):
    """A causal language model as a function from a batch to (responses,) fp32 summed log-probabilities in nats.

    Body and head run inside this one forward, so that a data-parallel wrapper sees every gradient.
    """

    def __init__(self, model: Any, tile: int | None = None, *, compiled: bool = False) -> None:
        """tile: vocabulary entries per tile of the head; None: what suits the device and the number of positions. compiled:
        layers by torch.compile, in place of the lean ones.

        `arithmetic.in_place`: head and linear layers add a weight's gradient to the one that is there, instead of handing
        autograd a matrix of the same size to add.
        """
        super().__init__()
        self.model = model
        self.arithmetic = Arithmetic() if compiled else make_lean(model.base_model)
        if compiled:
            compile_layers(model)
        if compiled and takes_parts(model):
            take_matrices(model)
        elif model.device.type == "cpu" and not compiled:
            take_parts(model)
        self.tile = tile
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        self.mixed_windows = len(kinds) > 1
        window = getattr(config, "sliding_window", None)
        if kinds == {"full_attention"} or getattr(config, "use_sliding_window", True) is False:
            window = None
        self.window: int | None = window
        self.additive = kind_of(model) == "eager" or model.device.type == "cpu"
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale: float = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )

    def layout(self, name: str) -> Layout:
        """The layout as this model takes it best."""
        if name == "shared_prefix" and takes_blocks(self.model):
            return get_layout(name, width_step=BLOCK, one_row=True)
        if name == "shared_prefix" and takes_parts(self.model):
            return get_layout(name, one_row=True)
        return get_layout(name)

    def _mask(self, batch: Batch, window: int | None, dtype: torch.dtype) -> Any:
        """Blocks, parts, truth values, or what is added to the scores."""
        if takes_blocks(self.model):
            return block_mask(batch, window)
        if takes_parts(self.model) and batch.places:
            rows, width = batch.input_ids.shape
            parts = parts_of(batch.places, window)
            return standing_for(parts, lambda: added_mask(batch.mask(window), dtype), (rows, 1, width, width), dtype)
        return added_mask(batch.mask(window), dtype) if self.additive else batch.mask(window)

    def _masks(self, batch: Batch, dtype: torch.dtype) -> Any:
        """Made once for all layers: one mask, one for each kind of layer, or None where the model's own serves."""
        if batch.member is None:
            return None
        if batch.window is None or not self.mixed_windows:
            return self._mask(batch, batch.window, dtype)
        kinds = {"full_attention": None, "sliding_attention": batch.window}
        return {kind: self._mask(batch, window, dtype) for kind, window in kinds.items()}

    def forward(self, batch: Batch) -> Tensor:
        device_type = batch.input_ids.device.type
        weight = self.model.get_output_embeddings().weight
        product_weight = self.arithmetic.weight(weight).detach()
        hidden = self.model.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=self._masks(batch, product_weight.dtype),
            use_cache=False,
        ).last_hidden_state
        # As rows' widths do, the number of positions recurs: it is a multiple of WIDTH_STEP, pads included.
        pads = -len(batch.target) % WIDTH_STEP
        previous, target = (torch.nn.functional.pad(t, (0, pads)) for t in (batch.previous, batch.target))
        wanted = hidden.flatten(0, 1).index_select(0, previous)
        bias = getattr(self.model.get_output_embeddings(), "bias", None)
        grad = self.arithmetic.grad(weight)
        room = KEPT_BYTES.get(device_type, 0) if torch.is_grad_enabled() else 0
        tile = self.tile or tile_for(len(target), device_type)
        head = _Head(tile, self.scale, self.softcap, product_weight, grad, room)
        with torch.autocast(device_type, enabled=False):
            logp = _TiledHead.apply(wanted, weight, bias, target, head)[: len(batch.target)]
        return torch.zeros(batch.responses, device=logp.device).index_add(0, batch.sequence, logp)


@torch.no_grad()
def plain_logps(model: Any, group: Group) -> Tensor:
    """(responses,) nats by the model's own logits, one sequence at a time, fp64 log-softmax: the yardstick."""
    sums = []
    device = next(model.parameters()).device
    for response in group.responses:
        ids = torch.tensor([group.prompt + response], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1].double()
        logp = torch.log_softmax(logits, -1).gather(1, ids[0, len(group.prompt) :, None])
        sums.append(logp.sum())
    return torch.stack(sums)


def _longer(group: Group) -> Group:
    """With a prompt that fills more than one further block."""
    times = 1 + -(-2 * BLOCK // len(group.prompt))
    return group._replace(prompt=group.prompt * times)


def choose_layout(policy: ResponseLogps, groups: Sequence[Group], wanted: str = "auto") -> tuple[str, str]:
    """(layout name, why). `auto` takes the shared prefix where the model proves, on the first groups, that it computes the
    same sums as one sequence at a time; models whose attention ignores a custom mask get the padded layout. Attention
    by blocks (in two sizes, and on a GPU with the backward pass) or by parts is tried first; where it fails, the model goes
    back to matrices.

    Raises PobenchError if even the padded layout disagrees with the model's own logits (an unknown kind of head).
    """
    trial = list(groups[:2])
    tolerance = 1e-4 if policy.model.dtype == torch.float32 else 5e-2
    faults = []

    @cache
    def plain(g: Group) -> Tensor:
        return plain_logps(policy.model, g)

    def furthest(layout: Layout, groups: Sequence[Group], backward: bool) -> float:
        """The largest difference from one sequence at a time, nats a token."""
        sums = torch.cat([plain(g) for g in groups])
        tokens = torch.tensor([len(r) for g in groups for r in g.responses], device=sums.device)
        with torch.set_grad_enabled(backward):
            ours = policy(layout.collate(groups, policy.window).to(sums.device))
            if ours.requires_grad:
                torch.autograd.grad(ours.sum(), next(p for p in policy.parameters() if p.requires_grad))
        return ((ours.detach() - sums).abs() / tokens).max().item()

    def proven(name: str) -> str:
        """How well it agrees; "" where it does not, with a fault noted."""
        blocks = name == "shared_prefix" and takes_blocks(policy.model)
        parts = name == "shared_prefix" and takes_parts(policy.model)
        how = " by blocks" if blocks else " by parts" if parts else ""
        layout, called = policy.layout(name), name + how
        # Kernels are compiled for one width of a row, and once more for widths that change.
        trials = [trial, [*map(_longer, trial), *trial]] if blocks else [trial]
        try:
            off = max(furthest(layout, t, blocks and policy.model.device.type != "cpu") for t in trials)
        except Exception as error:
            if not (blocks or isinstance(error, TypeError | ValueError | RuntimeError | KeyError)):
                raise  # where kernels are compiled, anything may go wrong; elsewhere these tell of a mask not taken
            faults.append(f"{called}: {type(error).__name__}: {error}")
            return ""
        if off < tolerance:
            return (
                f"{'by blocks of attention, ' if blocks else ''}equals one sequence at a time to {off:.0e} nats a token"
            )
        faults.append(f"{called}: differs by {off:.2g} nats a token")
        return ""

    for name in ("shared_prefix", "padded") if wanted == "auto" else (wanted,):
        why = proven(name)
        if not why and name == "shared_prefix" and (takes_blocks(policy.model) or takes_parts(policy.model)):
            take_matrices(policy.model)
            why = proven(name)
        if why:
            return name, why + "".join(f"; {fault}" for fault in faults)
    raise PobenchError("the log-probabilities of this model cannot be computed exactly:\n  " + "\n  ".join(faults))
