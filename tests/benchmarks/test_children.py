"""Processes that take their steps in turn."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from pobench.errors import PobenchError

pytestmark = pytest.mark.slow  # every child starts Python


def steps(file: str, name: str, count: int, fails_at: int = -1) -> dict[str, Any]:
    """Write the name once a step, as a run does that passes the turn after each."""
    children = importlib.import_module("children")
    children.wait_for_turn()
    for step in range(count):
        if step == fails_at:
            raise PobenchError(f"{name} has no more")
        with open(file, "a") as out:
            out.write(name)
        children.pass_turn()
    return {"process": os.getpid()}


def test_processes_take_one_step_each_in_turn_and_one_that_ends_is_left_out(tmp_path: Path) -> None:
    children, file = importlib.import_module("children"), tmp_path / "order"
    found = children.in_turn(
        {
            "long": (steps, (str(file), "a", 4)),
            "short": (steps, (str(file), "b", 2)),
            "broken": (steps, (str(file), "c", 3, 1)),
        },
        load_together=True,
    )
    assert file.read_text() == "abcabaa"
    assert found["broken"] == {"fault": "c has no more"}
    assert len({found["long"]["process"], found["short"]["process"], os.getpid()}) == 3


def test_a_child_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    children, started = (importlib.import_module(name) for name in ("children", "time"))
    with pytest.raises(children.TookTooLongError, match="sleep: ended after 1 s"):
        children.in_child(started.sleep, 600, seconds=1)
    found = children.in_turn({"sleep": (started.sleep, (600,)), "too": (started.sleep, (600,))}, seconds=1)
    assert found == {name: {"fault": "ended after 1 s"} for name in ("sleep", "too")}


def test_a_fault_in_a_child_is_a_plain_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POBENCH_DEBUG", raising=False)
    peers, children = (importlib.import_module(name) for name in ("peers", "children"))
    with pytest.raises(PobenchError, match="load_pairs: FileNotFoundError"):
        children.in_child(peers.load_pairs, tmp_path / "absent.json")
