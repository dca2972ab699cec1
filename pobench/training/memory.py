"""What this process holds and may still take, and from that the size of a micro-batch.

The probe sends the longest pairs through the model once, forward and backward, and measures what that holds beyond
weights and gradients. From then on the choice is arithmetic: as many such rows as fit into a share of what is free, and
activation checkpointing only where not even one does. Neither changes a result beyond fp32 rounding.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from pobench.model.device import free_memory
from pobench.model.layouts import Batch, Layout
from pobench.settings.schema import MICRO_TOKENS, LoopConfig
from pobench.types import Group

SHARE = 0.8  # of the free memory that a micro-batch may take; the rest is for what a probe cannot see
# No more tokens than this in a micro-batch, however much is free: a processor's caches are left behind earlier, and a GPU
# has enough to multiply.
MOST_TOKENS = {"cpu": MICRO_TOKENS, "cuda": 32_768}
SECONDS_BETWEEN_SAMPLES = 0.001
GIB = 1024**3
KERNELS = 64  # twice what one micro-batch multiplies: all layers have the same few shapes
_M_MMAP_THRESHOLD = -3  # as glibc's malloc.h has it


class Choice(NamedTuple):
    """How a step is cut. reason: one sentence for the record."""

    micro_tokens: int
    gradient_checkpointing: bool
    reason: str


# ---------------------------------------------------------------- what is held, and what is free
def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has held (GPU memory where training runs on one)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def keep_large_tensors_apart() -> None:
    """Let every tensor of a megabyte and more have pages of its own, which go back to the system when it is freed.

    glibc moves that border up to 32 MB by what it sees freed; activations, ever others, then tear its heap into holes.
    """
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, 2**20)


def keep_few_kernels() -> None:
    """Let no more than `KERNELS` compiled kernels of narrow products be kept. To be called before the first such product.

    oneDNN compiles one for every shape (half a millisecond, about a megabyte), and PyTorch holds a thousand: with
    micro-batches of ever other shapes, memory grows for hundreds of steps. Who has set the variables keeps them.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))


def give_back_freed_memory() -> None:
    """Return to the system what activations of ever other shapes have left in holes of glibc's heap."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def held_by(work: Callable[[], None], device: torch.device) -> int:
    """Bytes that `work` held at its peak beyond what was held before; at least 1.

    On a CPU the resident size is sampled every millisecond: the system's own high-water mark may stem from earlier.
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
) -> Choice:
    """What `auto` in micro_tokens and gradient_checkpointing becomes, by a probe of the longest groups.

    step: forward and backward of one batch. checkpointing: switches it on or off; left as the choice says. later: bytes
    that training will take and the probe does not (the optimiser's moments).
    """

    def tokens(batch_of: Sequence[Group]) -> int:
        return layout.collate(batch_of, window).input_ids.numel()

    longest = sorted(groups, key=lambda g: -g.tokens)
    fixed = None if config.micro_tokens == "auto" else config.micro_tokens
    asked = config.gradient_checkpointing
    unit = [longest[i] for i in layout.plan(longest, fixed or 1)[0]]
    width = tokens(unit)
    quarter = [Group(g.prompt[: _quarter(g.prompt)], tuple(r[: _quarter(r)] for r in g.responses)) for g in unit]

    def cost(batch_of: Sequence[Group]) -> float:
        batch = layout.collate(batch_of, window).to(device)
        try:
            return held_by(lambda: step(batch), device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return math.inf

    checkpointing(asked is True)
    cost(quarter)  # the first pass also loads kernels and touches the gradients
    free = free_memory(device)
    if free is None:
        checkpointing(asked is True)
        return Choice(fixed or MICRO_TOKENS, asked is True, "this system does not say how much memory is free")
    allowed = SHARE * max(0, free - later)
    need, on = math.inf, False
    for on in (False, True) if asked == "auto" else (bool(asked),):
        checkpointing(on)
        # A process that takes too much is killed, not told: what a quarter of the length forbids is not tried.
        forecast = cost(quarter) * width / tokens(quarter)
        need = forecast if forecast > allowed else cost(unit)
        if need <= allowed:
            break
    rows = max(1, int(allowed // need)) if fixed is None else 1
    rows = 1 << (rows.bit_length() - 1)  # a power of two, so that a little more or less free memory changes nothing
    size = fixed or min(rows * width, max(MOST_TOKENS.get(device.type, MICRO_TOKENS), width))
    return Choice(size, on, _reason(need, width, allowed, free, on, asked == "auto"))


def _quarter(tokens: Sequence[int]) -> int:
    return max(1, len(tokens) // 4)


def _reason(need: float, width: int, allowed: float, free: int, on: bool, was_asked: bool) -> str:
    def size(value: float) -> str:
        return "more than fits" if math.isinf(value) else f"{value / GIB:.2g} GiB"

    text = f"{width} tokens of the longest pairs take {size(need)}"
    if on:
        text += " with checkpointing" + (", and more than is allowed without" if was_asked else "")
    text += f"; allowed: {SHARE:.0%} of what is left of {size(free)} after the optimiser's moments, {size(allowed)}"
    return text + ("; it may not fit" if need > allowed else "")
