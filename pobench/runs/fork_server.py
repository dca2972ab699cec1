"""Imported by the server that forks the workers, and by nothing else: signals to leave are for the workers, not for it.

SLURM, systemd and `timeout` send SIGTERM to every process of a command. A server that ended by it would take with it what its
workers' exit is known by, and the command would end before they have saved a checkpoint.
"""

from __future__ import annotations

from pobench.training import leaving

leaving.ignore()
