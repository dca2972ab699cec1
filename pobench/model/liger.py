"""Liger's kernels for norms and gated MLPs, on a GPU: `model.kernels: liger`, with the package `liger-kernel`.

They replace the forward of a model's own modules, which keep their weights. Its rotary positions and its losses replace
functions of transformers for the whole process, and are not taken; the head is pobench's own. A model that answers or judges
computes by its own layers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pobench.errors import PobenchError
from pobench.model.forwards import own_forwards, restore

NAME = "liger"
PACKAGE = "liger_kernel"


def missing(kernels: str, compiled: bool) -> list[str]:
    """What speaks against them here, one line each; [] for `none`. compiled: whether layers are compiled."""
    if kernels != NAME:
        return []
    faults = []
    if not torch.cuda.is_available():
        faults.append(f"model.kernels: {NAME} needs a GPU, and there is none; allowed here: none")
    elif importlib.util.find_spec(PACKAGE) is None:
        faults.append(f"model.kernels: {NAME}: liger-kernel is not installed; pip install 'pobench[liger]'")
    if compiled:
        faults.append(f"train.compile: it compiles the layers that {NAME} replaces; allowed here: false")
    return faults


def use_kernels(model: Any, kernels: str) -> None:
    """Let the model's norms and MLPs compute by the kernels that `model.kernels` names. Raises PobenchError for a model for
    which there are none."""
    if kernels == NAME:
        use_liger(model)


def use_liger(model: Any) -> None:
    """Replace the forward of the norms and MLPs. Raises PobenchError for an architecture that the package does not know."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance as replace

    with _same_classes(model):
        replace(model=model, rope=False, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=True)
    if not takes_liger(model):
        kind = model.config.model_type
        raise PobenchError(f"model.kernels: liger-kernel has none for {kind!r}, this model's kind; allowed here: none")


def takes_liger(model: nn.Module) -> bool:
    """Whether any module computes by its kernels now."""
    return any(map(_is_replaced, model.modules()))


def drop_liger(model: nn.Module) -> None:
    """Give the modules their own forward back."""
    restore(model, _is_replaced)


def without_liger(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, the modules compute by their own forward."""
    return own_forwards(model, _is_replaced)


def _is_replaced(module: nn.Module) -> bool:
    forward = getattr(module.__dict__.get("forward"), "__func__", None)
    return getattr(forward, "__module__", "").partition(".")[0] == PACKAGE


@contextlib.contextmanager
def _same_classes(model: Any) -> Iterator[None]:
    """Undo what happens to the names of the model's code: a model that is made later would be of the package's classes."""
    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    try:
        yield
    finally:
        names.update(before)
