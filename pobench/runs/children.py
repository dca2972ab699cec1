"""Children: processes that a server forks, which has imported the packages and computed nothing, so that they start fast.

None of the two ends may wait for the other for good:

- No signal is lost. The server and a new child take none (`leaving.block`); one that is sent to a child before it listens is
  delivered when it does.
- A child begins when the command knows it, and ends with the command and with the server. One that the command was interrupted
  in starting ends without a beginning.
- Who waits for a child looks every `LOOK` seconds whether it is there at all, and names it when it was asked to leave.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from pobench.orphans import as_starter, end_with, has_ended
from pobench.printing import say
from pobench.training import leaving

SERVER_GONE = 255  # what multiprocessing knows of a process whose server has ended; no child ends so
LOOK = 10.0  # seconds

_one = threading.Lock()  # a child's status can be read once, and `start` reads those of all children
_started: dict[BaseProcess, threading.Event] = {}  # children at work, by what ends them
_here = threading.local()


# ---------------------------------------------------------------- in the command
def start_server(preload: Sequence[str]) -> None:
    """Let the server begin, whose imports take seconds, so that the command can do something else meanwhile."""
    _context(preload)
    _ensure_server()


def _context(preload: Sequence[str]) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pobench.runs.fork_server", *preload, "pobench.runs.fork_server_ready"])
    return context


def _ensure_server() -> None:
    resource_tracker.ensure_running()  # it unblocks signals
    with leaving.blocked(), as_starter():
        forkserver.ensure_running()  # which inherits that they are, and by whom it was started


def run_each(function: Callable[..., int], each: Sequence[tuple[Any, ...]], preload: Sequence[str]) -> int:
    """Run the function with each of the arguments, at one time, in a child each. preload: modules that the server imports.

    Returns the status of the first, or that of another one that fails, `SERVER_GONE` where the server was killed; then all end.
    Raises Leave where the system asks this process to leave; the children then have the time that they need for a checkpoint.
    """
    context = _context(preload)
    children: list[BaseProcess] = []
    asked = False
    try:
        for arguments in each:
            _start(context, function, arguments, children)
        status = _first_status(children)
    except (EOFError, ConnectionError):  # while it was asked for a child
        status = SERVER_GONE
    except leaving.Leave:
        asked = True
        raise
    finally:
        with leaving.held():
            _end(children, asked)
    leaving.leave_if_asked()
    return status


def stop_with(event: threading.Event) -> None:
    """The children that this thread starts from now on are those of the event, see `end_all`."""
    _here.event = event


def end_all(event: threading.Event) -> None:
    """Ask the children of an event to leave, and let none of its threads start another one."""
    event.set()
    with _one:
        for child, of in _started.items():
            if of is event:
                child.terminate()


def _start(context: Any, function: Callable[..., int], arguments: tuple[Any, ...], children: list[BaseProcess]) -> None:
    """Add a child that has begun. Raises Leave where this process, or this thread's pool, was asked to leave; EOFError or
    ConnectionError where the server is gone."""
    event = getattr(_here, "event", None) or threading.Event()
    reader, writer = context.Pipe(duplex=False)
    with contextlib.closing(writer), contextlib.closing(reader), _one:
        leaving.leave_if_asked()
        if event.is_set():
            raise leaving.Leave
        _ensure_server()
        child: BaseProcess = context.Process(target=_begin, args=(reader, function, arguments))
        child.start()
        with leaving.blocked():
            _started[child] = event
            children.append(child)
            with contextlib.suppress(BrokenPipeError):  # it was killed
                writer.send_bytes(b"begin")


def _status(child: BaseProcess) -> int | None:
    with _one, leaving.blocked():
        return child.exitcode


def _first_status(children: Sequence[BaseProcess]) -> int:
    """The status of the first, once it has ended, or of another one that has failed."""
    gone: set[BaseProcess] = set()
    while True:
        statuses = {child: _status(child) for child in children}
        ended = [status for status in statuses.values() if status]
        if ended or statuses[children[0]] is not None:
            return next(iter(ended), 0)
        running = [child for child in children if statuses[child] is None]
        if connection.wait([child.sentinel for child in running], LOOK):
            continue
        # twice, as the server takes a moment to say how it ended
        if any(child in gone for child in running if has_ended(child.pid or 0)):
            return SERVER_GONE
        gone = {child for child in running if has_ended(child.pid or 0)}


def _end(children: Sequence[BaseProcess], asked: bool) -> None:
    """Let all end. asked: the command is to leave, and a child has the time for a checkpoint; else it has a short one."""
    for child in children:
        if _status(child) is None:
            child.terminate()
    for child in children:
        waited = 0
        while _status(child) is None and not connection.wait([child.sentinel], LOOK):
            waited += 1
            if has_ended(child.pid or 0):
                break
            if not asked and waited > 1:
                child.kill()
            elif asked and waited == 1:
                say(f"process {child.pid} finishes its step and saves a checkpoint; Ctrl-C once more ends it at once")
        with _one:
            _started.pop(child, None)


# ---------------------------------------------------------------- in the child
def _begin(go: connection.Connection, function: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    gc.freeze()  # a collection of garbage through all that the server has imported takes a quarter of a second
    end_with_parent()
    try:
        go.recv_bytes()
    except EOFError:  # the command was interrupted before it knew this process
        os._exit(leaving.INTERRUPTED)
    go.close()
    try:
        with leaving.listening():
            leaving.unblock()  # a signal that came since the fork is delivered here
            status = function(*arguments)
    except KeyboardInterrupt:
        status = leaving.INTERRUPTED
    last = threading.Timer(LOOK, os._exit, (status,))  # all is stored; a thread of a library may not keep the process
    last.daemon = True
    last.start()
    sys.exit(status)


def end_with_parent() -> None:
    """End this process as soon as the command that started it is gone, or the server that forked it, however they ended: the
    repeated command would find an orphan at work in the folder."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process was started by no other one of multiprocessing")
    server = sys.modules.get("pobench.runs.fork_server")  # which has imported it
    end_with(getattr(server, "SERVER", os.getppid()))

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)  # any moment is a good one: files appear whole

    threading.Thread(target=watch, daemon=True).start()
