"""Weights in the order in which a processor's bf16 products read them.

oneDNN reorders a plain weight within every product. Where a weight serves many products, one reordering is enough: those of
SmolLM2-135M are a tenth faster with 600 rows, a quarter with 128 and a half with one. The sums have been the same bits wherever
they were compared; `packs` compares those of two layers' sizes, and where one differs nothing is packed. torch has these two
operations for what it compiles; other code may call them as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from pobench.model.device import free_memory

ROWS = 128  # for which oneDNN chooses the order; it serves every number of rows
TRIED = (1, 5, 128, 600)  # rows
SIZES = ((384, 576), (192, 4096))  # (out, in) of a layer
LEAST_FREE = 3  # so many times its bytes must be free for another copy of a model


def pack(weight: Tensor) -> Tensor:
    """(out, in) bf16 → the same in oneDNN's order, for `product`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS)
    return packed


def product(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias. x: (…, in) bf16."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return result


@cache
def packs() -> bool:
    """Whether this machine's torch has packed products, and they are those of plain weights to the bit."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw).bfloat16()

    try:
        with torch.inference_mode():
            plain = nn.functional.linear
            for out, size in SIZES:
                weight, bias, inputs = drawn(out, size), drawn(out), [drawn(rows, size) for rows in TRIED]
                packed = pack(weight)
                if not all(
                    torch.equal(product(x, packed, b), plain(x, weight, b)) for x in inputs for b in (None, bias)
                ):
                    return False
            return True
    except (AttributeError, RuntimeError, TypeError):  # no such operations, or with other arguments
        return False


def fits(size: int) -> bool:
    """Whether the processor's memory has room for a copy of so many bytes."""
    free = free_memory(torch.device("cpu"))
    return free is not None and free >= LEAST_FREE * size


@contextlib.contextmanager
def packed_layers(model: Any) -> Iterator[None]:
    """Inside, a model in bf16 on a processor computes its linear layers with packed weights, where memory suffices. No weight
    may change meanwhile."""
    layers = [module for module in model.modules() if _suits(module)]
    if not layers or not fits(sum(layer.weight.nbytes for layer in layers)) or not packs():
        yield
        return
    try:
        for layer in layers:
            layer.forward = partial(_forward, layer, pack(layer.weight))
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _forward(layer: nn.Linear, packed: Tensor, x: Tensor) -> Tensor:
    if x.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return nn.functional.linear(x, layer.weight, layer.bias)
    return product(x, packed, layer.bias)


def _suits(module: nn.Module) -> bool:
    """A plain linear layer of bf16 weights on a processor, whose forward nobody has replaced."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    return module.weight.device.type == "cpu" and module.weight.dtype == torch.bfloat16
