"""Plain lines where the output is no terminal; resumed work does not inflate the rate."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pobench.progress
from pobench.printing import say
from pobench.progress import progress


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
        assert pace.left(first + 128) == "1:00"


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
