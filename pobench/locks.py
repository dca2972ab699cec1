"""Locks that keep other commands out, on every file system that machines share.

A lock is a file that its holder creates exclusively (no `flock`, which network file systems treat in their own ways). It
names the holder's host and process, and the holder touches it every `SECONDS / 3`. A holder that is gone loses it: one of
this machine at once, one of another machine after `SECONDS` without a sign of life, by the clock of the one that waits. A
holder that was cut off for so long and comes back finds that it lost the lock, and stops.
"""

from __future__ import annotations

import _thread
import contextlib
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from filelock import SoftFileLease, Timeout

from pobench.errors import PobenchError
from pobench.printing import say

SECONDS = 120.0
EMPTY = 5.0  # seconds in which a holder that lives has written its name into its lock


class HeldError(PobenchError):
    """Another command holds the lock. holder: `process 4711 on node7, alive at 21:04:10`."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{str(path)!r} is held by {holder}")
        self.holder = holder


@contextlib.contextmanager
def hold(path: Path, *, wait: bool = False, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` for as long as the block runs. Its folder must be there.

    wait: until it is free. Else raises HeldError where another command holds it: on this machine after `patience` seconds, on
    another one once it has shown that it is alive.
    """
    lease = SoftFileLease(path, lease_duration=SECONDS, thread_local=False, on_compromise=lambda lost: _stop(path))
    _acquire(lease, path, wait, patience)
    try:
        yield
    finally:
        lease.release()


def holder_of(path: Path) -> str | None:
    """Who holds the lock file `path`, in words, without touching it; None where nobody does."""
    owner = SoftFileLease(path, lease_duration=SECONDS).owner
    try:
        seen = time.strftime("%H:%M:%S", time.localtime(path.stat().st_mtime))
    except FileNotFoundError:
        return None
    if owner is None:
        return f"a process that is not named in it, written at {seen}"
    return f"process {owner.pid} on {owner.hostname.partition('?')[0]}, alive at {seen}"


def _acquire(lease: SoftFileLease, path: Path, wait: bool, patience: float) -> None:
    if wait:
        _wait(lease, path)
        return
    try:
        lease.acquire(timeout=patience, poll_interval=0.1)
        return
    except Timeout:
        if _forget_empty(path):
            return _acquire(lease, path, wait, patience)
        holder, before = holder_of(path), _touched(path)
        if holder is None or lease.owner is None or lease.owner.hostname == _this_host():
            raise HeldError(path, holder or "another process") from None
    say(f"{path} is held by {holder}; waiting for a sign that it still works")
    try:
        lease.acquire(timeout=2 * SECONDS, poll_interval=SECONDS / 100, cancel_check=lambda: _touched(path) != before)
    except Timeout:
        raise HeldError(path, holder_of(path) or holder) from None


def _wait(lease: SoftFileLease, path: Path) -> None:
    told = False
    while True:
        try:
            lease.acquire(timeout=SECONDS / 12, poll_interval=0.2)
            return
        except Timeout:
            if not _forget_empty(path) and not told:
                told = True
                say(f"{path} is held by {holder_of(path)}; waiting until it is free")


def _forget_empty(path: Path) -> bool:
    """Remove a lock that stays empty: its holder was killed before it had written its name, and the library takes it for held
    for good. Returns whether the lock may be free."""
    try:
        before = path.stat()
        if before.st_size:
            return False
        time.sleep(EMPTY)
        after = path.stat()
    except FileNotFoundError:
        return True
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (before.st_ino, 0, before.st_mtime_ns):
        return False
    path.unlink(missing_ok=True)
    return True


def _touched(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # it has just been given back
        return None


@cache
def _this_host() -> str:
    """As a lock names it: a container with processes of its own counts as a host."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / "host") as lease:
        owner = lease.owner
    return owner.hostname if owner is not None else ""


def _stop(path: Path) -> None:
    say(f"pobench: the lock {path} was removed, or another command has taken it; this one stops")
    _thread.interrupt_main()
