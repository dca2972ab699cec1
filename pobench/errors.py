"""What is wrong with a command, a setting or the data, and how it is told: one exception, all faults in one message."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar


class PobenchError(Exception):
    """The command, a setting or the data is wrong: printed as it stands, without a traceback; exit status 2."""


class UnknownNameError(PobenchError):
    """A name that nothing is registered under."""


class CorruptError(PobenchError):
    """A file that pobench has stored holds other bytes than it stored. path: the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{str(path)!r} is damaged: {reason}")
        self.path = path


Value = TypeVar("Value")


def or_fault(faults: list[str], read: Callable[[], Value]) -> Value | None:
    """What `read` gives; where it raises PobenchError, None, and the message joins `faults`: all are told together."""
    try:
        return read()
    except PobenchError as error:
        faults.append(str(error))
        return None


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: `"; did you mean 'simpo'?"`, or `"."` when nothing known is close."""
    close = difflib.get_close_matches(_normal(name), {_normal(k): k for k in known}, n=1, cutoff=0.6)
    by_normal = {_normal(k): k for k in known}
    return f"; did you mean {by_normal[close[0]]!r}?" if close else "."


def _normal(name: str) -> str:
    """Case, spaces, dashes and underscores do not matter."""
    return "".join(c for c in name.casefold() if c not in " -_")
