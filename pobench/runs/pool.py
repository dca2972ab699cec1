"""Several jobs at one time: functions in threads, each of which waits for the processes of its job and has a share of the
machine for them; and no process outlives its command."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pobench.orphans import watch_starter
from pobench.runs import children
from pobench.training import leaving

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """One of several equal parts of the machine. slot: from 0. of: how many parts there are. alone: no other part is in use
    meanwhile, so all cores may be."""

    slot: int = 0
    of: int = 1
    alone: bool = False

    def devices(self, everything: int) -> int:
        """How many of the machine's processes of a training job fall to it."""
        return max(1, everything // self.of)

    def environment(self, gpus: int, cores: int) -> dict[str, str]:
        """The variables that keep a process to its share: its GPUs, or a GPU that several shares use where there are fewer;
        where there is none, its part of the cores, unless the user has set `OMP_NUM_THREADS`. gpus, cores: of the machine."""
        if self.of == 1:
            return {}
        if gpus:
            known = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            names = known if len(known) == gpus else [str(i) for i in range(gpus)]
            first = self.slot * self.devices(gpus) % gpus
            return {"CUDA_VISIBLE_DEVICES": ",".join(names[first : first + self.devices(gpus)])}
        if self.alone:
            return {}
        return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(self.devices(cores))}


_here = threading.local()


def share() -> Share:
    """That of this thread; outside of a pool the whole machine."""
    return getattr(_here, "share", Share())


def run_alone(function: Callable[..., T], *arguments: Any) -> T:
    """Run a function in this thread while no other thread of the pool runs one."""
    part = share()
    _here.share = replace(part, alone=True)
    try:
        return function(*arguments)
    finally:
        _here.share = part


@contextlib.contextmanager
def pool(parallel: int) -> Iterator[Callable[..., Future[Any]]]:
    """What runs a function and gives its Future: here and now, or in one of several threads, which have a share of the machine
    each. Where it is interrupted, the processes that they wait for are asked to leave, and it waits for them."""
    if parallel == 1:
        yield now
        return
    slots, event = itertools.count(), threading.Event()

    def begin() -> None:
        _here.share = Share(next(slots), parallel)
        children.stop_with(event)

    threads = ThreadPoolExecutor(parallel, initializer=begin)
    try:
        yield threads.submit
    except BaseException:
        with leaving.held():
            threads.shutdown(wait=False, cancel_futures=True)
            children.end_all(event)
            threads.shutdown()
        raise
    threads.shutdown()


def now(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """The Future of a function that is run before this returns; what it raises passes through."""
    future: Future[T] = Future()
    future.set_result(function(*arguments))
    return future


def lives(process: int) -> bool:
    """Whether there is such a process on this machine."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)  # of one's own: a process that has ended would still be there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


LEAVE = "POBENCH_LEAVE"  # names the file that appears when the processes of a launcher are to leave


def watch_launcher() -> None:
    """In a process that a launcher started: end as soon as the launcher is gone, as it would go on beside the next attempt; and
    leave when the command that called the launcher is asked to: the launcher would hand on no more than a short time."""
    gone, leave = watch_starter(), os.environ.get(LEAVE, "")

    def watch() -> None:
        while not gone() and not (leave and os.path.exists(leave)):
            time.sleep(0.5)
        listens = not gone() and callable(signal.getsignal(signal.SIGUSR2))
        os.kill(os.getpid(), signal.SIGUSR2 if listens else signal.SIGKILL)
        while listens and not gone():
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
