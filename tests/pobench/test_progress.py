"""Plain lines where the output is no terminal; resumed work does not inflate the rate."""

from __future__ import annotations

import pobench.progress
from pobench.progress import progress


def test_lines_say_what_is_done_how_fast_and_how_long_it_takes(monkeypatch, capsys) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(pobench.progress.time, "monotonic", lambda: next(clock))
    with progress("train", 100, "steps") as advance:
        for step in range(61, 101):  # resumed: sixty steps were done before
            advance(done=step, note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("train  100/100 steps  done in ")
    assert len(lines) > 3 and all("s/step" in line and "left" in line and "loss" in line for line in lines[:-1])
    rates = [float(line.split("  ")[2].split()[0]) for line in lines[:-1]]
    assert min(rates) >= 10  # the clock gives each step tens of seconds; the sixty earlier ones do not count
