"""The campaigns in small: a command that is killed loses nothing, a damaged file is found, one command gives the same bytes,
and memory stays. Their counts are in docs/reliability.md, with the commands that repeat them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults import damage, determinism, disks, kills, long_run
from tests.pobench.stores import trained_run


@pytest.mark.slow
def test_a_killed_command_loses_nothing_and_leaves_no_orphan() -> None:
    trials = list(kills.campaign(9, seed=2))
    assert [one for one in trials if one.lost] == [] and len(trials) == 9


@pytest.mark.slow
def test_a_damaged_file_is_found_and_no_wrong_result_is_taken_for_a_right_one() -> None:
    done = list(damage.cases())
    assert [case for case in done if case.fault] == [] and len(done) > 60


@pytest.mark.slow
def test_a_command_gives_the_same_bytes_elsewhere_and_when_it_was_interrupted(tmp_path: Path) -> None:
    work = determinism.Work(losses="dpo", seeds="1")
    seen = list(determinism.campaign(work, tmp_path / "made", ("elsewhere", "interrupted")))
    assert [one for one in seen if one.fault] == [] and len(seen) == 2
    assert determinism.files(tmp_path / "made" / "first", "out", "site")


@pytest.mark.slow
def test_memory_and_checkpoints_stay_as_they_are_while_a_training_goes_on(tmp_path: Path) -> None:
    process = long_run.command(tmp_path, 2_500, "fp32", "dpo")
    made = long_run.summary(list(long_run.samples(process, tmp_path / "runs")), process.wait())
    assert made["status"] == 0 and made["steps"] >= 2_500 and made["checkpoints"] == 2
    assert made["memory"]["grown"] <= long_run.ALLOWED and made["files"]["grown"] == 0


def test_measured_values_are_lent_and_no_others(tmp_path: Path) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    runs = [trained_run(root, "simpo-000000000001") for root in (first / "runs", other / "runs")]
    for run in runs:
        run.rewind_steps(0)
    for run, seconds in zip(runs, (1.0, 2.0), strict=True):
        run.log_step({"step": 1, "loss": 0.5, "seconds": seconds})
        run.finish_training(
            {"loss": "simpo"}, {"pairs": 3, "seconds": seconds, "peak_memory": int(seconds), "order": "o"}
        )
    assert len(determinism.differ(determinism.stored(first), determinism.stored(other))) == 2
    determinism.lend_measured(first / "runs", other / "runs")
    assert determinism.differ(determinism.stored(first), determinism.stored(other)) == []
    steps = runs[1].path / "steps.jsonl"
    steps.write_text(json.dumps({**json.loads(steps.read_text()), "loss": 0.25}) + "\n")
    determinism.lend_measured(first / "runs", other / "runs")
    assert len(determinism.differ(determinism.stored(first), determinism.stored(other))) == 2


@pytest.mark.slow
@pytest.mark.skipif(not disks.may_mount(), reason="mounting a file system is not allowed here")
def test_a_disk_that_is_full_read_only_or_gone_costs_nothing() -> None:
    trials = [*disks.campaign("120 kB"), *disks.campaign("read-only"), *disks.campaign("vanishes")]
    assert [one for one in trials if one.lost] == [] and len(trials) > 6


def test_every_fault_is_a_row_of_the_table_with_its_counts() -> None:
    trials = [
        kills.Trial("training", "worker", "SIGKILL", "", 4.0),
        kills.Trial("training", "worker", "SIGKILL", "orphans: {}", 6.0),
        kills.Trial("report", "worker", "SIGKILL", "", 3.0),
    ]
    lines = kills.table(trials).splitlines()[2:]
    of_worker = ["| worker, SIGKILL | training | 2 | 1 | 1 | 5 |", "| worker, SIGKILL | report | 1 | 1 | 0 | 3 |"]
    assert lines == [*of_worker, "| all |  | 3 | 2 | 1 | 4 |"]


def test_a_damage_changes_the_file(tmp_path: Path) -> None:
    for name, do in damage.DAMAGES.items():
        file = tmp_path / "file"
        file.write_bytes(b"0123456789")
        do(file)
        assert file.exists() is (name != "gone") and (not file.exists() or file.read_bytes() != b"0123456789")
