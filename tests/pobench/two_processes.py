"""Processes of a test's own function, forked, so that none imports the libraries again. A hang ends by a time-out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

SECONDS = 600  # a test that waits for ever has failed; a machine that is busy has not


def in_two_processes(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)` in two processes that torch.distributed connects. Raises what one of them raises."""
    in_processes(2, work, *arguments)


def in_processes(count: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)` in so many processes that torch.distributed connects. Raises what one of them raises."""
    method = "spawn" if torch.cuda.is_available() else "fork"  # CUDA does not survive a fork
    with tempfile.TemporaryDirectory() as temporary:
        called = (count, Path(temporary) / "rendezvous", work, arguments)
        context = torch.multiprocessing.start_processes(_process, called, nprocs=count, join=False, start_method=method)
        if not any(context.join(SECONDS) for _ in range(count)):  # returns as soon as one more process has ended
            for process in context.processes:
                process.kill()
            pytest.fail(f"{count} processes did not end within {SECONDS} seconds")


def _process(rank: int, count: int, rendezvous: Path, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()  # the test may have been one process before
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=count)
    work(*arguments)
    torch.distributed.destroy_process_group()
