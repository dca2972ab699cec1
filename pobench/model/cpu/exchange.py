"""Exchange the `forward` of a model's layers for a candidate of `layers.py`, where a trial shows that both agree.

Weights and names stay. Linear layers and embeddings are recognised by their class. An attention, an MLP or a norm is tried: on
a small copy with random weights, the candidate has to give the value and the gradients of the module's own forward. Two
modules share one trial only if everything that a forward may read is equal: class, attributes, configuration, shapes of
weights, and the same for their children. So an instance of a known class that computes something else gets its own trial,
fails it, and keeps its own forward.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from pobench.model.attention import base_of
from pobench.model.cpu.layers import (
    Candidate,
    Forward,
    attention,
    embedding,
    gated_mlp,
    has_known_children,
    is_exchanged,
    linear,
    rms_norm,
)
from pobench.model.forwards import own_forwards, restore
from pobench.model.products import Arithmetic


class Run(NamedTuple):
    """One comparison of a trial. factor: scales the random input. gradients: whether they are compared too. tolerance: relative
    to the largest value."""

    training: bool
    factor: float
    gradients: bool
    tolerance: float


RUNS = (
    Run(training=False, factor=1.0, gradients=True, tolerance=1e-5),
    Run(training=True, factor=1.0, gradients=True, tolerance=1e-5),  # shows dropout
    Run(training=True, factor=1e-3, gradients=True, tolerance=1e-5),  # shows the epsilon of a norm
    # Shows a clamp. A softmax is all but one-hot there, and its gradient has no correct digit.
    Run(training=True, factor=10.0, gradients=False, tolerance=1e-3),
)
KNOWN_BY_CLASS: dict[type, Callable[[Arithmetic], Candidate]] = {nn.Linear: linear, nn.Embedding: embedding}
TRIED = (gated_mlp, attention, rms_norm)

_outcomes: dict[
    Hashable, int | None
] = {}  # this process's trials: description of a module → index of the candidate that agrees, or None


# ---------------------------------------------------------------- exchange
def exchange_layers(body: nn.Module, arithmetic: Arithmetic) -> None:
    """Exchange the forward of every module below `body` for which a candidate agrees; all others get their own back.

    A module whose forward other code has replaced is left alone.
    """
    for module in body.modules():
        if "forward" in module.__dict__ and not is_exchanged(module):
            continue
        known = KNOWN_BY_CLASS.get(type(module))
        candidate = _agreeing(module, arithmetic) if known is None else known(arithmetic)
        if candidate is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = MethodType(_or_own(candidate), module)  # a method, so that a deep copy calls its own


def restore_layers(model: nn.Module) -> None:
    """Give every exchanged module its own forward back."""
    restore(model, is_exchanged)


def own_layers(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, every module computes by its own forward; afterwards the exchanges are back."""
    return own_forwards(model, is_exchanged)


def _or_own(candidate: Candidate) -> Forward:
    """The candidate's forward for the calls that it suits, the module's own for all others."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        suits = candidate.suits(self, *args, **kwargs)
        return (candidate.forward if suits else type(self).forward)(self, *args, **kwargs)

    forward.of_candidate = True  # type: ignore[attr-defined]
    return forward


# ---------------------------------------------------------------- what is tried
class _UnknownValue(Exception):
    """An attribute cannot be compared by its value."""


def _agreeing(module: nn.Module, arithmetic: Arithmetic) -> Candidate | None:
    """The candidate that may replace the module's forward."""
    candidates = [candidate for make in TRIED for candidate in make(module, arithmetic)]
    if not candidates or not has_known_children(module) or _holds_state(module):
        return None
    try:
        key = _described_module(module)
    except (_UnknownValue, RecursionError):  # tried by itself
        return next((c for c in candidates if _agrees(module, c)), None)
    if key not in _outcomes:
        _outcomes[key] = next((i for i, c in enumerate(candidates) if _agrees(module, c)), None)
    index = _outcomes[key]
    return None if index is None else candidates[index]


def _holds_state(module: nn.Module) -> bool:
    """Whether the module holds tensors besides its weights. A trial cannot know their values at a later call."""
    return bool(module._buffers) or any(isinstance(value, Tensor) for value in module.__dict__.values())


_BOOKKEEPING = {*nn.Module().__dict__, "forward"}  # includes `training`: a trial runs both modes
_SCALARS = {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size}


def _described_module(module: nn.Module) -> Hashable:
    """Everything that a forward may read from a module, as a value to compare. Raises _UnknownValue."""
    attributes = {name: value for name, value in module.__dict__.items() if name not in _BOOKKEEPING}
    weights = [(name, None if p is None else (p.shape, p.dtype)) for name, p in module._parameters.items()]
    children = [(name, None if c is None else _described_module(c)) for name, c in module._modules.items()]
    return type(module), type(module).forward, _described(attributes), tuple(weights), tuple(children)


def _described(value: Any) -> Hashable:
    """A value together with its type, so that 1, 1.0 and True differ. Raises _UnknownValue."""
    kind = type(value)
    if kind in _SCALARS:
        return kind, repr(value)
    if kind in (tuple, list):
        return kind, tuple(map(_described, value))
    if kind in (set, frozenset):
        return kind, frozenset(map(_described, value))
    if isinstance(value, PretrainedConfig):
        return kind, _described({name: v for name, v in _without_names(vars(value))})
    if isinstance(value, Mapping):
        return kind, frozenset((_described(name), _described(v)) for name, v in value.items())
    if isinstance(value, type | BuiltinFunctionType) or (isinstance(value, FunctionType) and not value.__closure__):
        return value
    if isinstance(value, nn.Module):
        return _described_module(value)
    raise _UnknownValue(kind)


def _without_names(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A configuration's values, without the model's path, and with the base of its kind of attention: a trial passes no mask of
    pobench's own form, so the base kind computes it."""
    for name, value in config.items():
        if name == "_attn_implementation_internal" and isinstance(value, str):
            yield name, base_of(value)
        elif name != "_name_or_path":
            yield name, value


# ---------------------------------------------------------------- trial
def _agrees(module: nn.Module, candidate: Candidate) -> bool:
    """Whether the candidate gives the value and the gradients of the module's own forward, on a small copy, in evaluation and
    training. The global state of random numbers is unchanged.
    """
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        trial, width = _small_copy(module, draw, dict(candidate.trial_sizes))
        x = torch.randn(2, 3, width, generator=draw)
        slope = torch.randn(2, 3, width, generator=draw)
        further = candidate.trial_inputs(draw)
        for run in RUNS:
            for part in (trial, *trial.children()):
                part.training = run.training
            try:
                results, references = (
                    _outcome(trial, call, run.factor * x, further, slope if run.gradients else None)
                    for call in (candidate.forward, type(module).forward)
                )
            except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError):
                return False  # it takes other arguments, or returns another shape
            if not all(_close(a, b, run.tolerance) for a, b in zip(results, references, strict=True)):
                return False
    return True


def _close(result: Tensor, reference: Tensor, tolerance: float) -> bool:
    return result.shape == reference.shape and bool(
        (result - reference).abs().max() <= tolerance * reference.abs().max().clamp(min=1.0)
    )


def _small_copy(module: nn.Module, draw: torch.Generator, sizes: dict[int, int]) -> tuple[nn.Module, int]:
    """A copy of a few features with random fp32 weights on the processor, and its width. Different sizes stay different.

    sizes: the module's size → the copy's, as far as fixed; others are added.
    """
    trial = copy.copy(module)
    trial._modules = {name: copy.copy(child) for name, child in module._modules.items()}
    trial._parameters = dict(module._parameters)
    trial.__dict__.pop("forward", None)

    def small(shape: torch.Size) -> nn.Parameter:
        values = torch.randn([sizes.setdefault(n, 5 + 2 * len(sizes)) for n in shape], generator=draw)
        # Products of a few units: enough for a cap to show, while a softmax still has more than one term.
        return nn.Parameter(values if values.ndim < 2 else values * 2 / values.shape[-1] ** 0.5)

    for name, parameter in trial._parameters.items():
        trial._parameters[name] = None if parameter is None else small(parameter.shape)
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = small(child.weight.shape)
            trial._modules[name] = layer
    return trial, next(trial.parameters()).shape[-1]


def _outcome(
    module: nn.Module, call: Forward, x: Tensor, further: dict[str, Any], slope: Tensor | None
) -> list[Tensor]:
    """The value; with a slope, also the gradients of `value · slope` by the input and every weight."""
    x = x.clone().requires_grad_()
    y = call(module, x, **further)
    y = y[0] if isinstance(y, tuple) else y
    gradients = () if slope is None else torch.autograd.grad(y, [x, *module.parameters()], slope)
    return [y.detach(), *gradients]
