"""When a training saves a checkpoint, and whether its steps wait for that.

Beside the steps a thread writes a copy of weights and moments in the processor's memory, which no step can change. One
checkpoint is on its way at a time. All processes finish it at the same step, and until then the older one stays; an error of
the thread ends the training at that step.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from pobench.files import sync_file
from pobench.model.device import free_memory
from pobench.model.sharding import is_sharded
from pobench.settings.schema import LoopConfig
from pobench.training.checkpoint import NOTHING, Saving, state_bytes

ROOM = 2  # so many times the copy must be free: what else the machine does needs memory, too


class Pace:
    """When a checkpoint is due: `seconds` after the last one, and so seldom that one is on its way for at most `share` of the
    time, as the last one was. seconds: 0 is after every step, whatever it takes."""

    def __init__(self, seconds: float, share: float) -> None:
        self.seconds, self.share, self.took, self.last = seconds, share, 0.0, time.monotonic()
        self._began: float | None = None

    @property
    def begun(self) -> bool:
        """Whether one is on its way."""
        return self._began is not None

    @property
    def due(self) -> bool:
        if self.begun:
            return False
        wait = max(self.seconds, self.took / self.share - self.took)
        return self.seconds == 0 or time.monotonic() - self.last >= wait

    def begin(self) -> None:
        """Of a checkpoint."""
        self._began = time.monotonic()

    def end(self) -> None:
        """It is whole."""
        assert self._began is not None
        self.last = time.monotonic()
        self.took, self._began = self.last - self._began, None


def saves_beside(
    accelerator: Accelerator, policy: nn.Module, config: LoopConfig, moving: Mapping[str, Tensor] = NOTHING
) -> bool:
    """Whether the steps go on while a checkpoint is written. `auto`: on GPUs, where every machine has room for the copy. On a
    processor the thread would take cores and memory from the steps, so nothing is won. All processes call it, and agree."""
    if config.checkpoint_async != "auto":
        return config.checkpoint_async
    if accelerator.device.type == "cpu":
        return False
    copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_sharded(policy) else accelerator.is_local_main_process
    free = free_memory(torch.device("cpu"))
    fits = free is not None and ROOM * copies * state_bytes(policy, moving) <= free
    if accelerator.num_processes == 1:
        return fits
    return bool(accelerator.gather(torch.tensor([fits], device=accelerator.device)).all())


class Saver:
    """The checkpoints of one training. All processes call its methods alike; of whole copies the main process writes its own.

    folder, content, moving, keep: as of `Saving`. beside: whether the steps go on while one is written.
    """

    def __init__(
        self,
        folder: Path,
        content: str,
        policy: nn.Module,
        optimizer: torch.optim.Optimizer,
        pace: Pace,
        *,
        writes: bool,
        beside: bool,
        moving: Mapping[str, Tensor] = NOTHING,
        keep: int = 1,
    ) -> None:
        self.folder, self.content, self.policy, self.optimizer = folder, content, policy, optimizer
        self.pace, self.beside, self.writes = pace, beside, writes or is_sharded(policy)
        self.moving, self.keep = moving, 1 if is_sharded(policy) else keep
        # The thread's exchanges must not meet those of the steps.
        self._group = dist.new_group(backend="gloo") if beside and is_sharded(policy) else None
        self._saving: Saving | None = None

    @property
    def written(self) -> bool:
        """Whether this process has nothing left to write."""
        return self._saving is None or self._saving.written

    def save(self, step: int, facts: Mapping[str, Any], *, wait: bool = False) -> None:
        """Begin a checkpoint behind the one that is on its way; without `beside`, or to wait for it, also finish it."""
        self.finish()
        self.pace.begin()
        if self.writes:
            for rows in self.folder.glob("*.jsonl"):
                sync_file(rows)  # the log of the steps behind which it stands
            beside = self.beside and not wait
            given = (self.folder, step, self.policy, self.optimizer, facts, self.content)
            self._saving = Saving(*given, beside=beside, group=self._group, moving=self.moving, keep=self.keep)
        if wait or not self.beside:
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint on its way is whole, if there is one. Raises what went wrong in its writing."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.finish()
        if self.pace.begun:
            self.pace.end()

    @contextlib.contextmanager
    def finishing(self) -> Iterator[Saver]:
        """While the block runs, checkpoints may be on their way; behind it none is. Where the block raises, a process that
        writes by itself still finishes its own; shares are left as they are, as other processes may be gone."""
        try:
            yield self
        except BaseException:
            if self._saving is not None and not is_sharded(self.policy):
                with contextlib.suppress(Exception):
                    self.finish()
            raise
        self.finish()
