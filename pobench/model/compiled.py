"""torch.compile for the decoder layers: it fuses the elementwise work between matrix products into a few kernels.

The layers share their code, so it is compiled once, for all sizes. The rest of the model is not compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pobench.errors import PobenchError


def compile_layers(model: Any) -> None:
    """Compile the `forward` of every decoder layer, at its first call. Raises PobenchError if there is none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise PobenchError(
            "train.compile: true: this model has no decoder layers that pobench knows; allowed here: false"
        )
    for layer in layers:
        layer.compile(dynamic=True)


def is_compiled(model: Any) -> bool:
    """Whether `compile_layers` was called on it."""
    return any(module._compiled_call_impl is not None for module in model.modules())


@contextlib.contextmanager
def uncompiled(model: Any) -> Iterator[None]:
    """Inside, the layers run uncompiled; afterwards the compiled code is used again."""
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call
