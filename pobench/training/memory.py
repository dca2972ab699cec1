"""Memory in use, free memory, and the size of a micro-batch that fits.

A probe sends the longest rows through the model once, forward and backward, and measures how much memory that takes beyond
weights and gradients. A micro-batch then gets as many such rows as fit into a share of the free memory. Activation
checkpointing is switched on only if not even one row fits. Neither changes a result beyond fp32 rounding.
"""

from __future__ import annotations

import contextlib
import ctypes
import heapq
import math
import os
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pobench.model.device import free_memory
from pobench.model.layouts import Batch, Layout
from pobench.printing import size
from pobench.settings.schema import MICRO_TOKENS, LoopConfig
from pobench.types import Group

SHARE = 0.8  # of the free memory, for a micro-batch; the rest is for what a probe cannot see
# The most tokens of a micro-batch, however much memory is free. More would overflow a processor's caches, and would not
# make a GPU any faster.
MOST_TOKENS = {"cpu": MICRO_TOKENS, "cuda": 32_768}
PROBED = 4096  # groups that are held to choose the longest rows of; the others are read and dropped
LARGEST = 16  # of them, by tokens without pads, that are laid out to find the largest
SECONDS_BETWEEN_SAMPLES = 0.001
KERNELS = 64  # twice the shapes of products in one micro-batch; all layers share them
_M_MMAP_THRESHOLD = -3  # its value in glibc's malloc.h


class Choice(NamedTuple):
    """The size of micro-batches, and activation checkpointing. reason: one sentence for the record."""

    micro_tokens: int
    gradient_checkpointing: bool
    reason: str


def checkpoint_activations(model: Any, on: bool) -> None:
    """Compute a layer's activations again in the backward pass instead of keeping them, or keep them again."""
    # transformers has renamed both methods, and older versions have the older names alone
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()


# ---------------------------------------------------------------- memory in use, and free
def peak_memory(device: torch.device) -> int:
    """The largest number of bytes that this process has held; of GPU memory if `device` is a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def keep_large_tensors_apart() -> None:
    """Give every tensor of a megabyte or more its own pages, which go back to the system when it is freed.

    By itself glibc raises this threshold to as much as 32 MB, and activations of changing shapes then fragment its heap.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**20)


def keep_few_kernels() -> None:
    """Limit the cache of compiled bf16 kernels to `KERNELS`. Call it before the first bf16 product.

    oneDNN compiles one kernel for every shape (half a millisecond, about a megabyte), and PyTorch keeps a thousand of them:
    with micro-batches of changing shapes, memory grows for hundreds of steps. Variables that are set already stay.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


def give_back_freed_memory() -> None:
    """Return glibc's free memory to the system: activations of changing shapes leave much of it in a fragmented heap."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident() -> int:
    """Resident bytes of this process now; 0 if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def held_by(work: Callable[[], None], device: torch.device) -> int:
    """Bytes that `work` takes at its peak, beyond those held before; at least 1.

    On a CPU the resident size is sampled every millisecond, because the system's high-water mark may be older than `work`.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return max(1, torch.cuda.max_memory_allocated(device) - before)
    give_back_freed_memory()
    before = most = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(SECONDS_BETWEEN_SAMPLES):
            most = max(most, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        work()
        most = max(most, _resident())
    finally:
        done.set()
        watcher.join()
    return max(1, most - before)


# ---------------------------------------------------------------- the choice
def choose(
    config: LoopConfig,
    groups: Sequence[Group],
    layout: Layout,
    window: int | None,
    device: torch.device,
    step: Callable[[Batch], None],
    checkpointing: Callable[[bool], None],
    later: int,
    most: Callable[[float], float] | None = None,
) -> Choice:
    """Choose micro_tokens and gradient_checkpointing where they are `auto`, by a probe of the longest groups.

    step: runs forward and backward of one batch. checkpointing: switches activation checkpointing; it is left as chosen.
    later: bytes that training takes and the probe does not (the optimiser's moments). most: the largest of all processes'
    values, where they can only step together; all then measure, decide and run out of memory alike. None: each by itself.
    """

    together = most or (lambda value: value)

    def tokens(batch_of: Sequence[Group]) -> int:
        return layout.collate(batch_of, window).input_ids.numel()

    longest = heapq.nlargest(PROBED, groups, key=lambda g: g.tokens)
    fixed = None if config.micro_tokens == "auto" else config.micro_tokens
    setting = config.gradient_checkpointing
    unit = [longest[i] for i in layout.plan(longest, fixed or 1)[0]]
    if fixed is None:  # of padded rows, a group of more but shorter ones may be larger
        unit = max([unit, *([g] for g in heapq.nlargest(LARGEST, longest, key=layout.tokens))], key=tokens)
    width = tokens(unit)
    quarter = [Group(g.prompt[: _quarter(g.prompt)], tuple(r[: _quarter(r)] for r in g.responses)) for g in unit]

    def cost(batch_of: Sequence[Group]) -> float:
        batch = layout.collate(batch_of, window).to(device)
        try:
            return together(held_by(lambda: step(batch), device))
        except torch.OutOfMemoryError:
            if most is not None:  # the others wait for this process, whose end they learn
                raise
            torch.cuda.empty_cache()
            return math.inf

    checkpointing(setting is True)
    cost(quarter)  # the first pass also loads kernels and touches the gradients
    free = free_memory(device)
    free = None if free is None else -int(together(-free))
    if free is None:
        checkpointing(setting is True)
        return Choice(fixed or MICRO_TOKENS, setting is True, "this system does not tell how much memory is free")
    allowed = SHARE * max(0, free - together(later))
    need, on = math.inf, False
    for on in (False, True) if setting == "auto" else (bool(setting),):
        checkpointing(on)
        # The system kills a process that takes too much, so a forecast from a quarter of the length comes first.
        forecast = cost(quarter) * width / tokens(quarter)
        need = forecast if forecast > allowed else cost(unit)
        if need <= allowed:
            break
    rows = max(1, int(allowed // need)) if fixed is None else 1
    rows = 1 << (rows.bit_length() - 1)  # a power of two, so that a little more or less free memory changes nothing
    size = fixed or min(rows * width, max(MOST_TOKENS.get(device.type, MICRO_TOKENS), width))
    if fixed is None and layout.root(longest):
        # Under a common beginning more of a micro-batch's tokens are responses', whose states and logits take more.
        while size > width and cost([longest[i] for i in layout.plan(longest, size)[0]]) > allowed:
            size //= 2
    return Choice(size, on, _reason(need, width, allowed, free, on, setting == "auto"))


def _quarter(tokens: Sequence[int]) -> int:
    return max(1, len(tokens) // 4)


def _reason(need: float, width: int, allowed: float, free: int, on: bool, automatic: bool) -> str:
    def amount(value: float) -> str:
        return "more than fits" if math.isinf(value) else size(value)

    text = f"{width} tokens of the longest rows take {amount(need)}"
    if on:
        text += " with checkpointing" + (", and more than is allowed without" if automatic else "")
    text += f"; allowed: {SHARE:.0%} of what is left of {amount(free)} after the optimiser's moments, {amount(allowed)}"
    return text + ("; it may not fit" if need > allowed else "")
