"""Starting a module as each process of a training job, with the launcher that the devices need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from pobench.model.device import layout_of_devices
from pobench.runs.pool import share
from pobench.runs.processes import SECONDS_TO_LEAVE

SECONDS_TO_END = SECONDS_TO_LEAVE + 30  # of the launcher


def process_count() -> int:
    """Processes of a training job of this thread."""
    everything = layout_of_devices()[0]
    return share().devices(everything) if torch.cuda.is_available() else everything


def environment() -> dict[str, str]:
    """What keeps a process of this thread to its share of the machine."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return share().environment(torch.cuda.device_count(), cores)


def launch(module: str, file: Path) -> int:
    """Run `python -m module file` as each process of a training job, and return the exit status."""
    port = ["--any-port"] if share().of > 1 else []  # another job may have the usual one
    command = [sys.executable, "-m", "pobench.runs.processes", str(process_count()), module, str(file), *port]
    child = subprocess.Popen(command, env=os.environ | environment())
    try:
        return child.wait()
    except (
        BaseException
    ):  # the processes have sessions of their own, so a signal from the terminal reaches the launcher alone
        child.terminate()
        try:
            child.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            child.kill()  # they end with it
        raise
