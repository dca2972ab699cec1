"""The campaigns in small: a command that is killed loses nothing, and a damaged file is found. Their counts are in
docs/reliability.md; `python -m tests.faults.kills` and `python -m tests.faults.damage` repeat them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults import damage, disks, kills


@pytest.mark.slow
def test_a_killed_command_loses_nothing_and_leaves_no_orphan() -> None:
    trials = list(kills.campaign(9, seed=2))
    assert [one for one in trials if one.lost] == [] and len(trials) == 9


@pytest.mark.slow
def test_a_damaged_file_is_found_and_no_wrong_result_is_taken_for_a_right_one() -> None:
    done = list(damage.cases())
    assert [case for case in done if case.fault] == [] and len(done) > 60


@pytest.mark.slow
@pytest.mark.skipif(not disks.may_mount(), reason="mounting a file system is not allowed here")
def test_a_disk_that_is_full_read_only_or_gone_costs_nothing() -> None:
    trials = [*disks.campaign("120 kB"), *disks.campaign("read-only"), *disks.campaign("vanishes")]
    assert [one for one in trials if one.lost] == [] and len(trials) > 6


def test_every_fault_is_a_row_of_the_table_with_its_counts() -> None:
    trials = [
        kills.Trial("training", "worker", signal.SIGKILL, "", 4.0),
        kills.Trial("report", "worker", signal.SIGKILL, "orphans: {}", 6.0),
    ]
    lines = kills.table(trials).splitlines()
    assert "| worker, SIGKILL | 2 | 1 | 1 | 5 |" in lines and lines[-1] == "| together | 2 | 1 | 1 | 5 |"


def test_a_damage_changes_the_file(tmp_path: Path) -> None:
    for name, do in damage.DAMAGES.items():
        file = tmp_path / "file"
        file.write_bytes(b"0123456789")
        do(file)
        assert file.exists() is (name != "gone") and (not file.exists() or file.read_bytes() != b"0123456789")
