"""Exceptions for wrong commands, settings and data. One exception lists all faults in one message."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar


class PobenchError(Exception):
    """The command, a setting or the data is wrong. Printed without a traceback; exit status 2."""


class CorruptError(PobenchError):
    """A stored file no longer has the bytes that pobench wrote. path: the file."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{str(path)!r} is damaged: {reason}")
        self.path = path


class UndrawnError(PobenchError):
    """The code of figures or tables failed; the rest of the report is written. path: the page, or the report's folder."""

    def __init__(self, path: Path, tracebacks: Mapping[str, str]) -> None:
        """tracebacks: name of the figure → the traceback of its code."""
        failed = [f"{name} could not be drawn: {text.splitlines()[-1]}" for name, text in tracebacks.items()]
        super().__init__(
            "\n".join([*failed, f"everything else is in {str(path)!r}; --debug shows where the code failed"])
        )
        self.path = path
        for text in tracebacks.values():
            self.add_note(text)


class AbsentError(PobenchError):
    """A source can be reached and does not have the file that is asked for."""


class UnknownNameError(PobenchError):
    """Nothing is registered under this name."""


Value = TypeVar("Value")


def or_fault(faults: list[str], read: Callable[[], Value]) -> Value | None:
    """Return `read()`. If it raises PobenchError, append the message to `faults` and return None."""
    try:
        return read()
    except PobenchError as error:
        faults.append(str(error))
        return None


def reason_of(error: Exception) -> str:
    """Why a computation failed, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"MemoryError", "OutOfMemoryError"} or "can't allocate memory" in text:  # the second is torch's
        return (
            "out of memory; try --set train.micro_tokens=auto (or a smaller number) and "
            f"--set train.gradient_checkpointing=auto ({text[:200]})"
        )
    return text if isinstance(error, PobenchError) else f"{type(error).__name__}: {text}"


def nearest(name: str, known: Iterable[str], meanings: Mapping[str, str] | None = None) -> str:
    """The end of a sentence about an unknown name: `"; did you mean 'simpo'?"`, or `"."` if no known name is close.

    meanings: known name → what it means, whose first sentence follows in brackets.
    """
    by_normal = {_normal(k): k for k in known}
    close = difflib.get_close_matches(_normal(name), by_normal, n=1, cutoff=0.6)
    if not close:
        return "."
    found = by_normal[close[0]]
    meaning = (meanings or {}).get(found, "").partition(". ")[0].removesuffix(".")
    return f"; did you mean {found!r}?" + (f" ({meaning}.)" if meaning else "")


def _normal(name: str) -> str:
    """The name without case, spaces, dashes and underscores, for comparisons."""
    return "".join(c for c in name.casefold() if c not in " -_")
