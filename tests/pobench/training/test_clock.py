"""The clock of training steps."""

from __future__ import annotations

import math
import os

import pytest

from pobench.training import clock
from pobench.training.clock import Spent

BOTH = hasattr(os, "sched_setaffinity") and clock._SCHEDSTAT.exists()


@pytest.mark.skipif(not BOTH, reason="this system does not count how long a thread waits")
def test_a_process_that_shares_its_processor_has_waited() -> None:
    before = Spent.so_far()
    child = os.fork()
    if child == 0:  # works on the parent's processor until it is killed
        while True:
            pass
    home = os.sched_getaffinity(0)
    try:
        place = {min(home)}
        os.sched_setaffinity(child, place)
        os.sched_setaffinity(0, place)
        while Spent.so_far().since(before).waited < 0.02:  # ends as soon as the other has had the processor for a while
            pass
    finally:
        os.sched_setaffinity(0, home)
        os.kill(child, 9)
        os.waitpid(child, 0)
    spent = Spent.so_far().since(before)
    assert 0.02 <= spent.waited < spent.seconds


def test_a_system_that_does_not_count_gives_nan_and_the_wall_time(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(clock, "_SCHEDSTAT", tmp_path / "absent")
    before = Spent.so_far()
    spent = Spent.so_far().since(before).plus(Spent(1.0, 0.5))
    assert spent.seconds >= 1.0 and math.isnan(spent.waited)


def test_time_of_an_earlier_part_is_added() -> None:
    assert Spent(2.0, 0.5).plus(Spent(3.0, 0.25)) == Spent(5.0, 0.75) and Spent().plus(Spent(1.0, 0.0)) == Spent(
        1.0, 0.0
    )
