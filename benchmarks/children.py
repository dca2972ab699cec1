"""Processes of their own for what is measured: one after the other, or several that take their steps in turn.

In turn: one process computes while the others wait, and after each step it passes the turn on. So every program meets the
machine as the others do, and each keeps its own peak of memory.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from pobench.errors import PobenchError
from pobench.files import write_text

FAULT = "fault"  # what a child's result holds in place of a traceback
ENDED = "ended after"  # begins the fault of a child that was
GRACE = 20.0  # seconds
Call = tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]  # a function and its arguments


class TookTooLongError(PobenchError):
    """A child did not end within its seconds."""


class _Turn:
    """In a child: the connection by which it gets and passes the turn. None: it has the machine to itself."""

    connection: Connection | None = None
    held = True


class _Child(NamedTuple):
    process: BaseProcess
    result: Path
    turn: Connection | None


def in_child(function: Callable[..., dict[str, Any]], *arguments: Any, seconds: float | None = None) -> dict[str, Any]:
    """Call `function` in a fresh interpreter; returns its result. seconds: after which it is ended.

    Raises PobenchError if that process fails, TookTooLongError if it is ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        child = _start(function, arguments, Path(folder) / "result.json")
        try:
            child.process.join(seconds)
            if child.process.is_alive():
                raise TookTooLongError(f"{function.__name__}: {ENDED} {seconds:.0f} s")
        finally:
            _end(child)
        found = _result(function.__name__, child)
        if FAULT in found:
            raise PobenchError(f"{function.__name__}: {found[FAULT]}")
        return found


def in_turn(
    calls: Mapping[str, Call], *, seconds: float | None = None, load_together: bool = False
) -> dict[str, dict[str, Any]]:
    """Call every function in a process of its own, one step of each after the other; returns the results by name.

    A process that fails leaves the others running, and its result holds `FAULT`. So does that of one whose turn does not end in
    `seconds` less a quarter, at most `GRACE`; in these the others may end by themselves. load_together: they load at the same
    time, which a GPU's machine has processors for.
    """
    last = None if seconds is None else time.monotonic() + seconds
    deadline = None if last is None or seconds is None else last - min(GRACE, seconds / 4)
    with tempfile.TemporaryDirectory() as folder:
        children = {
            name: _start(function, arguments, Path(folder) / f"{i}.json", takes_turns=True, load_first=load_together)
            for i, (name, (function, arguments)) in enumerate(calls.items())
        }
        try:
            left, late = dict(children), set()
            while left:
                for name, child in list(left.items()):
                    try:
                        goes_on = _one_turn(child, deadline)
                    except TookTooLongError:
                        _end(child)
                        late.add(name)
                        goes_on, deadline = False, last
                    if not goes_on:
                        del left[name]
        finally:
            for child in children.values():
                _end(child)
        ended = {FAULT: f"{ENDED} {seconds:.0f} s"} if late else {}
        return {name: ended if name in late else _outcome(name, child) for name, child in children.items()}


def wait_for_turn() -> None:
    """In a child, before its first step: wait until the others have passed the turn."""
    if not _Turn.held and _Turn.connection is not None:
        _Turn.connection.recv()
        _Turn.held = True


def pass_turn() -> None:
    """In a child, after a step: let the others do theirs; returns when it is this one's turn again."""
    if _Turn.connection is not None:
        _Turn.connection.send("a step is done")
        _Turn.held = False
        wait_for_turn()


def _one_turn(child: _Child, deadline: float | None) -> bool:
    """Let a child go until it passes the turn; False when it has ended. Raises TookTooLongError at the deadline."""
    assert child.turn is not None
    try:
        child.turn.send("go")
    except OSError:  # it has ended
        return False
    rest = None if deadline is None else max(0.0, deadline - time.monotonic())
    ready = wait([child.turn, child.process.sentinel], rest)
    if not ready:
        raise TookTooLongError("the deadline")
    try:
        child.turn.recv()
    except (EOFError, OSError):
        child.process.join()
        return False
    return True


def _start(
    function: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
    result: Path,
    *,
    takes_turns: bool = False,
    load_first: bool = False,
) -> _Child:
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe() if takes_turns else (None, None)
    process = context.Process(target=_child, args=(function, arguments, result, its, load_first))
    process.start()
    if its is not None:
        its.close()  # the child's end; open here too, its end would not be seen
    return _Child(process, result, mine)


def _end(child: _Child) -> None:
    if child.process.is_alive():
        child.process.terminate()
        child.process.join(20)
        child.process.kill()
    child.process.join()


def _result(name: str, child: _Child) -> dict[str, Any]:
    """What a child that has ended left. Raises PobenchError if it left nothing."""
    status = child.process.exitcode
    if status or not child.result.is_file():
        hint = " (the system may have run out of memory)" if status == -9 else ""
        raise PobenchError(f"{name}: its process ended with status {status}{hint}")
    found: dict[str, Any] = json.loads(child.result.read_text())
    return found


def _outcome(name: str, child: _Child) -> dict[str, Any]:
    try:
        return _result(name, child)
    except PobenchError as error:
        return {FAULT: str(error)}


def _child(
    function: Callable[..., dict[str, Any]],
    arguments: tuple[Any, ...],
    result: Path,
    turn: Connection | None,
    load_first: bool,
) -> None:
    os.dup2(2, 1)  # standard output belongs to the parent's JSON
    if not os.environ.get("POBENCH_DEBUG"):
        warnings.filterwarnings("ignore")
    _Turn.connection, _Turn.held = turn, turn is None
    if not load_first:
        wait_for_turn()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        found = function(*arguments)
    except Exception as error:
        if os.environ.get("POBENCH_DEBUG"):
            raise
        found = {FAULT: str(error) if isinstance(error, PobenchError) else f"{type(error).__name__}: {error}"}
    write_text(result, json.dumps(found))
