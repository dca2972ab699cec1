"""Decoder layers that compute the same numbers as the model's own, and keep less memory for the backward pass.

    linear      adds its weight's gradient to `weight.grad` in place; an input that several layers read is cast once
    embedding   adds to the gradient's rows of the batch's tokens, without a gradient as large as the vocabulary
    gated MLP   down(act(gate(x)) · up(x)): keeps gate(x) and up(x), and computes the two elementwise products again
    attention   out(attend(rotate(q(x)), rotate(k(x)), v(x))): keeps rotated queries and keys, values, and the attended values;
                keys and values once for all heads that share them
    RMS norm    x / rms(x) · scale: keeps x and one number a token; the MLP or attention that reads it keeps no input

Autograd keeps every intermediate product. Computing the elementwise ones again costs little beside the matrix products, and
saves a third to a half of a layer's memory.

Each layer is a `Candidate`: a `forward` that may replace a module's own. `exchange.py` decides where it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pobench.model.cpu.prefix_attention import attend, attend_backward, parts_under, whole_rows
from pobench.model.products import Arithmetic, add_products, sum_of_products, version
from pobench.model.scratch import scratch_like

Forward = Callable[..., Any]


class Candidate(NamedTuple):
    """A `forward` that may replace a module's own.

    suits: whether it can compute a call; other calls go to the module's own forward. trial_sizes: the module's size → that of
    the trial's small copy, for sizes with a structure (heads × features). trial_inputs: further arguments of a trial's
    call.
    """

    forward: Forward
    suits: Callable[..., bool]
    trial_sizes: Mapping[int, int] = {}
    trial_inputs: Callable[[torch.Generator], dict[str, Any]] = lambda draw: {}


def is_exchanged(module: nn.Module) -> bool:
    """Whether the module computes by a candidate now."""
    forward = getattr(module.__dict__.get("forward"), "__func__", None)
    return getattr(forward, "of_candidate", False)


def untampered(module: nn.Module) -> bool:
    """Whether the module has no hooks, and no replaced forward other than an exchange. Code that reads its weights directly
    would bypass both."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not hooked and ("forward" not in module.__dict__ or is_exchanged(module))


def has_known_children(module: nn.Module) -> bool:
    """Whether every child is an untampered `nn.Linear` without bias (not a subclass), or a leaf without tensors.

    Checked at every call, because an adapter or a hook may have been added since the exchange.
    """
    for child in module._modules.values():
        if child is None:
            continue
        has_tensors = child._parameters or child._buffers or child._modules
        known = child.bias is None if type(child) is nn.Linear else not has_tensors
        if not (known and untampered(child)):
            return False
    return True


# ---------------------------------------------------------------- inputs kept for the backward pass
class NormFactors(NamedTuple):
    """The factors of an RMS norm's output. x: (…, features). inverse_rms: (…, 1). scale: (features,)."""

    x: Tensor
    inverse_rms: Tensor
    scale: Tensor
    offset: float  # of the scale

    def product(self, out: Tensor | None = None) -> Tensor:
        """The norm's output, (…, features). out: where to write it."""
        normal = torch.mul(self.x, self.inverse_rms, out=out)
        return normal.mul_(self.scale + self.offset if self.offset else self.scale)


class KeptInput(NamedTuple):
    """How the backward pass gets an input, (tokens, features) in the type of the product.

    tensors: to save; the input itself, or the factors of the norm that it comes from. restore: computes the input from them,
    into scratch memory. It must hold no tensor itself, because autograd and activation checkpointing could not free that.
    """

    tensors: tuple[Tensor, ...]
    restore: Callable[..., Tensor]


def mark_as_norm(output: Tensor, factors: NormFactors) -> None:
    """Attach the factors of a norm's output to it."""
    output.norm_factors = (factors, version(output))  # type: ignore[attr-defined]


def kept_input(x: Tensor, narrow: Tensor) -> KeptInput:
    """How to keep `x`, whose cast is `narrow`. A norm saves its factors in any case, so its output is restored from them,
    unless it was changed in place since."""
    factors, at_version = getattr(x, "norm_factors", (None, None))
    if factors is None or at_version != version(x):
        return KeptInput((narrow,), _as_it_is)
    return KeptInput(tuple(factors[:3]), partial(_product_again, factors.offset, narrow.dtype))


def _product_again(offset: float, dtype: torch.dtype, *factors: Tensor) -> Tensor:
    x, inverse_rms, scale = factors
    product = NormFactors(x, inverse_rms, scale, offset).product(out=scratch_like("norm", x))
    return product.to(dtype).flatten(0, -2)


def _as_it_is(x: Tensor) -> Tensor:
    return x


# ---------------------------------------------------------------- matrix products
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, arithmetic: Arithmetic) -> Tensor:
        narrow, product_weight = arithmetic.input(x), arithmetic.weight(weight)
        ctx.save_for_backward(narrow, product_weight, weight)
        ctx.arithmetic, ctx.like, ctx.bias = arithmetic, (x.shape, x.dtype), None if bias is None else bias.dtype
        if bias is None:
            y = arithmetic.product(narrow, product_weight)
        else:
            y = torch.addmm(bias.to(narrow.dtype), narrow, product_weight.T)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        narrow, product_weight, weight = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad[:3]
        shape, dtype = ctx.like
        grad = grad.flatten(0, -2)
        return (
            (grad @ product_weight).to(dtype).view(shape) if want_x else None,
            _weight_grad(ctx.arithmetic, weight, grad, narrow) if want_weight else None,
            grad.sum(0).to(ctx.bias) if want_bias else None,
            None,
        )


def _weight_grad(arithmetic: Arithmetic, weight: Tensor, grad: Tensor, x: Tensor | None) -> Tensor | None:
    """The gradient for autograd to add; None if it was added here."""
    assert x is not None
    total = arithmetic.grad(weight)
    if total is None:
        return (grad.T @ x).to(weight.dtype)
    add_products(total, grad.T, x)
    return None


def linear(arithmetic: Arithmetic) -> Candidate:
    """For `nn.Linear`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias, arithmetic)

    return Candidate(forward, suits=lambda self, x: x.ndim > 1)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None, arithmetic: Arithmetic) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding, ctx.arithmetic = padding, arithmetic
        return torch.nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        ids, weight = ctx.saved_tensors
        total = ctx.arithmetic.grad(weight)
        if total is None:
            padding = -1 if ctx.padding is None else ctx.padding
            return torch.ops.aten.embedding_dense_backward(grad, ids, len(weight), padding, False), None, None, None
        ids, grad = ids.flatten(), grad.flatten(0, -2)
        if ctx.padding is not None:
            counts = ids != ctx.padding
            ids, grad = ids[counts], grad[counts]
        total.index_add_(0, ids, grad)
        return None, None, None, None


def embedding(arithmetic: Arithmetic) -> Candidate:
    """For `nn.Embedding`."""

    def forward(self: Any, ids: Tensor) -> Tensor:
        return _Embedding.apply(self.weight, ids, self.padding_idx, arithmetic)

    def suits(self: Any, ids: Tensor) -> bool:
        return self.max_norm is None and not (self.sparse or self.scale_grad_by_freq)

    return Candidate(forward, suits)


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, act: Callable[..., Tensor], arithmetic: Arithmetic
    ) -> Tensor:
        narrow = arithmetic.input(x)
        weights = [arithmetic.weight(w) for w in (gate, up, down)]
        gated, lifted = arithmetic.product(narrow, weights[0]), arithmetic.product(narrow, weights[1])
        saved_input = kept_input(x, narrow)
        ctx.save_for_backward(gated, lifted, *weights, gate, up, down, *saved_input.tensors)
        ctx.act, ctx.arithmetic, ctx.like, ctx.restore = act, arithmetic, (x.shape, x.dtype), saved_input.restore
        middle = torch.mul(act(gated), lifted, out=scratch_like("middle", gated))
        return arithmetic.product(middle, weights[2]).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        gated, lifted, product_gate, product_up, product_down, gate, up, down, *saved_input = ctx.saved_tensors
        shape, dtype = ctx.like
        grad = grad.flatten(0, -2)
        want_x, *want_weights = ctx.needs_input_grad[:4]
        leaf = gated.detach().requires_grad_()
        with torch.enable_grad():
            activated = ctx.act(leaf)
        middle = torch.mul(activated.detach(), lifted, out=scratch_like("middle", gated))
        grad_down = _weight_grad(ctx.arithmetic, down, grad, middle) if want_weights[2] else None
        grad_middle = torch.mm(grad, product_down, out=scratch_like("grad of middle", gated))
        grad_activated = torch.mul(grad_middle, lifted, out=middle)
        (grad_gated,) = torch.autograd.grad(activated, leaf, grad_activated)
        grad_lifted = grad_middle.mul_(activated.detach())
        del activated, leaf
        narrow = ctx.restore(*saved_input) if any(want_weights[:2]) else None
        products = (grad_gated, product_gate), (grad_lifted, product_up)
        return (
            sum_of_products(products, dtype).view(shape) if want_x else None,
            _weight_grad(ctx.arithmetic, gate, grad_gated, narrow) if want_weights[0] else None,
            _weight_grad(ctx.arithmetic, up, grad_lifted, narrow) if want_weights[1] else None,
            grad_down,
            None,
            None,
        )


def gated_mlp(module: nn.Module, arithmetic: Arithmetic) -> Iterator[Candidate]:
    """A candidate, if the module has the parts of a gated MLP."""
    names = ("gate_proj", "up_proj", "down_proj")
    if not all(isinstance(getattr(module, name, None), nn.Linear) for name in names) or not hasattr(module, "act_fn"):
        return

    def forward(self: Any, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name).weight for name in names)
        return _GatedMlp.apply(x, gate, up, down, self.act_fn, arithmetic)

    yield Candidate(forward, suits=lambda self, x: has_known_children(self))


# ---------------------------------------------------------------- attention
TRIED = {"position_ids"}  # further arguments that a trial passes; others have to be None or False


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor,
        head: tuple[int, float],
        arithmetic: Arithmetic,
    ) -> Tensor:
        """x: (rows, width, features). rotation: cosines and sines, (rows, width, features of a head). mask: (rows, 1, width,
        width), added to the scores. head: its number of features, and the factor of scores."""
        narrow = arithmetic.input(x)
        weights = [arithmetic.weight(w) for w in (q, k, v, out)]
        size, scale = head
        query, key, value = (arithmetic.product(narrow, w).view(*x.shape[:-1], -1, size) for w in weights[:3])
        query, key = (_rotated(t, *rotation).to(narrow.dtype) for t in (query, key))
        parts = parts_under(mask) or whole_rows(mask)
        attended = attend(query, key, value, scale, parts)
        saved_input = kept_input(x, narrow)
        ctx.save_for_backward(q, k, v, out, *weights, *rotation, query, key, value, attended, *saved_input.tensors)
        ctx.arithmetic, ctx.like, ctx.restore = arithmetic, (x.shape, x.dtype), saved_input.restore
        ctx.scale, ctx.parts = scale, parts
        return arithmetic.product(attended.flatten(2).flatten(0, 1), weights[3]).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        q, k, v, out, *rest = ctx.saved_tensors
        product_q, product_k, product_v, product_out, cos, sin, query, key, value, attended, *saved_input = rest
        shape, dtype = ctx.like
        want_x, *want_weights = ctx.needs_input_grad[:5]
        grad = grad.flatten(0, -2)
        grad_out = (
            _weight_grad(ctx.arithmetic, out, grad, attended.flatten(2).flatten(0, 1)) if want_weights[3] else None
        )
        grads = attend_backward(
            (grad @ product_out).view(query.shape),
            query,
            key,
            value,
            attended,
            ctx.scale,
            ctx.parts,
        )
        unrotated = [t.to(grad.dtype) for t in (*(_rotated(g, cos, -sin) for g in grads[:2]), grads[2])]
        of_products = [t.flatten(2).flatten(0, 1) for t in unrotated]
        narrow = ctx.restore(*saved_input) if any(want_weights[:3]) else None
        products = list(zip(of_products, (product_q, product_k, product_v), strict=True))
        return (
            sum_of_products(products, dtype).view(shape) if want_x else None,
            *(
                _weight_grad(ctx.arithmetic, w, g, narrow) if want else None
                for w, g, want in zip((q, k, v), of_products, want_weights[:3], strict=True)
            ),
            grad_out,
            *[None] * 4,
        )


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(rows, width, heads, features) fp32. Feature i of a head's left half and feature i of its right half are a pair, rotated
    by an angle. Both halves have the same angles, so negated sines rotate back."""
    cos, (left_sin, right_sin) = cos[:, :, None], sin[:, :, None].chunk(2, -1)
    x = x.to(cos.dtype)
    left, right = x.chunk(2, -1)
    turned = x * cos
    turned_left, turned_right = turned.chunk(2, -1)
    # Not addcmul, which rounds once less than the module's own forward. A model with an adapter takes that forward, and a fresh
    # adapter must not change any bit.
    turned_left.sub_(right * left_sin)
    turned_right.add_(left * right_sin)
    return turned


def attention(module: nn.Module, arithmetic: Arithmetic) -> Iterator[Candidate]:
    """A candidate, if the module has the parts of an attention. It computes calls with a mask to add to the scores."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if not all(isinstance(getattr(module, name, None), nn.Linear) for name in names):
        return
    size, scale = getattr(module, "head_dim", None), getattr(module, "scaling", None)
    if not (isinstance(size, int) and isinstance(scale, float)):
        return

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **further: Any,
    ) -> tuple[Tensor, None]:
        weights = (getattr(self, name).weight for name in names)
        head = self.head_dim, self.scaling
        return _Attention.apply(hidden_states, *weights, position_embeddings, attention_mask, head, arithmetic), None

    def suits(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **further: Any,
    ) -> bool:
        rows, width, _ = hidden_states.shape
        return (
            hidden_states.dtype == self.q_proj.weight.dtype == torch.float32
            and hidden_states.device.type == "cpu"
            and isinstance(attention_mask, Tensor)
            and attention_mask.is_floating_point()
            and attention_mask.shape == (rows, 1, width, width)
            and past_key_values is None
            and all(value is None or value is False or name in TRIED for name, value in further.items())
            and self.config._attn_implementation.endswith("sdpa")
            and has_known_children(self)
        )

    def trial_inputs(draw: torch.Generator) -> dict[str, Any]:
        angle = torch.randn(2, 3, size // 2, generator=draw).repeat(1, 1, 2)
        mask = torch.full((2, 1, 3, 3), torch.finfo(torch.float32).min).triu(1)
        mask[1, 0, 2, 0] = mask[0, 0, 0, 1]  # in one row, a query does not see an earlier key
        return {
            "position_embeddings": (angle.cos(), angle.sin()),
            "attention_mask": mask,
            "position_ids": torch.tensor(
                [[0, 1, 2], [7, 9_000, 100_000]]
            ),  # far enough for a scale by position to show
        }

    queries, keys = (getattr(module, name).out_features for name in ("q_proj", "k_proj"))
    yield Candidate(forward, suits, {queries: size * (queries // keys), keys: size}, trial_inputs)


# ---------------------------------------------------------------- norm
class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        ctx.offset = offset
        factors = NormFactors(x.detach(), inverse, weight.detach(), offset)
        output = factors.product()
        mark_as_norm(output, factors)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, inverse, weight = ctx.saved_tensors
        normal = torch.mul(x, inverse, out=scratch_like("norm", x))
        product = scratch_like("product with the norm", x)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.mul(grad, normal, out=product).flatten(0, -2).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None
        grad_x = grad * (weight + ctx.offset if ctx.offset else weight)
        along = torch.mul(grad_x, normal, out=product).mean(
            -1, keepdim=True
        )  # the norm takes the length of x out, and its gradient too
        return grad_x.sub_(normal.mul_(along)).mul_(inverse), grad_weight, None, None


def rms_norm(module: nn.Module, arithmetic: Arithmetic) -> Iterator[Candidate]:
    """Two candidates for an RMS norm: one scales by the weight, one by the weight plus one."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (type(module).__name__.endswith("RMSNorm") and isinstance(eps, float)):
        return
    if [name for name, _ in module.named_parameters()] != ["weight"]:
        return

    def suits(self: Any, x: Tensor) -> bool:  # classes differ in where they round narrower types
        return x.dtype == self.weight.dtype == torch.float32

    def candidate(offset: float) -> Candidate:
        def forward(self: Any, x: Tensor) -> Tensor:
            own_eps = getattr(self, "variance_epsilon", getattr(self, "eps", eps))
            return _RmsNorm.apply(x, self.weight, own_eps, offset)

        return Candidate(forward, suits)

    yield from (candidate(0.0), candidate(1.0))
