"""Leaving when the system asks: SIGTERM, SIGINT (Ctrl-C), or SIGUSR2, by which SLURM warns a job before its time is over.

A process leaves at once, except in training: there it finishes the step, saves a checkpoint and leaves. Either way what is
finished stays, and the same job goes on from there. A second Ctrl-C ends the step too, and the last checkpoint stands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
GRACE = "POBENCH_GRACE_SECONDS"  # set where the scheduler's time between its signal and the end of a job is known
AGAIN = 2.0  # seconds after which another SIGINT is another Ctrl-C: a launcher hands the first one on


class Leave(KeyboardInterrupt):
    """The system has asked this process to end."""


class _State:
    listening = False
    asked: int | None = None
    since = 0.0
    held = False


def ignore() -> None:
    """Let the signals do nothing in this process, and in those that it forks until they `heed` them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def heed() -> None:
    """Undo `ignore`: the signals end this process, or raise Leave while it is `listening`."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def asked() -> int | None:
    """The signal that asked this process to leave, while it listens; None where none did."""
    return _State.asked


def time_left(grace: float) -> float:
    """Seconds until the system ends this process, which it has asked to leave. grace: how long it waits, where the scheduler's
    own time is not known."""
    return float(os.environ.get(GRACE) or grace) - (time.monotonic() - _State.since)


def leave_if_asked() -> None:
    """Raises Leave."""
    if _State.asked is not None:
        raise Leave


def hold() -> None:
    """From here on a signal interrupts nothing; the caller looks at `asked`, and calls `let_go` when it is done. Another thread
    than the main one is never interrupted, and holds nothing."""
    _State.held = _State.held or threading.current_thread() is threading.main_thread()


def let_go() -> None:
    _State.held = _State.held and threading.current_thread() is not threading.main_thread()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """`hold` while the block runs."""
    hold()
    try:
        yield
    finally:
        let_go()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While the block runs, a signal raises Leave in the main thread, or is remembered while it is held. This changes nothing
    inside such a block, and in another thread, where Python takes no signals."""
    if _State.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.listening = True

    def leave(number: int, frame: Any) -> None:
        now, before = time.monotonic(), _State.asked
        again = number == before == signal.SIGINT and now - _State.since > AGAIN
        _State.asked = number
        if before is None:
            _State.since = now
        if again or (before is None and not _State.held):  # another signal would interrupt the clearing up
            raise Leave

    handlers = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        _State.listening, _State.asked, _State.held = False, None, False
        for number, handler in handlers.items():
            signal.signal(number, handler)
