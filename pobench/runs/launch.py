"""Starting a module as each process of a training job, with the launcher that the devices need."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from pobench.model.device import layout_of_devices


def launch(module: str, file: Path) -> int:
    """Run `python -m module file` as each process of a training job, and return the exit status."""
    processes = str(layout_of_devices()[0])
    if torch.cuda.is_available() or not os.environ.get("POBENCH_PROCESSES"):
        command = ["accelerate.commands.launch", "--num_processes", processes]
    else:  # on CPUs `accelerate launch` needs MPI; torch's own launcher does not
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    return subprocess.call([sys.executable, "-m", *command, "-m", module, str(file)])
