"""Hidden states → fp32 sums of log-probabilities per response. The only file that knows the label shift:
the hidden state at a token's predecessor predicts the token.

    log π(y | x) = Σ_t [ z_t[y_t] - logsumexp(z_t) ],   z_t = head(h_{t-1})

The head runs on response positions alone, a tile of positions at a time, so that the (tokens × vocabulary) matrix never
exists. The softmax and the sums are fp32. Where the head's weight is trained, the backward pass computes each tile's
logits again. A frozen head (an adapter is trained) is passed once: a token's log-probability depends on its own hidden
state alone, so its slope there,

    ∂ log π(y_t) / ∂ h = weight[y_t] - softmax(z_t) @ weight,

is one vector a token, made in the forward pass while the tile's softmax is at hand and kept in the hidden state's place.
The backward pass only scales it: no weight gradient, nothing recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pobench.layouts import WIDTH_STEP, Batch, Group, get_layout
from pobench.registry import PobenchError

VOCABULARY_TILE = 8192  # rows of the head's weight whose gradient is made at once


class _Head(NamedTuple):
    """How hidden states become logits. dtype: of the matrix product. grad: where the weight's gradient is added, or None."""

    tile: int
    scale: float
    softcap: float | None
    dtype: torch.dtype
    grad: Tensor | None

    def logits(
        self, hidden: Tensor, product_weight: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
    ) -> Tensor:
        """(tokens, vocabulary) fp32. The target's own logit, whose rounding would go straight into the log-probability,
        is computed in fp32 whatever the dtype of the product."""
        logits = (hidden.to(self.dtype) @ product_weight.T).float()
        if self.dtype != torch.float32:
            exact = (hidden.float() * weight.index_select(0, target).float()).sum(-1)
            logits.scatter_(1, target[:, None], exact[:, None])
        if self.scale != 1.0:
            logits *= self.scale
        if bias is not None:
            logits += bias.float()
        return torch.tanh_(logits.div_(self.softcap)).mul_(self.softcap) if self.softcap is not None else logits

    def pull(self, logits: Tensor, softmax: Tensor, target: Tensor, by: Tensor) -> Tensor:
        """(tokens, vocabulary) `by` · d logp / d(scaled logits before the cap) = by · (onehot - softmax), made in
        `softmax`."""
        g = softmax.mul_(-by[:, None])
        g.scatter_add_(1, target[:, None], by[:, None])
        if self.softcap is not None:  # d/dz of softcap * tanh(z / softcap)
            g *= 1 - (logits / self.softcap) ** 2
        return g


class _TiledHead(torch.autograd.Function):
    """(tokens, hidden) → (tokens,) fp32 log-probability of each target, in nats."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, head: _Head) -> Tensor:
        want_hidden, *want_head = ctx.needs_input_grad[:3]
        slope = torch.empty_like(hidden) if want_hidden and not any(want_head) else None
        product_weight = weight.to(head.dtype)
        logp = hidden.new_empty(len(target), dtype=torch.float32)
        for at in range(0, len(target), head.tile):
            part = slice(at, at + head.tile)
            logits = head.logits(hidden[part], product_weight, weight, bias, target[part])
            # torch's log_softmax is one vectorised pass over a row; its logsumexp is several, and many times slower on a CPU
            log_softmax = torch.log_softmax(logits, -1)
            logp[part] = log_softmax.gather(1, target[part, None])[:, 0]
            if slope is not None:
                g = head.pull(logits, log_softmax.exp_(), target[part], torch.ones_like(logp[part]))
                slope[part] = (g.mul_(head.scale).to(head.dtype) @ product_weight).to(hidden.dtype)
        if slope is None:
            ctx.save_for_backward(hidden, weight, bias, target)
        else:
            ctx.save_for_backward(slope)
        ctx.head = head
        return logp

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        if not (want_weight or want_bias):
            (slope,) = ctx.saved_tensors
            return (slope * grad[:, None]).to(slope.dtype), None, None, None, None
        hidden, weight, bias, target = ctx.saved_tensors
        head: _Head = ctx.head
        product_weight = weight.to(head.dtype)
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = None
        if want_weight:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if head.grad is None else head.grad
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if want_bias and bias is not None else None
        for at in range(0, len(target), head.tile):
            part = slice(at, at + head.tile)
            logits = head.logits(hidden[part], product_weight, weight, bias, target[part])
            g = head.pull(logits, torch.softmax(logits, -1), target[part], grad[part])
            if grad_bias is not None:
                grad_bias += g.sum(0)
            if head.scale != 1.0:
                g *= head.scale
            g = g.to(head.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (g @ product_weight).to(hidden.dtype)
            if grad_weight is not None:
                _add_products(grad_weight, g.T, hidden[part].to(head.dtype))
        return (
            grad_hidden,
            None if grad_weight is None or head.grad is not None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            None,
            None,
        )


def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, in fp32; a narrower product is made a few rows at a time, not as large as the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
        return
    for at in range(0, len(left), VOCABULARY_TILE):
        total[at : at + VOCABULARY_TILE] += left[at : at + VOCABULARY_TILE] @ right


class ResponseLogps(nn.Module):
    """A causal language model as a function from a batch to (responses,) fp32 summed log-probabilities in nats.

    Body and head run inside this one forward, so that a data-parallel wrapper sees every gradient.
    """

    def __init__(self, model: Any, tile: int | None = None) -> None:
        """tile: response positions per tile of the head; None: what suits the device.

        `add_in_place`: the head adds its weight's gradient to the one that is there, instead of handing autograd a matrix
        of the same size to add. Not under a data-parallel wrapper, which waits for what autograd hands out.
        """
        super().__init__()
        self.add_in_place = False
        self.model = model
        # On a CPU a tile of logits should stay near the cache; on a GPU a small product wastes the chip.
        self.tile = tile or (128 if model.device.type == "cpu" else 4096)
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        self.mixed_windows = len(kinds) > 1
        window = getattr(config, "sliding_window", None)
        if kinds == {"full_attention"} or getattr(config, "use_sliding_window", True) is False:
            window = None
        self.window: int | None = window
        self.additive = config._attn_implementation == "eager"
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale: float = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )

    def _mask(self, mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if mask is None or not self.additive:
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    def forward(self, batch: Batch) -> Tensor:
        device_type = batch.input_ids.device.type
        autocast = torch.is_autocast_enabled(device_type)
        weight = self.model.get_output_embeddings().weight
        dtype = torch.get_autocast_dtype(device_type) if autocast else weight.dtype
        mask: Any = self._mask(batch.mask, weight.dtype)
        if batch.window is not None:
            near = self._mask(batch.window, weight.dtype)
            mask = {"full_attention": mask, "sliding_attention": near} if self.mixed_windows else near
        hidden = self.model.base_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        # As rows' widths do, the number of positions recurs: the last tile has a multiple of WIDTH_STEP, pads included.
        pads = -len(batch.target) % WIDTH_STEP
        previous, target = (torch.nn.functional.pad(t, (0, pads)) for t in (batch.previous, batch.target))
        wanted = hidden.flatten(0, 1).index_select(0, previous)
        bias = getattr(self.model.get_output_embeddings(), "bias", None)
        grad = weight.grad if self.add_in_place and weight.dtype == torch.float32 else None
        head = _Head(self.tile, self.scale, self.softcap, dtype, grad)
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


def choose_layout(policy: ResponseLogps, groups: Sequence[Group], wanted: str = "auto") -> tuple[str, str]:
    """(layout name, why). `auto` takes the shared prefix where the model proves, on the first groups, that it computes the
    same sums as one sequence at a time; models whose attention ignores a custom mask get the padded layout.

    Raises PobenchError if even the padded layout disagrees with the model's own logits (an unknown kind of head).
    """
    trial = list(groups[:2])
    plain = torch.cat([plain_logps(policy.model, g) for g in trial])
    tokens = torch.tensor([len(r) for g in trial for r in g.responses], device=plain.device)
    faults = []
    for name in ("shared_prefix", "padded") if wanted == "auto" else (wanted,):
        batch = get_layout(name).collate(trial, policy.window).to(plain.device)
        try:
            with torch.no_grad():
                off = ((policy(batch) - plain).abs() / tokens).max().item()
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            faults.append(f"{name}: {type(error).__name__}: {error}")
            continue
        tolerance = 1e-4 if policy.model.dtype == torch.float32 else 5e-2
        if off < tolerance:
            return name, f"equals one sequence at a time to {off:.0e} nats a token" + "".join(f"; {f}" for f in faults)
        faults.append(f"{name}: differs by {off:.2g} nats a token")
    raise PobenchError("the log-probabilities of this model cannot be computed exactly:\n  " + "\n  ".join(faults))
