"""The campaigns in small: a command that is killed loses nothing, a damaged file is found, one command gives the same bytes,
and memory stays. Their counts are in docs/reliability.md, with the commands that repeat them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pobench.files import write_text
from tests.faults import damage, determinism, disks, kills, long_run
from tests.pobench.stores import trained_run


@pytest.mark.slow
def test_a_killed_command_loses_nothing_and_leaves_no_orphan() -> None:
    trials = list(kills.campaign(9, seed=2))
    assert [one for one in trials if one.lost] == [] and len(trials) == 9


@pytest.mark.slow
def test_a_damaged_file_is_found_and_no_wrong_result_is_taken_for_a_right_one() -> None:
    done = list(damage.cases(damage="another digit"))  # the others are the campaign's
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


def test_files_that_differ_in_digits_alone_are_of_one_kind_and_rounds_are_told_apart(tmp_path: Path) -> None:
    runs = tmp_path / "runs/small"
    for name, number in (("dpo-0123456789ab", 1), ("simpo-ba9876543210", 1), ("dpo-aaaaaaaaaaaa", 2)):
        (runs / name / "checkpoint-12").mkdir(parents=True)
        (runs / name / "config.yaml").write_text(f"kind: loss\nround: {number}\n")
        (runs / name / "checkpoint-12/state.json").write_text("{}")
        (runs / name / ".worker.lease").write_text("")
    (runs / ".answers-0123456789ab.shards").mkdir()
    for number in (0, 11):
        (runs / f".answers-0123456789ab.shards/{number}.json").write_text("{}")
    for name in ("0a" * 32, "1b" * 32):
        (tmp_path / "cache/replies" / name[:2]).mkdir(parents=True)
        (tmp_path / "cache/replies" / name[:2] / f"{name}.json").write_text("{}")
    found = damage.stored_files(tmp_path)
    assert {kind: len(files) for kind, files in found.items()} == {
        "runs/setting/loss-…/config.yaml": 2, "runs/setting/loss-…/checkpoint-…/state.json": 2,
        "runs/setting/loss-… of round 2/config.yaml": 1, "runs/setting/loss-… of round 2/checkpoint-…/state.json": 1,
        "runs/setting/.answers-….shards/….json": 2, damage.REPLIES: 2,
    }  # fmt: skip


def test_what_lies_there_only_while_a_command_runs_is_found_and_the_command_can_be_stopped_there(
    tmp_path: Path,
) -> None:
    def command(folder: Path) -> list[str]:
        for number in range(3):
            write_text(folder / f"runs/part-{number}-of-3.txt", "x")
        write_text(folder / "runs/whole.txt", "xxx")
        for path in folder.glob("runs/part-*"):
            path.unlink()
        return []

    assert damage.passing_kinds(command, tmp_path / "a") == {"runs/part-….txt": 3}
    damage.until(command, tmp_path / "b", "runs/part-….txt", 2)
    assert [path.name for path in sorted((tmp_path / "b/runs").iterdir())] == ["part-0-of-3.txt", "part-1-of-3.txt"]
