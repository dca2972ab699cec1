"""No process outlives the one that started it: the repeated command would find an orphan at work."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def end_with(parent: int) -> None:
    """End this process as soon as its parent is gone, however that ended. Linux kills it; elsewhere a thread looks.

    parent: its process number, so that one that ended before this call is noticed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def outlive_starter() -> None:
    """Undo `end_with`, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, 0)


def end_with_and_at_signals(parent: int) -> None:
    """The same, in a process that computes for another: a signal to leave ends it, whatever its parent does at one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    end_with(parent)


STARTER = (
    "POBENCH_STARTER"  # holds the number of the process that starts another one, which may end before that can ask
)


@contextlib.contextmanager
def as_starter() -> Iterator[None]:
    """Processes that are started inside know by whom (`STARTER`)."""
    before = os.environ.get(STARTER)
    os.environ[STARTER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(STARTER)
        if before is not None:
            os.environ[STARTER] = before


def watch_starter() -> Callable[[], bool]:
    """What tells whether the process that started this one is gone."""
    above, named = os.getppid(), int(os.environ.get(STARTER, "0"))
    return lambda: os.getppid() != above or (named > 0 and has_ended(named))


def has_ended(process: int) -> bool:
    """Whether there is no such process, or one that nobody has asked how it ended."""
    try:
        if sys.platform == "linux":
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        os.kill(process, 0)
    except (FileNotFoundError, ProcessLookupError):
        return True
    return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)  # any moment is a good one: files appear whole
