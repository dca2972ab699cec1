"""Progress on stderr: a line with a bar on a terminal; elsewhere, and where several jobs share one, a plain line every half
minute, also while the work reports nothing. Of a job, its place in the command and the time left of all jobs stand beside it,
and a file holds the same for those who look from outside."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.cells import cell_len, set_cell_size
from rich.progress import Progress, ProgressColumn
from rich.text import Text

from pobench.files import whole
from pobench.printing import make_console, say, visible

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_NOTES = 1.0  # of the file
FILE = "progress.json"
WIDEST_BAR, NARROWEST_BAR, SHORTEST_HEAD = 24, 6, 24  # columns


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
    """Report that `n` more units are done, or `done` units in total. note: shown after the numbers. resumed: `done` units were
    done before this work began."""

    def __call__(self, n: float = 1, note: str = "", done: float | None = None, resumed: bool = False) -> None: ...


# ---------------------------------------------------------------- the job that this process does
@dataclass(frozen=True)
class Standing:
    """name: `job 7 of 29`. own, behind: seconds that this job, and those which are to come, are expected to take; nan where it
    is not known. folder: where the job's progress is kept. shares: other jobs write to the same terminal at the same time."""

    name: str = ""
    own: float = math.nan
    behind: float = math.nan
    folder: Path | None = None
    began: float = 0.0  # of `time.monotonic`
    shares: bool = False

    def left(self, seconds: float) -> float:
        """Seconds until all jobs are done, where the work at hand has so many left."""
        return max(self.own - (time.monotonic() - self.began), seconds) + self.behind


_standing = Standing()


@contextmanager
def standing(job: Standing) -> Iterator[None]:
    """All progress inside the block is that of a job."""
    global _standing
    before, _standing = _standing, job
    try:
        yield
    finally:
        _standing = before
        if job.folder is not None:
            (job.folder / FILE).unlink(missing_ok=True)


def read_progress(folder: Path) -> dict[str, Any]:
    """What the job at work in `folder` has reported last: title, done, total, unit, resumed (units done before), left (seconds;
    None: not known) and time; {} where there is none."""
    try:
        return dict(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


# ---------------------------------------------------------------- progress
@contextmanager
def progress(title: str, total: float, unit: str = "", *, shown: bool = True) -> Iterator[Advance]:
    """Show progress of `total` units while the block runs. Yields the function that reports progress. shown: of several
    processes one shows it."""
    if not shown:
        yield lambda n=1, note="", done=None, resumed=False: None
        return
    work = _Work(title, total, unit, _standing)
    yield from _bar(work) if sys.stderr.isatty() and not work.job.shares else _lines(work)


class _Pace:
    """Counts units and measures the rate, of whole batches: from a report to a later one. Where the first report is a total, it
    may be a batch or hold work of an earlier run, so the rate is that of the work behind it, from then on."""

    def __init__(self, unit: str) -> None:
        self.unit, self.started, self.done, self.before = unit, time.monotonic(), 0.0, math.nan
        self.since = self.last = self.started
        self.longest = 0.0  # seconds between two reports
        self.resumed = 0.0

    def advance(self, n: float, done: float | None, resumed: bool = False) -> None:
        now = time.monotonic()
        self.done = self.done + n if done is None else done
        if resumed:
            self.resumed = self.done
        if math.isnan(self.before):
            self.before, self.since = (0.0, self.started) if done is None else (self.done, now)
        if self.fresh > 0:
            self.longest = max(self.longest, now - max(self.last, self.since))
        self.last = now

    @property
    def fresh(self) -> float:
        """Units that the rate rests on."""
        return 0.0 if math.isnan(self.before) else self.done - self.before

    @property
    def rate(self) -> str:
        return _rate(self.fresh, self.last - self.since, self.unit)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def left(self, total: float) -> float:
        """Seconds; nan where nothing was measured yet. Between two reports it falls with the clock, until a report is late."""
        if self.fresh <= 0:
            return math.nan
        at_the_report = (self.last - self.since) / self.fresh * (total - self.done)
        return max(at_the_report - min(time.monotonic() - self.last, self.longest), 0.0)


class _Work:
    """A piece of work with its pace, as it is shown and kept."""

    def __init__(self, title: str, total: float, unit: str, job: Standing) -> None:
        self.title, self.total, self.job, self.note = visible(title), total, job, ""
        self.pace, self.kept = _Pace(unit), -math.inf
        self.keep()

    def advance(self, n: float = 1, note: str = "", done: float | None = None, resumed: bool = False) -> None:
        self.pace.advance(n, done, resumed)
        self.note = note
        if time.monotonic() - self.kept >= SECONDS_BETWEEN_NOTES:
            self.keep()

    def keep(self) -> None:
        """Write down how far it is, for those who look from outside."""
        if (folder := self.job.folder) is None:
            return
        self.kept = time.monotonic()
        left = self.pace.left(self.total)
        values = {"title": self.title, "done": self.pace.done, "total": self.total, "unit": self.pace.unit}
        values |= {"resumed": self.pace.resumed, "left": None if math.isnan(left) else left, "time": time.time()}
        with contextlib.suppress(OSError), whole(folder / FILE, sync=False) as partial:  # work goes on on a full disk
            partial.write_text(json.dumps(values), encoding="utf-8")

    @property
    def head(self) -> str:
        return f"{self.job.name} · {self.title}" if self.job.name else self.title

    @property
    def times(self) -> list[str]:
        """`0:34 left`, and `1:12:03 in all` where this is one of several jobs."""
        left = self.pace.left(self.total)
        parts = [f"{_clock(left)} left"] if self.pace.done < self.total else []
        every = self.job.left(0.0 if math.isnan(left) else left)
        return parts if math.isnan(every) else [*parts, f"{_clock(every)} in all"]


# ---------------------------------------------------------------- on a terminal
class _Line(ProgressColumn):
    """The whole line, cut to the terminal's width."""

    max_refresh = 0.5

    def __init__(self, work: _Work, console: Console) -> None:
        super().__init__()
        self.work, self.console = work, console

    def render(self, task: Any) -> Text:
        work = self.work
        numbers = f"{work.pace.done:g}/{work.total:g}"
        notes = [part for part in (work.pace.rate, *work.note.split(" · ")) if part]
        share = work.pace.done / work.total if work.total else 1.0
        return line(work.head, numbers, work.times, notes, share, self.console.width)


def line(head: str, numbers: str, times: list[str], notes: list[str], share: float, width: int) -> Text:
    """One line of progress. Of what does not fit, the notes go first, then the bar, then the end of the title; how much is
    done and the times stay. share: in [0, 1]. width: in columns."""
    tail = " · ".join([numbers, *times])
    room = width - 1 - cell_len(tail) - 1
    head_width = min(cell_len(head), max(room - 2 * NARROWEST_BAR, min(SHORTEST_HEAD, room)))
    if cell_len(head) > head_width:
        head = set_cell_size(head, max(head_width - 1, 0)) + "…"
    room -= cell_len(head) + 1
    bar = min(room, WIDEST_BAR) if room >= NARROWEST_BAR else 0
    text = Text(head, no_wrap=True, end="")
    if bar:
        full = min(round(bar * share), bar)
        text.append(" ").append("━" * full, "cyan").append("━" * (bar - full), "bright_black")
    text.append(f" {tail}")
    for note in notes:
        if text.cell_len + len(note) + 3 < width:
            text.append(f" · {note}", "dim")
    return text


def _bar(work: _Work) -> Iterator[Advance]:
    console = make_console(stderr=True)
    with Progress(_Line(work, console), console=console) as bars:
        task = bars.add_task("", total=work.total)

        def advance(n: float = 1, note: str = "", done: float | None = None, resumed: bool = False) -> None:
            work.advance(n, note, done, resumed)
            bars.update(task, completed=work.pace.done)

        yield advance


# ---------------------------------------------------------------- elsewhere
def _lines(work: _Work) -> Iterator[Advance]:
    pace, shown = work.pace, time.monotonic()
    ended = threading.Event()

    def numbers() -> str:
        return f"{work.head}  {pace.done:g}/{work.total:g} {pace.unit}".rstrip()

    def advance(n: float = 1, note: str = "", done: float | None = None, resumed: bool = False) -> None:
        work.advance(n, note, done, resumed)
        if time.monotonic() - shown < SECONDS_BETWEEN_LINES or pace.done >= work.total:
            return
        tell()

    def tell() -> None:
        nonlocal shown
        shown = time.monotonic()
        say("  ".join(part for part in (numbers(), pace.rate, " · ".join(work.times), work.note) if part))

    def keep_showing() -> None:
        nonlocal shown
        while not ended.wait(SECONDS_BETWEEN_LINES):
            if time.monotonic() - shown < SECONDS_BETWEEN_LINES:
                continue
            if pace.fresh > 0:
                tell()
            else:
                shown = time.monotonic()
                say(f"{numbers()}  {_clock(pace.seconds)} so far")

    threading.Thread(target=keep_showing, daemon=True).start()
    try:
        yield advance
    finally:
        ended.set()
    say(f"{numbers()}  done in {_clock(pace.seconds)}")


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
    """`0:34`, `1:12:03`; `?` for nan."""
    if math.isnan(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
