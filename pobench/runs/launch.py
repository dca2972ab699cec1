"""Starting a module as each process of a training job, with the launcher that the devices need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from pobench.model.device import layout_of_devices
from pobench.runs.pool import share


def processes() -> int:
    """Processes of a training job of this thread."""
    everything = layout_of_devices()[0]
    return share().devices(everything) if torch.cuda.is_available() else everything


def environment() -> dict[str, str]:
    """What keeps a process of this thread to its share of the machine."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return share().environment(torch.cuda.device_count(), cores)


def launch(module: str, file: Path) -> int:
    """Run `python -m module file` as each process of a training job, and return the exit status."""
    if torch.cuda.is_available() or not os.environ.get("POBENCH_PROCESSES"):
        port = (
            ["--main_process_port", "0"] if share().of > 1 else []
        )  # any free one: another job may have the usual one
        command = ["accelerate.commands.launch", "--num_processes", str(processes()), *port]
    else:  # on CPUs `accelerate launch` needs MPI; torch's own launcher does not
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes())]
    return subprocess.call([sys.executable, "-m", *command, "-m", module, str(file)], env=os.environ | environment())
