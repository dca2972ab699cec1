"""The processes of a command, and the signals that one of them is sent."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

MARK = "POBENCH_FAULTS_TRIAL"  # the variable by which a trial's processes are known
FAULTS = [
    ("group", signal.SIGTERM), ("group", signal.SIGINT), ("group", signal.SIGKILL),
    ("parent", signal.SIGTERM), ("parent", signal.SIGKILL),
    ("worker", signal.SIGTERM), ("worker", signal.SIGKILL),
    ("server", signal.SIGTERM), ("server", signal.SIGKILL),
]  # fmt: skip


def processes_of(command: int, mark: str) -> dict[int, str]:
    """Process → "parent", "server", "worker", "launcher" or "rank", of those of a command that live; of other helpers "other".
    mark: the value of `MARK` in their variables."""
    found: dict[int, tuple[str, str, int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, starter, _, session = _stat(path)
            if int(session) == command or f"{MARK}={mark}".encode() in (path / "environ").read_bytes():
                line = (path / "cmdline").read_text() + (path / "comm").read_text()
                found[int(path.name)] = (line, state, int(starter))
    servers = {process for process, (line, _, starter) in found.items() if "forkserver" in line and starter == command}
    kinds = {}
    for process, (line, state, starter) in found.items():
        if state == "Z":
            continue
        if process in servers or starter in servers:
            kinds[process] = "server" if process in servers else "worker"
        else:
            names = {"pobench.runs.processes": "launcher", "pobench.runs.rank": "rank"}
            kinds[process] = next((kind for name, kind in names.items() if name in line), "other")
    return kinds | ({command: "parent"} if command in kinds else {})


def _stat(path: Path) -> list[str]:
    """[state, parent, group, session] of a process."""
    return (path / "stat").read_text().rpartition(")")[2].split()[:4]
