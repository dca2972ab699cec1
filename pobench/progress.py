"""Progress on stderr: a bar with rate and time left on a terminal, elsewhere a plain line every 15 seconds, also while the work
reports nothing."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pobench.printing import make_console, say

SECONDS_BETWEEN_LINES = 15.0


@contextmanager
def without_bars() -> Iterator[None]:
    """Switch the progress bars of transformers off while the block runs."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


class Advance(Protocol):
    """Report that `n` more units are done, or `done` units in total. note: shown after the numbers."""

    def __call__(self, n: float = 1, note: str = "", done: float | None = None) -> None: ...


@contextmanager
def progress(title: str, total: float, unit: str = "", *, shown: bool = True) -> Iterator[Advance]:
    """Show progress of `total` units while the block runs. Yields the function that reports progress. shown: of several
    processes one shows it."""
    if not shown:
        yield lambda n=1, note="", done=None: None
    elif sys.stderr.isatty():
        yield from _bar(title, total, unit)
    else:
        yield from _lines(title, total, unit)


class _Pace:
    """Counts units and measures the rate. Where the first report is a total, it may be a batch or hold work of an earlier run,
    so the rate is that of the work behind it, from then on."""

    def __init__(self, unit: str) -> None:
        self.unit, self.started, self.done, self.before = unit, time.monotonic(), 0.0, math.nan
        self.since = self.started

    def advance(self, n: float, done: float | None) -> None:
        self.done = self.done + n if done is None else done
        if math.isnan(self.before):
            self.before, self.since = (0.0, self.started) if done is None else (done, time.monotonic())

    @property
    def fresh(self) -> float:
        """Units that the rate rests on."""
        return 0.0 if math.isnan(self.before) else self.done - self.before

    @property
    def rate(self) -> str:
        return _rate(self.fresh, time.monotonic() - self.since, self.unit)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def left(self, total: float) -> str:
        seconds = time.monotonic() - self.since
        return _clock(seconds / self.fresh * (total - self.done)) if self.fresh > 0 else "?"


def _bar(title: str, total: float, unit: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=make_console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, note="", left="")
        pace = _Pace(unit)

        def advance(n: float = 1, note: str = "", done: float | None = None) -> None:
            pace.advance(n, done)
            left = f"· {pace.left(total)} left" if pace.done < total else ""
            bars.update(task, completed=pace.done, note=f"{pace.rate} {note}", left=left)

        yield advance


def _lines(title: str, total: float, unit: str) -> Iterator[Advance]:
    pace, shown = _Pace(unit), time.monotonic()
    ended = threading.Event()

    def advance(n: float = 1, note: str = "", done: float | None = None) -> None:
        nonlocal shown
        pace.advance(n, done)
        if time.monotonic() - shown < SECONDS_BETWEEN_LINES or pace.done >= total:
            return
        shown = time.monotonic()
        text = f"{title}  {pace.done:g}/{total:g} {unit}".rstrip()
        say(f"{text}  {pace.rate}  {pace.left(total)} left  {note}".rstrip())

    def keep_showing() -> None:
        nonlocal shown
        while not ended.wait(SECONDS_BETWEEN_LINES):
            if time.monotonic() - shown >= SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                text = f"{title}  {pace.done:g}/{total:g} {unit}".rstrip()
                say(f"{text}  {_clock(pace.seconds)} so far")

    threading.Thread(target=keep_showing, daemon=True).start()
    try:
        yield advance
    finally:
        ended.set()
    text = f"{title}  {pace.done:g}/{total:g} {unit}".rstrip()
    say(f"{text}  done in {_clock(pace.seconds)}")


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
