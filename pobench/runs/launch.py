"""Starting a module as each process of a training job, with the launcher that the devices need."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pobench.model.device import JOBS, cores, layout_of_devices
from pobench.orphans import STARTER
from pobench.runs.pool import LEAVE, share
from pobench.runs.processes import machines as machines
from pobench.training import leaving

SECONDS_TO_END = 20.0


def process_count() -> int:
    """Processes of a training job of this thread."""
    everything = layout_of_devices()[0]
    return share().devices(everything) if torch.cuda.is_available() else everything


def environment() -> dict[str, str]:
    """What keeps a process of this thread to its share of the machine, and tells it how many there are."""
    own = share()
    return own.environment(torch.cuda.device_count(), cores()) | {JOBS: str(1 if own.alone else own.of)}


def launch(module: str, file: Path) -> int:
    """Run `python -m module file` as each process of a training job, and return the exit status. Where the system asks this
    process to leave, they are asked too (`pool.watch_launcher`), and have the time that the system gives."""
    port = ["--any-port"] if share().of > 1 else []  # another job may have the usual one
    command = [sys.executable, "-m", "pobench.runs.processes", str(process_count()), module, str(file), *port]
    with tempfile.TemporaryDirectory() as temporary, leaving.held():
        leave = Path(temporary) / "leave"
        variables = {LEAVE: str(leave), STARTER: str(os.getpid())}
        process = subprocess.Popen(command, env=os.environ | environment() | variables)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if leaving.asked() is not None:
                    leave.touch()
        except BaseException:
            process.terminate()
            try:
                process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                process.kill()  # its processes end with it
            raise
        return leaving.INTERRUPTED if leaving.asked() is not None and process.returncode else process.returncode
