"""Leaving when the system asks: SIGTERM, SIGINT (Ctrl-C), or SIGUSR2, by which SLURM warns a job before its time is over.

A process leaves at once, except in training: there it finishes the step, saves a checkpoint and leaves. Either way what is
finished stays, and the same job goes on from there. A second Ctrl-C ends the step too, and the last checkpoint stands.

A library may swallow what a signal raises, and the process would go on. One that has neither left nor held the signals for
`PATIENCE` seconds is ended, and says where it stood.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from pobench.printing import say

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
INTERRUPTED = 130  # the exit status of a process that left
GRACE = "POBENCH_GRACE_SECONDS"  # set where the scheduler's time between its signal and the end of a job is known
PATIENCE = 150.0  # seconds; longer than a request in flight to a judge, which is paid for
AGAIN = 2.0  # seconds after which another SIGINT is another Ctrl-C: a launcher hands the first one on


class Leave(KeyboardInterrupt):
    """The system has asked this process to end."""


class _State:
    listening = False
    asked: int | None = None
    since = 0.0
    held = False


def block() -> None:
    """Take no signal in this thread, and in the processes that it starts: the system keeps them until `unblock`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock() -> None:
    """Undo `block`. What was kept is delivered now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """`block` while the block runs, for moments: what is done in it is done whole."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
            watch.begin()
        if again or (before is None and not _State.held):  # another signal would interrupt the clearing up
            raise Leave

    watch = _Watch()
    handlers = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        with blocked():
            for number, handler in handlers.items():
                signal.signal(number, handler)
            watch.end()
            _State.listening, _State.asked, _State.held = False, None, False


class _Watch:
    """A thread that ends this process where it was asked to leave and stays. It waits at a pipe, as a handler of signals may
    write to one at any moment."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="leaving", daemon=True).start()

    def begin(self) -> None:
        os.write(self._writer, b"!")

    def end(self) -> None:
        self._ended.set()
        os.close(self._writer)

    def _run(self) -> None:
        begun = os.read(self._reader, 1)
        os.close(self._reader)
        since = time.monotonic()
        while begun and not self._ended.wait(0.1):
            if _State.held:
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                frame = sys._current_frames().get(threading.main_thread().ident or 0)
                place = f" at {frame.f_code.co_filename}:{frame.f_lineno}, {frame.f_code.co_name}" if frame else ""
                say(f"process {os.getpid()} was asked to leave {PATIENCE:g} s ago, stood{place}, and is ended")
                os._exit(INTERRUPTED)
