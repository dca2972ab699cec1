"""A progress bar with rate and time left on a terminal; plain lines, a few a minute, everywhere else. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


class Advance(Protocol):
    """Report that `n` more units are done (or `done` in all); `note` is shown behind them."""

    def __call__(self, n: float = 1, note: str = "", done: float | None = None) -> None: ...


@contextmanager
def progress(title: str, total: float, unit: str = "") -> Iterator[Advance]:
    """Show work of `total` units while the block runs; yields the function to advance it with."""
    if sys.stderr.isatty():
        yield from _bar(title, total, unit)
    else:
        yield from _lines(title, total, unit)


def _bar(title: str, total: float, unit: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]} {task.fields[note]}", style="dim"),
        TimeElapsedColumn(),
        TextColumn("·"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(title, total=total, rate="", note="")
        started, state = time.monotonic(), [0.0]

        def advance(n: float = 1, note: str = "", done: float | None = None) -> None:
            state[0] = state[0] + n if done is None else done
            rate = _rate(state[0], time.monotonic() - started, unit)
            bars.update(task, completed=state[0], rate=rate, note=note)

        yield advance


def _lines(title: str, total: float, unit: str) -> Iterator[Advance]:
    started = shown = time.monotonic()
    state = [0.0, 0.0]  # done now, done when we began (a resumed job begins above 0)

    def advance(n: float = 1, note: str = "", done: float | None = None) -> None:
        nonlocal shown
        state[0] = state[0] + n if done is None else done
        now = time.monotonic()
        if now - shown < SECONDS_BETWEEN_LINES or state[0] >= total:
            return
        shown = now
        left = (now - started) / max(state[0], 1e-9) * (total - state[0])
        text = f"{title}  {state[0]:g}/{total:g} {unit}".rstrip()
        print(
            f"{text}  {_rate(state[0], now - started, unit)}  {_clock(left)} left  {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    yield advance
    print(
        f"{title}  {state[0]:g}/{total:g} {unit}  done in {_clock(time.monotonic() - started)}",
        file=sys.stderr,
        flush=True,
    )


def _rate(done: float, seconds: float, unit: str) -> str:
    if done <= 0 or seconds <= 0:
        return ""
    per_second = done / seconds
    return (
        f"{per_second:.3g} {unit}/s".strip()
        if per_second >= 1
        else f"{1 / per_second:.2f} s/{unit.rstrip('s') or 'unit'}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
