"""Matrix products of a model: their type, and where weight gradients are added up. For CPU and GPU."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pobench.model.packed import pack, packs
from pobench.model.packed import product as packed_product
from pobench.model.scratch import scratch

ROWS = 8192  # rows of a gradient that are computed at once if the product is narrower than the gradient
# Numbers of a narrower product that a processor adds at once. torch widens both sides of a sum first, into fresh memory; so few
# stay in the cache.
ADDED = 2**17


def product_type(x: Tensor) -> torch.dtype:
    """The type that autocast gives to a matrix product of `x`. Autocast does not reach the autograd functions of pobench, so
    they ask here."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def version(x: Tensor) -> int:
    """How often `x` was changed in place. It is always 0 for tensors made in inference mode, which do not count."""
    return 0 if x.is_inference() else x._version


class Arithmetic:
    """Shared by all layers of one model: the type of their products, and where weight gradients go.

    in_place: layers add weight gradients to `weight.grad` themselves, instead of handing them to autograd. It stays false
    under a data-parallel wrapper, which waits for gradients from autograd.
    """

    def __init__(self) -> None:
        self.in_place = False
        self._narrow_weights: dict[int, Tensor] | None = None
        # address and rows of a weight that `weight` gives → the same, packed
        self._packed: dict[tuple[int, int], Tensor] | None = None
        self._packed_bytes: Counter[int] = Counter()  # address of a weight's memory → bytes of it that are packed
        self._last_cast: tuple[weakref.ref[Tensor], int, Tensor] | None = None  # the source, its version, the result

    def grad(self, weight: Tensor) -> Tensor | None:
        """The gradient to add to; None if autograd adds it."""
        return weight.grad if self.in_place and weight.dtype == torch.float32 else None

    @contextlib.contextmanager
    def unchanged_weights(self, *, kept: bool, packed: bool = False) -> Iterator[None]:
        """The caller promises that no weight changes inside, so each is cast once for all micro-batches.

        A promise is needed because not every optimiser raises a tensor's version counter. kept: whether casts are: on a GPU one
        costs little beside the products, and no process should hold all weights of a sharded model. packed: those of layers and
        head are packed too, which pays where more than a few micro-batches follow.
        """
        before = self._narrow_weights, self._packed, self._packed_bytes
        self._narrow_weights, self._packed, self._packed_bytes = {} if kept else None, {} if packed else None, Counter()
        try:
            yield
        finally:
            self._narrow_weights, self._packed, self._packed_bytes = before

    def weight(self, weight: Tensor) -> Tensor:
        """The weight in the type of the product."""
        dtype = product_type(weight)
        if self._narrow_weights is None or weight.dtype == dtype:
            return weight.to(dtype)
        if id(weight) not in self._narrow_weights:
            self._narrow_weights[id(weight)] = weight.detach().to(dtype)
        return self._narrow_weights[id(weight)]

    def product(self, x: Tensor, weight: Tensor) -> Tensor:
        """x @ weight.T. x: (tokens, in). weight: as `weight` gives it, or rows of that."""
        if self._packed is None or weight.dtype != torch.bfloat16 or not packs():
            return x @ weight.T
        key, memory = (weight.data_ptr(), len(weight)), weight.untyped_storage()
        if key not in self._packed:
            # nothing twice: the head may come in tiles of another size
            if self._packed_bytes[memory.data_ptr()] + weight.nbytes > memory.nbytes():
                return x @ weight.T
            self._packed_bytes[memory.data_ptr()] += weight.nbytes
            self._packed[key] = pack(weight)
        return packed_product(x, self._packed[key])

    def input(self, x: Tensor) -> Tensor:
        """(tokens, features) in the type of the product; queries, keys and values share one cast."""
        dtype = product_type(x)
        if x.dtype == dtype:
            return x.flatten(0, -2)
        if self._last_cast is not None:
            source, at_version, cast = self._last_cast
            if source() is x and at_version == version(x) and cast.dtype == dtype:
                return cast
        cast = x.detach().to(dtype).flatten(0, -2)
        self._last_cast = weakref.ref(x), version(x), cast
        return cast


def add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`, in fp32. A narrower product is computed a few rows at a time, so that it is never as large
    as the total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
        return
    for at in range(0, len(left), ROWS):
        rows = left[at : at + ROWS]
        product = scratch("product", (len(rows), right.shape[1]), left.dtype, left.device)
        _add(total[at : at + ROWS], torch.mm(rows, right, out=product))


def _add(total: Tensor, narrow: Tensor) -> None:
    """`total += narrow`, both of (rows, columns)."""
    rows = len(total) if total.device.type != "cpu" else max(1, ADDED // total.shape[1])
    for into, part in zip(total.split(rows), narrow.split(rows), strict=True):
        into.add_(part)


def sum_of_products(products: Sequence[tuple[Tensor, Tensor]], dtype: torch.dtype) -> Tensor:
    """Σ left @ right, added up in `dtype`."""
    (left, right), *others = products
    total = (left @ right).to(dtype)
    for left, right in others:
        add_products(total, left, right)
    return total
