"""Several jobs at one time: functions in threads, each of which waits for the processes of its job; and no process outlives
its command."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def pool(at_once: int) -> Iterator[Callable[..., Future[Any]]]:
    """What runs a function and gives its Future: here and now, or in one of several threads. Where it is interrupted, the
    processes that they wait for end."""
    if at_once == 1:
        yield now
        return
    with ThreadPoolExecutor(at_once) as threads:
        try:
            yield threads.submit
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def now(function: Callable[..., T], *arguments: Any) -> Future[T]:
    """The Future of a function that is run before this returns; what it raises passes through."""
    future: Future[T] = Future()
    future.set_result(function(*arguments))
    return future


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone, however that ended: the repeated command would find an
    orphan at work in the folder."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process was started by no other one of multiprocessing")

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)  # any moment is a good one: files appear whole

    threading.Thread(target=watch, daemon=True).start()
