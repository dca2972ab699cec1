"""Layers of a decoder that compute the same numbers and keep less of them for the backward pass.

    linear      adds its weight's gradient where the gradient lies; what is read by several is narrowed once
    gated MLP   down(act(gate(x)) · up(x)): keeps x, gate and up; the two products are made again
    RMS norm    x / rms(x) · scale: keeps x and one number a token

Automatic differentiation keeps every product on the way. To make the elementwise ones again costs little beside the
matrix products, and what a layer keeps falls by a quarter to a third.

Only the `forward` of a module is exchanged, and that of an MLP or a norm only where a trial gives its own value and
gradients: an architecture that does something else in a class of the same shape keeps what it has.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 8192  # of a weight whose gradient is made at once where the product is narrower than the gradient
TOLERANCE = 1e-5  # of a trial, relative to the largest value

Forward = Callable[[Any, Tensor], Tensor]


class Arithmetic:
    """What the lean layers of one model share: the type of their products, and where weight gradients go.

    in_place: they are added to those that are there, instead of being handed to autograd to add. Not under a
    data-parallel wrapper, which waits for what autograd hands out.
    """

    def __init__(self) -> None:
        self.in_place = False
        self._input: tuple[weakref.ref[Tensor], Tensor] | None = None

    def grad(self, weight: Tensor) -> Tensor | None:
        """The gradient to add to; None where autograd shall have it."""
        return weight.grad if self.in_place and weight.dtype == torch.float32 else None

    def weight(self, weight: Tensor) -> Tensor:
        """The weight in the type of the product. Never kept from one pass to the next: not every optimiser tells a
        tensor's version counter that it has changed the weight."""
        return weight.to(_product_type(weight))

    def input(self, x: Tensor) -> Tensor:
        """(tokens, features) in the type of the product; queries, keys and values share one cast."""
        dtype = _product_type(x)
        if x.dtype == dtype:
            return x.flatten(0, -2)
        if self._input is None or self._input[0]() is not x or self._input[1].dtype != dtype:
            self._input = (weakref.ref(x), x.detach().to(dtype).flatten(0, -2))
        return self._input[1]


def _product_type(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, in fp32; a narrower product is made a few rows at a time, not as large as the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
        return
    for at in range(0, len(left), ROWS):
        total[at : at + ROWS] += left[at : at + ROWS] @ right


def make_lean(body: nn.Module) -> Arithmetic:
    """Exchange the `forward`s below `body` that can be. Layers that are no plain `nn.Linear` (quantised ones, adapters)
    keep theirs, and so does what contains them."""
    arithmetic = Arithmetic()
    agreed: dict[type, Forward | None] = {}
    inside: set[nn.Module] = set()
    for module in body.modules():
        if module in inside:
            continue
        kind = type(module)
        if kind is nn.Linear:
            forward: Forward | None = _linear(arithmetic)
        else:
            if kind not in agreed:
                candidates = [*_gated_mlp(module, arithmetic), *_rms_norm(module)]
                agreed[kind] = next((f for f in candidates if _agrees(module, f)), None)
            forward = agreed[kind] if _plain(module) else None
        if forward is not None:
            module.forward = MethodType(forward, module)  # a method, so that a deep copy calls its own
            inside |= set(module.modules())
    return arithmetic


# ---------------------------------------------------------------- matrix products


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, arithmetic: Arithmetic) -> Tensor:
        narrow, product_weight = arithmetic.input(x), arithmetic.weight(weight)
        ctx.save_for_backward(narrow, product_weight, weight)
        ctx.arithmetic, ctx.like, ctx.bias = arithmetic, (x.shape, x.dtype), None if bias is None else bias.dtype
        y = narrow @ product_weight.T if bias is None else torch.addmm(bias.to(narrow.dtype), narrow, product_weight.T)
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


def _weight_grad(arithmetic: Arithmetic, weight: Tensor, grad: Tensor, x: Tensor) -> Tensor | None:
    """The gradient for autograd to add; None where it was added here."""
    total = arithmetic.grad(weight)
    if total is None:
        return (grad.T @ x).to(weight.dtype)
    add_products(total, grad.T, x)
    return None


def _linear(arithmetic: Arithmetic) -> Forward:
    def forward(self: Any, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias, arithmetic)

    return forward


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, act: Callable[..., Tensor], arithmetic: Arithmetic
    ) -> Tensor:
        narrow = arithmetic.input(x)
        weights = [arithmetic.weight(w) for w in (gate, up, down)]
        gated, lifted = narrow @ weights[0].T, narrow @ weights[1].T
        ctx.save_for_backward(narrow, gated, lifted, *weights, gate, up, down)
        ctx.act, ctx.arithmetic, ctx.like = act, arithmetic, (x.shape, x.dtype)
        return ((act(gated) * lifted) @ weights[2].T).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        narrow, gated, lifted, *weights = ctx.saved_tensors
        product_gate, product_up, product_down, gate, up, down = weights
        shape, dtype = ctx.like
        grad = grad.flatten(0, -2)
        want_x, *wanted = ctx.needs_input_grad[:4]
        leaves = gated.detach().requires_grad_(), lifted.detach().requires_grad_()
        with torch.enable_grad():
            middle = ctx.act(leaves[0]) * leaves[1]
        grad_down = _weight_grad(ctx.arithmetic, down, grad, middle.detach()) if wanted[2] else None
        grad_gated, grad_lifted = torch.autograd.grad(middle, leaves, grad @ product_down)
        del middle, leaves
        grad_x = None
        if want_x:
            grad_x = (grad_gated @ product_gate).to(dtype)
            if grad_lifted.dtype == dtype:
                grad_x.addmm_(grad_lifted, product_up)
            else:
                grad_x += grad_lifted @ product_up
            grad_x = grad_x.view(shape)
        return (
            grad_x,
            _weight_grad(ctx.arithmetic, gate, grad_gated, narrow) if wanted[0] else None,
            _weight_grad(ctx.arithmetic, up, grad_lifted, narrow) if wanted[1] else None,
            grad_down,
            None,
            None,
        )


def _gated_mlp(module: nn.Module, arithmetic: Arithmetic) -> Iterator[Forward]:
    names = ("gate_proj", "up_proj", "down_proj")
    if not all(isinstance(getattr(module, name, None), nn.Linear) for name in names) or not hasattr(module, "act_fn"):
        return

    def forward(self: Any, x: Tensor) -> Tensor:
        if not _plain(self):  # an adapter has been put around a layer since
            return type(self).forward(self, x)
        gate, up, down = (getattr(self, name).weight for name in names)
        return _GatedMlp.apply(x, gate, up, down, self.act_fn, arithmetic)

    yield forward


def _plain(module: nn.Module) -> bool:
    """Its children are linear layers without bias, of no derived class, or have no weights."""
    return all(
        (type(child) is nn.Linear and child.bias is None) or next(child.parameters(), None) is None
        for child in module.children()
    )


# ---------------------------------------------------------------- norm


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        ctx.offset = offset
        return (x * inverse).mul_(weight + offset if offset else weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, inverse, weight = ctx.saved_tensors
        normal = x * inverse
        grad_weight = (grad * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None
        grad_x = grad * (weight + ctx.offset if ctx.offset else weight)
        along = (grad_x * normal).mean(-1, keepdim=True)  # the part that would only lengthen x is lost in the norm
        return grad_x.sub_(normal.mul_(along)).mul_(inverse), grad_weight, None, None


def _rms_norm(module: nn.Module) -> Iterator[Forward]:
    """Candidates: scaled by the weight, and by one more than it."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (type(module).__name__.endswith("RMSNorm") and isinstance(eps, float)):
        return
    if [name for name, _ in module.named_parameters()] != ["weight"]:
        return

    def candidate(offset: float) -> Forward:
        def forward(self: Any, x: Tensor) -> Tensor:
            if x.dtype != torch.float32 or self.weight.dtype != torch.float32:
                return type(self).forward(self, x)  # how it rounds on the way is its own affair
            return _RmsNorm.apply(x, self.weight, getattr(self, "variance_epsilon", getattr(self, "eps", eps)), offset)

        return forward

    yield from (candidate(0.0), candidate(1.0))


# ---------------------------------------------------------------- trial


def _agrees(module: nn.Module, forward: Forward) -> bool:
    """Whether value and gradients of a small copy of `module`, with random weights, are those of its own forward."""
    if not _plain(module):
        return False
    draw = torch.Generator().manual_seed(0)
    trial, width = _small(module, draw)
    x = torch.randn(2, 3, width, generator=draw)
    slope = torch.randn(2, 3, width, generator=draw)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        try:
            ours, theirs = (_outcome(trial, call, x, slope) for call in (forward, type(module).forward))
        except (TypeError, ValueError, RuntimeError):  # it takes other arguments, or gives another shape
            return False
    return all(
        bool((a - b).abs().max() <= TOLERANCE * b.abs().max().clamp(min=1.0)) for a, b in zip(ours, theirs, strict=True)
    )


def _small(module: nn.Module, draw: torch.Generator) -> tuple[nn.Module, int]:
    """A copy of a few features, fp32, on the processor, and its width: distinct sizes stay distinct."""
    trial = copy.copy(module)
    trial._modules, trial._parameters = dict(module._modules), dict(module._parameters)
    trial.__dict__.pop("forward", None)
    sizes: dict[int, int] = {}

    def small(shape: torch.Size) -> nn.Parameter:
        return nn.Parameter(torch.randn([sizes.setdefault(n, 5 + 2 * len(sizes)) for n in shape], generator=draw))

    for name, parameter in trial._parameters.items():
        trial._parameters[name] = None if parameter is None else small(parameter.shape)
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = small(child.weight.shape)
            trial._modules[name] = layer
    return trial, next(trial.parameters()).shape[-1]


def _outcome(module: nn.Module, call: Forward, x: Tensor, slope: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = call(module, x)
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], slope)]
