"""Run a stranger's code in a child process that is stopped if it does not end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from pobench.errors import PobenchError


def in_child(make: Callable[[], Iterator[dict[str, Any]]], limit: float, what: str) -> Iterator[dict[str, Any]]:
    """What `make()` yields, plain values as in JSON, each as soon as it is there. It runs in a fork of this process.

    limit: seconds until the child and all that it started are killed. what: names the code in messages. Raises PobenchError
    where the child raises one, where its time is over, and where it ends by itself, such as by a crash in C.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _work(make, writing)
    os.close(writing)
    ends_at, last = time.monotonic() + limit, ""
    try:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            for line in _lines(pipe, ends_at):
                if line is None:
                    raise PobenchError(
                        f"{what!r} did not end within {limit:g} s and was stopped{last}; --limit SECONDS gives it longer"
                    )
                given = json.loads(line)
                if "error" in given:
                    raise PobenchError(given["error"])
                if "done" in given:
                    return
                last = f", behind {given['law']!r}" if "law" in given else last
                yield given
        raise PobenchError(f"{what!r} ended the process in which it was tried{last}")
    finally:
        _end(child)


def _lines(pipe: Any, ends_at: float) -> Iterator[bytes | None]:
    """The lines of a pipe; None, as the last, when the time is over."""
    unread = b""
    while True:
        if not select.select([pipe], [], [], max(0.0, ends_at - time.monotonic()))[0]:
            yield None
            return
        chunk = pipe.read(65536)
        if not chunk:
            return
        *lines, unread = (unread + chunk).split(b"\n")
        yield from lines


def _work(make: Callable[[], Iterator[dict[str, Any]]], writing: int) -> None:
    """The child's work: a line of JSON for each value. Never returns."""
    from pobench.runs.processes import end_with_starter

    def send(value: dict[str, Any]) -> None:
        os.write(writing, json.dumps(value).encode() + b"\n")

    os.setsid()  # a group of its own, with all that it starts
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_starter()
    try:
        for value in make():
            send(value)
        send({"done": True})
    except PobenchError as error:
        send({"error": str(error)})
    except BaseException as error:  # also what a plug-in raises to end the program
        where = traceback.format_exc() if os.environ.get("POBENCH_DEBUG") else ""
        send({"error": f"{where}{type(error).__name__}: {error}"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _end(child: int) -> None:
    """Kill the child's group and wait for the child."""
    for kill, of in ((os.killpg, child), (os.kill, child)):  # it may not have its group yet
        with contextlib.suppress(ProcessLookupError):
            kill(of, signal.SIGKILL)
    os.waitpid(child, 0)
