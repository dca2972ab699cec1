"""Imported by the server that forks the workers, before all else: signals to leave are for the workers, not for it.

SLURM, systemd and `timeout` send SIGTERM to every process of a command. A server that ended by it would take with it what its
workers' exit is known by, and the command would end before they have saved a checkpoint. They are blocked, not ignored, so that
a worker inherits that, and what is sent to it before it listens is kept for it.
"""

from __future__ import annotations

import os
import sys

from pobench.orphans import STARTER, end_with
from pobench.training import leaving

SERVER = os.getpid()  # so that a child knows whether it has ended meanwhile
leaving.block()
if sys.platform == "linux":
    end_with(int(os.environ.get(STARTER) or os.getppid()))  # until `fork_server_ready`: the other imports take seconds
