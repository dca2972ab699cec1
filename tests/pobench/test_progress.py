"""A line that keeps step and time at 80 columns; plain lines where the output is no terminal; resumed work does not inflate
the rate."""

from __future__ import annotations

import io
import math
import re
import sys
import threading
import time
from types import SimpleNamespace

from rich.cells import cell_len

import pobench.progress
from pobench.printing import say
from pobench.progress import Standing, line, progress, standing


def test_lines_say_what_is_done_how_fast_and_how_long_it_takes(monkeypatch, capsys) -> None:
    clock = iter(range(0, 400_000, 400))
    monkeypatch.setattr(pobench.progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(pobench.progress, "SECONDS_BETWEEN_LINES", 600)  # on this test's clock; no thread waits so long
    with progress("train", 100, "steps") as advance:
        for step in range(61, 101):  # resumed: sixty steps were done before
            advance(done=step, note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("train  100/100 steps  done in ")
    assert "? left" in lines[0]  # one report, which holds the earlier steps, is no rate
    assert len(lines) > 3 and all("s/step" in line and "left" in line and "loss" in line for line in lines[1:-1])
    rates = [float(line.split("  ")[2].split()[0]) for line in lines[1:-1]]
    assert min(rates) >= 400  # the clock gives each step hundreds of seconds; the sixty earlier ones do not count


def test_the_time_left_is_right_where_work_comes_in_batches_or_was_done_before(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(pobench.progress, "time", SimpleNamespace(monotonic=lambda: now))
    for first in (64, 512):  # a batch, and a resumed run that reports its total
        pace, now = pobench.progress._Pace("answers"), 0.0
        for done in (first, first + 64):
            now += 60
            pace.advance(1, done)
        assert pace.left(first + 128) == 60.0
        now += 45
        assert pace.left(first + 128) == 15.0, "in the middle of a batch the clock goes on"
        now += 45
        assert pace.left(first + 192) == 60.0, "a batch that is late ends no earlier than now; one more follows it"


def test_a_resumed_work_has_a_rate_from_its_first_step(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(pobench.progress, "time", SimpleNamespace(monotonic=lambda: now))
    pace = pobench.progress._Pace("steps")
    now = 5.0  # until the checkpoint is read
    pace.advance(1, 120, resumed=True)
    assert math.isnan(pace.left(478)) and pace.resumed == 120
    now = 7.0
    pace.advance(1, 121)
    assert pace.left(478) == 2.0 * 357 and pace.rate == "2.00 s/step"


def test_at_80_columns_a_line_keeps_step_and_time() -> None:
    head, times = "job 7 of 29 · simpo (β = 2.5, lr = 6e-07), seed 42", ["12:34 left", "1:12:03 in all"]
    notes = ["1.02 s/step", "loss 0.69", "margin +0.1"]
    for width in (80, 100, 140):
        shown = line(head, "120/478", times, notes, 120 / 478, width).plain
        assert cell_len(shown) < width and shown.startswith("job 7 of 29 · simpo") and "━" in shown
        assert "120/478 · 12:34 left · 1:12:03 in all" in shown
        assert ("loss 0.69" in shown) == (width == 140)
    assert "120/478 · 12:34 left" in line(head, "120/478", times, notes, 0.25, 60).plain
    wide = line("回答を採点する仕事の長い題名がここにあるので切られる" * 2, "1/2", ["0:01 left"], [], 0.5, 80).plain
    assert cell_len(wide) < 80 and wide.endswith(" 1/2 · 0:01 left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_bar_says_which_job_it_is_and_what_is_left_of_all(monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    job = Standing("job 7 of 29", own=100.0, behind=3600.0, began=time.monotonic())
    with standing(job), progress("simpo, seed 42", 478, "steps") as advance:
        advance(done=120, resumed=True)
        advance(done=200, note="loss 0.6931 · margin +0.1")
    lines = re.split(r"[\r\n]|\x1b\[[0-9;?]*[A-Za-z]", terminal.getvalue())
    shown = [text for text in lines if "200/478" in text]
    assert shown and all(len(text) <= 80 and text.startswith("job 7 of 29 · simpo, seed 42 ") for text in shown)
    assert "left · 1:01:" in shown[-1] and "in all" in shown[-1]


def test_jobs_that_share_a_terminal_write_lines_and_no_bars(monkeypatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with standing(Standing("job 7 of 29", shares=True)), progress("simpo, seed 42", 2, "steps") as advance:
        advance(done=2)
    assert terminal.getvalue().startswith("job 7 of 29 · simpo, seed 42  2/2 steps  done in 0:00")
    assert "\x1b" not in terminal.getvalue() and "\r" not in terminal.getvalue()


def test_without_a_terminal_a_line_comes_every_half_minute() -> None:
    assert pobench.progress.SECONDS_BETWEEN_LINES == 30.0


def test_a_line_appears_also_while_the_work_reports_nothing(monkeypatch, capsys) -> None:
    printed = threading.Event()
    monkeypatch.setattr(pobench.progress, "SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr(pobench.progress, "say", lambda text: (say(text), printed.set()))
    with progress("answers", 10, "answers"):
        assert printed.wait(600)
    assert capsys.readouterr().err.startswith("answers  0/10 answers  0:00 so far")


def test_of_several_processes_one_shows_its_progress(capsys) -> None:
    for shown in (True, False):
        with progress("steps", 2, "steps", shown=shown) as advance:
            advance()
            advance(done=2, note="done")
        assert bool(capsys.readouterr().err) == shown
