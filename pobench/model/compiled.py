"""torch.compile, layer by layer: elementwise work between the matrix products becomes a few fused kernels.

The layers of a decoder share their code, so it is compiled once, for all sizes; the rest of the model stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pobench.errors import PobenchError


def compile_layers(model: Any) -> None:
    """Compile the `forward` of every decoder layer, at its first call. Raises PobenchError where none is found."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise PobenchError("train.compile: true: the layers of this model are not known; allowed here: false")
    for layer in layers:
        layer.compile(dynamic=True)


def is_compiled(model: Any) -> bool:
    """Whether `compile_layers` was called on it."""
    return any(module._compiled_call_impl is not None for module in model.modules())


@contextlib.contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Inside, the layers run as they are written; afterwards what was compiled is used again."""
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
