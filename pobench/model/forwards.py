"""Modules whose `forward` was exchanged for another: theirs alone, while the class keeps its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn


def restore(model: nn.Module, exchanged: Callable[[nn.Module], bool]) -> None:
    """Give every module for which `exchanged` holds its own forward back."""
    for module in model.modules():
        if exchanged(module):
            del module.forward


@contextlib.contextmanager
def own_forwards(model: nn.Module, exchanged: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Inside, these modules compute by their own forward; afterwards the exchanges are back."""
    before = [(module, module.__dict__.pop("forward")) for module in model.modules() if exchanged(module)]
    try:
        yield
    finally:
        for module, forward in before:
            module.forward = forward
