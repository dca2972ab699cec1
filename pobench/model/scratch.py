"""Memory for values that one function makes and uses up, given out again and again.

Fresh memory costs a processor's system a page fault every four kilobytes: for the large tensors between two matrix products,
that takes longer than to compute them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_kept = threading.local()


def scratch(name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor. On a processor its memory is this thread's for `name` and `dtype`, and is given out again at the
    next call with these: the caller must not return it, keep it for a backward pass, or call what asks for the same name."""
    if device.type != "cpu":
        return torch.empty(tuple(shape), dtype=dtype, device=device)  # torch keeps freed memory of a GPU itself
    size, key = math.prod(shape), f"{name} {dtype}"
    memory: Tensor | None = getattr(_kept, key, None)
    if memory is None or memory.numel() < size:
        memory = torch.empty(size, dtype=dtype)
        setattr(_kept, key, memory)
    return memory[:size].view(*shape)


def scratch_like(name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`scratch` of a tensor's shape, of its type unless another is given."""
    return scratch(name, like.shape, dtype or like.dtype, like.device)
