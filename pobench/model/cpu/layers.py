"""Layers of a decoder that compute the same numbers and keep less of them for the backward pass.

    linear      adds its weight's gradient where the gradient lies; what is read by several is narrowed once
    embedding   adds to the rows of the tokens that it met, and makes no gradient as large as the vocabulary
    gated MLP   down(act(gate(x)) · up(x)): keeps gate and up; the two products are made again
    attention   out(attend(rotate(q(x)), rotate(k(x)), v(x))): keeps the four, keys and values once a head of their own
    RMS norm    x / rms(x) · scale: keeps x and one number a token; the MLP or attention that reads it does not keep it too

Automatic differentiation keeps every product on the way. To make the elementwise ones again costs little beside the
matrix products, and what a layer keeps falls by a third to a half.

Only the `forward` of a module is exchanged, and that of an attention, an MLP or a norm only where a trial gives its own
value and gradients: an architecture that does something else in a class of the same shape keeps what it has.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pobench.model.cpu.attention import product_type
from pobench.model.cpu.prefix_attention import attend, attend_backward, parts_under, whole_rows

ROWS = 8192  # of a weight whose gradient is made at once where the product is narrower than the gradient
TOLERANCE = 1e-5  # of a trial, relative to the largest value

Forward = Callable[..., Any]


class Normal(NamedTuple):
    """How a norm made its output. kept: its input (…, features), 1 / rms (…, 1), the scale (features,)."""

    kept: tuple[Tensor, Tensor, Tensor]
    offset: float

    def again(self) -> Tensor:
        x, inverse, scale = self.kept
        return (x * inverse).mul_(scale + self.offset if self.offset else scale)


class Recipe(NamedTuple):
    """How an input, (tokens, features) in the type of the product, is had again in the backward pass.

    kept: it itself, or what `Normal` made it from. again: from what autograd gives back of that; it holds no tensor, which
    would stay alive beside those that autograd frees or that checkpointing leaves out.
    """

    kept: tuple[Tensor, ...]
    again: Callable[..., Tensor]


def _made_again(offset: float, dtype: torch.dtype, *kept: Tensor) -> Tensor:
    x, inverse, scale = kept
    return Normal((x, inverse, scale), offset).again().to(dtype).flatten(0, -2)


def _as_it_is(kept: Tensor) -> Tensor:
    return kept


class Arithmetic:
    """What the lean layers of one model share: the type of their products, and where weight gradients go.

    in_place: they are added to those that are there, instead of being handed to autograd to add. Not under a
    data-parallel wrapper, which waits for what autograd hands out.
    """

    def __init__(self) -> None:
        self.in_place = False
        self._narrowed: dict[int, Tensor] | None = None
        self._input: tuple[weakref.ref[Tensor], Tensor] | None = None
        self._norm: tuple[weakref.ref[Tensor], Normal] | None = None

    def grad(self, weight: Tensor) -> Tensor | None:
        """The gradient to add to; None where autograd shall have it."""
        return weight.grad if self.in_place and weight.dtype == torch.float32 else None

    @contextlib.contextmanager
    def unchanged_weights(self) -> Iterator[None]:
        """Within it nobody changes a weight, so that one is narrowed once for all micro-batches. Whoever uses it says so:
        not every optimiser tells a tensor's version counter that it has changed the weight. On a GPU the cast costs
        nothing beside the products, and where weights are spread over processes nobody is to hold them all."""
        self._narrowed = {} if self.in_place else None
        try:
            yield
        finally:
            self._narrowed = None

    def weight(self, weight: Tensor) -> Tensor:
        """The weight in the type of the product."""
        dtype = product_type(weight)
        if self._narrowed is None or weight.dtype == dtype:
            return weight.to(dtype)
        if id(weight) not in self._narrowed:
            self._narrowed[id(weight)] = weight.detach().to(dtype)
        return self._narrowed[id(weight)]

    def remember(self, output: Tensor, normal: Normal) -> None:
        """`output` is what a norm made, and `normal` how."""
        self._norm = (weakref.ref(output), normal)

    def recipe(self, x: Tensor, narrow: Tensor) -> Recipe:
        """What to keep of an input in order to have it again: of the last norm's output, what the norm keeps anyway."""
        if self._norm is not None and self._norm[0]() is x:
            normal = self._norm[1]
            return Recipe(normal.kept, partial(_made_again, normal.offset, narrow.dtype))
        return Recipe((narrow,), _as_it_is)

    def input(self, x: Tensor) -> Tensor:
        """(tokens, features) in the type of the product; queries, keys and values share one cast."""
        dtype = product_type(x)
        if x.dtype == dtype:
            return x.flatten(0, -2)
        if self._input is None or self._input[0]() is not x or self._input[1].dtype != dtype:
            self._input = (weakref.ref(x), x.detach().to(dtype).flatten(0, -2))
        return self._input[1]


def add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, in fp32; a narrower product is made a few rows at a time, not as large as the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
        return
    for at in range(0, len(left), ROWS):
        total[at : at + ROWS] += left[at : at + ROWS] @ right


def sum_of_products(products: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """Σ left @ right, added up in `dtype`."""
    (left, right), *others = products
    total = (left @ right).to(dtype)
    for left, right in others:
        if left.dtype == dtype:
            total.addmm_(left, right)
        else:
            total += left @ right
    return total


def make_lean(body: nn.Module) -> Arithmetic:
    """Exchange the `forward`s below `body` that can be. Layers that are no plain `nn.Linear` (quantised ones, adapters)
    keep theirs, and so does what contains them."""
    arithmetic = Arithmetic()
    agreed: dict[type, Candidate | None] = {
        nn.Linear: Candidate(_linear(arithmetic)),
        nn.Embedding: _embedding(arithmetic),
    }
    for module in body.modules():
        kind = type(module)
        if kind not in agreed:
            candidates = [c for make in (_gated_mlp, _attention, _rms_norm) for c in make(module, arithmetic)]
            agreed[kind] = next((c for c in candidates if _plain(module) and _agrees(module, c)), None)
        candidate = agreed[kind]
        if candidate is not None and _plain(module):
            module.forward = MethodType(candidate.or_own(), module)  # a method, so that a deep copy calls its own
    return arithmetic


class Candidate(NamedTuple):
    """A `forward` that may take the place of a module's own.

    suits: whether it computes a call; what does not suit goes to the module's own. sizes: of a trial's small copy, for
    sizes that are more than a number of features. beside: what a trial's call takes besides its input.
    """

    forward: Forward
    suits: Callable[..., bool] = lambda *given, **named: True
    sizes: Mapping[int, int] = {}
    beside: Callable[[torch.Generator], dict[str, Any]] = lambda draw: {}

    def or_own(self) -> Forward:
        lean, suits = self.forward, self.suits

        def forward(self: Any, *given: Any, **named: Any) -> Any:
            return (lean if suits(self, *given, **named) else type(self).forward)(self, *given, **named)

        return forward


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


def _weight_grad(arithmetic: Arithmetic, weight: Tensor, grad: Tensor, x: Tensor | None) -> Tensor | None:
    """The gradient for autograd to add; None where it was added here."""
    assert x is not None
    total = arithmetic.grad(weight)
    if total is None:
        return (grad.T @ x).to(weight.dtype)
    add_products(total, grad.T, x)
    return None


def _linear(arithmetic: Arithmetic) -> Forward:
    def forward(self: Any, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias, arithmetic)

    return forward


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


def _embedding(arithmetic: Arithmetic) -> Candidate:
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
        gated, lifted = narrow @ weights[0].T, narrow @ weights[1].T
        recipe = arithmetic.recipe(x, narrow)
        ctx.save_for_backward(gated, lifted, *weights, gate, up, down, *recipe.kept)
        ctx.act, ctx.arithmetic, ctx.like, ctx.again = act, arithmetic, (x.shape, x.dtype), recipe.again
        return ((act(gated) * lifted) @ weights[2].T).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        gated, lifted, product_gate, product_up, product_down, gate, up, down, *kept = ctx.saved_tensors
        shape, dtype = ctx.like
        grad = grad.flatten(0, -2)
        want_x, *wanted = ctx.needs_input_grad[:4]
        leaves = gated.detach().requires_grad_(), lifted.detach().requires_grad_()
        with torch.enable_grad():
            middle = ctx.act(leaves[0]) * leaves[1]
        grad_down = _weight_grad(ctx.arithmetic, down, grad, middle.detach()) if wanted[2] else None
        grad_gated, grad_lifted = torch.autograd.grad(middle, leaves, grad @ product_down)
        del middle, leaves
        narrow = ctx.again(*kept) if any(wanted[:2]) else None
        products = (grad_gated, product_gate), (grad_lifted, product_up)
        return (
            sum_of_products(products, dtype).view(shape) if want_x else None,
            _weight_grad(ctx.arithmetic, gate, grad_gated, narrow) if wanted[0] else None,
            _weight_grad(ctx.arithmetic, up, grad_lifted, narrow) if wanted[1] else None,
            grad_down,
            None,
            None,
        )


def _gated_mlp(module: nn.Module, arithmetic: Arithmetic) -> Iterator[Candidate]:
    names = ("gate_proj", "up_proj", "down_proj")
    if not all(isinstance(getattr(module, name, None), nn.Linear) for name in names) or not hasattr(module, "act_fn"):
        return

    def forward(self: Any, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name).weight for name in names)
        return _GatedMlp.apply(x, gate, up, down, self.act_fn, arithmetic)

    # An adapter may have been put around a layer since.
    yield Candidate(forward, suits=lambda self, x: _plain(self))


def _plain(module: nn.Module) -> bool:
    """Its children are linear layers without bias, of no derived class, or have no weights."""
    return all(
        (type(child) is nn.Linear and child.bias is None) or next(child.parameters(), None) is None
        for child in module.children()
    )


# ---------------------------------------------------------------- attention
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
        """x: (rows, width, features). rotation: cosines and sines, (rows, width, features of a head). mask: (rows or 1, 1,
        width, width), added to the scores. head: its features, and what scores are multiplied by."""
        narrow = arithmetic.input(x)
        weights = [arithmetic.weight(w) for w in (q, k, v, out)]
        size, scale = head
        query, key, value = ((narrow @ w.T).view(*x.shape[:-1], -1, size) for w in weights[:3])
        query, key = (_rotated(t, *rotation).to(narrow.dtype) for t in (query, key))
        parts = parts_under(mask) or whole_rows(mask)
        attended = attend(query, key, value, scale, parts)
        recipe = arithmetic.recipe(x, narrow)
        ctx.save_for_backward(q, k, v, out, *weights, *rotation, query, key, value, attended, *recipe.kept)
        ctx.arithmetic, ctx.like, ctx.again = arithmetic, (x.shape, x.dtype), recipe.again
        ctx.scale, ctx.parts = scale, parts
        return (attended.flatten(2).flatten(0, 1) @ weights[3].T).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        q, k, v, out, *rest = ctx.saved_tensors
        product_q, product_k, product_v, product_out, cos, sin, query, key, value, attended, *kept = rest
        shape, dtype = ctx.like
        want_x, *wanted = ctx.needs_input_grad[:5]
        grad = grad.flatten(0, -2)
        grad_out = _weight_grad(ctx.arithmetic, out, grad, attended.flatten(2).flatten(0, 1)) if wanted[3] else None
        grads = attend_backward(
            (grad @ product_out).view(query.shape),
            query,
            key,
            value,
            attended,
            ctx.scale,
            ctx.parts,
        )
        turned = [t.to(grad.dtype) for t in (*(_rotated(g, cos, -sin) for g in grads[:2]), grads[2])]
        of_products = [t.flatten(2).flatten(0, 1) for t in turned]
        narrow = ctx.again(*kept) if any(wanted[:3]) else None
        products = list(zip(of_products, (product_q, product_k, product_v), strict=True))
        return (
            sum_of_products(products, dtype).view(shape) if want_x else None,
            *(
                _weight_grad(ctx.arithmetic, w, g, narrow) if want else None
                for w, g, want in zip((q, k, v), of_products, wanted[:3], strict=True)
            ),
            grad_out,
            *[None] * 4,
        )


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(rows, width, heads, features) fp32: the two halves of a head's features turned, as pairs, by an angle each. Turned
    back by the opposite sines, since both halves have the same angles."""
    cos, (left_sin, right_sin) = cos[:, :, None], sin[:, :, None].chunk(2, -1)
    x = x.to(cos.dtype)
    left, right = x.chunk(2, -1)
    turned = x * cos
    turned_left, turned_right = turned.chunk(2, -1)
    turned_left.sub_(right * left_sin)  # not by addcmul, which rounds once less: an adapter's layers go the long way,
    turned_right.add_(left * right_sin)  # and a fresh one is to leave every bit as it was
    return turned


def _attention(module: nn.Module, arithmetic: Arithmetic) -> Iterator[Candidate]:
    """Where a mask is added to the scores, on a processor."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if not all(isinstance(getattr(module, name, None), nn.Linear) for name in names):
        return
    size, scale = getattr(module, "head_dim", None), getattr(module, "scaling", None)
    if not (isinstance(size, int) and isinstance(scale, float)):
        return

    def forward(
        self: Any, hidden_states: Tensor, position_embeddings: Any = None, attention_mask: Any = None, **how: Any
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
        **how: Any,
    ) -> bool:
        return (
            hidden_states.dtype == self.q_proj.weight.dtype == torch.float32
            and hidden_states.device.type == "cpu"
            and isinstance(attention_mask, Tensor)
            and attention_mask.is_floating_point()
            and past_key_values is None
            and self.config._attn_implementation.endswith("sdpa")
            and _plain(self)
        )

    def beside(draw: torch.Generator) -> dict[str, Any]:
        angle = torch.randn(2, 3, size // 2, generator=draw).repeat(1, 1, 2)
        mask = torch.full((2, 1, 3, 3), torch.finfo(torch.float32).min).triu(1)
        mask[1, 0, 2, 0] = mask[0, 0, 0, 1]  # one row sees less than what came before
        return {"position_embeddings": (angle.cos(), angle.sin()), "attention_mask": mask}

    queries, keys = (getattr(module, name).out_features for name in ("q_proj", "k_proj"))
    yield Candidate(forward, suits, {queries: size * (queries // keys), keys: size}, beside)


# ---------------------------------------------------------------- norm
class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, arithmetic: Arithmetic) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, inverse, weight)
        ctx.offset = offset
        normal = Normal((x.detach(), inverse, weight.detach()), offset)
        output = normal.again()
        arithmetic.remember(output, normal)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, inverse, weight = ctx.saved_tensors
        normal = x * inverse
        grad_weight = (grad * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None, None
        grad_x = grad * (weight + ctx.offset if ctx.offset else weight)
        along = (grad_x * normal).mean(-1, keepdim=True)  # the part that would only lengthen x is lost in the norm
        return grad_x.sub_(normal.mul_(along)).mul_(inverse), grad_weight, None, None, None


def _rms_norm(module: nn.Module, arithmetic: Arithmetic) -> Iterator[Candidate]:
    """Candidates: scaled by the weight, and by one more than it."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not (type(module).__name__.endswith("RMSNorm") and isinstance(eps, float)):
        return
    if [name for name, _ in module.named_parameters()] != ["weight"]:
        return

    def suits(self: Any, x: Tensor) -> bool:  # how it rounds on the way from narrower types is its own affair
        return x.dtype == self.weight.dtype == torch.float32

    def candidate(offset: float) -> Candidate:
        def forward(self: Any, x: Tensor) -> Tensor:
            own_eps = getattr(self, "variance_epsilon", getattr(self, "eps", eps))
            return _RmsNorm.apply(x, self.weight, own_eps, offset, arithmetic)

        return Candidate(forward, suits)

    yield from (candidate(0.0), candidate(1.0))


# ---------------------------------------------------------------- trial
def _agrees(module: nn.Module, candidate: Candidate) -> bool:
    """Whether value and gradients of a small copy of `module`, with random weights, are those of its own forward."""
    draw = torch.Generator().manual_seed(0)
    trial, width = _small(module, draw, dict(candidate.sizes))
    x = torch.randn(2, 3, width, generator=draw)
    slope = torch.randn(2, 3, width, generator=draw)
    beside = candidate.beside(draw)
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        try:
            ours, theirs = (
                _outcome(trial, call, x, beside, slope) for call in (candidate.forward, type(module).forward)
            )
        except (
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
        ):  # it takes other arguments, or gives another shape
            return False
    return all(
        bool((a - b).abs().max() <= TOLERANCE * b.abs().max().clamp(min=1.0)) for a, b in zip(ours, theirs, strict=True)
    )


def _small(module: nn.Module, draw: torch.Generator, sizes: dict[int, int]) -> tuple[nn.Module, int]:
    """A copy of a few features, fp32, on the processor, and its width: distinct sizes stay distinct. sizes: those that are
    given."""
    trial = copy.copy(module)
    trial._modules, trial._parameters = dict(module._modules), dict(module._parameters)
    trial.__dict__.pop("forward", None)

    def small(shape: torch.Size) -> nn.Parameter:
        values = torch.randn([sizes.setdefault(n, 5 + 2 * len(sizes)) for n in shape], generator=draw)
        # Products of a few units: enough for a cap to show, not so much that a softmax has but one term.
        return nn.Parameter(values if values.ndim < 2 else values * 2 / values.shape[-1] ** 0.5)

    for name, parameter in trial._parameters.items():
        trial._parameters[name] = None if parameter is None else small(parameter.shape)
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = small(child.weight.shape)
            trial._modules[name] = layer
    return trial, next(trial.parameters()).shape[-1]


def _outcome(module: nn.Module, call: Forward, x: Tensor, beside: dict[str, Any], slope: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = call(module, x, **beside)
    y = y[0] if isinstance(y, tuple) else y
    return [y.detach(), *torch.autograd.grad(y, [x, *module.parameters()], slope)]
