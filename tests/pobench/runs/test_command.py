"""What a command writes down while it runs: its jobs, how they end, how long they take."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from pobench.progress import read_progress
from pobench.results.run_folder import RunFolder
from pobench.runs import command as command_module
from pobench.runs import execute as execution
from pobench.runs.command import (
    Command,
    Entry,
    Left,
    Writing,
    commands_below,
    expected,
    standing_of,
    time_left,
)
from pobench.runs.execute import execute
from pobench.runs.job_rows import job_rows
from pobench.runs.plan import Plan
from pobench.runs.task import Task
from pobench.settings.resolve import resolve


def entry(
    place: str, seconds: float, state: str = "waiting", began: float = math.nan, ended: float = math.nan
) -> Entry:
    return Entry(place, "tiny/x", "x", "loss", ("train",), "nowhere", {}, seconds, state, began, ended)


def test_estimates_are_corrected_by_finished_jobs_of_their_kind_else_by_all() -> None:
    jobs = [
        entry("a.train", 100, "finished", 0, 150),  # 1.5 times its estimate
        entry("a.evaluate", 50, "finished", 150, 175),  # 0.5 times
        entry("b.train", 60),  # 60 · 150 / 100
        entry("b.evaluate", 40),  # 40 · 25 / 50
        entry("c.pair", 30),  # no pair has finished: 30 · (150 + 25) / (100 + 50)
        entry("d.train", math.nan),  # no estimate: the mean of the trainings
        entry("e.onpolicy", math.nan),
    ]
    assert expected(jobs)[2:6] == pytest.approx([90, 20, 35, 150]) and math.isnan(expected(jobs)[6])


class Counted(Entry):
    """Counts how often it is asked what it took."""

    looks: ClassVar[int] = 0

    @property
    def took(self) -> float:
        type(self).looks += 1
        return super().took


def test_a_finished_job_is_not_looked_at_again_for_every_other_one() -> None:
    ended = Counted("a.train", "tiny/x", "x", "loss", ("train",), "nowhere", {}, 100, "finished", 0, 150)
    assert expected([*[ended] * 300, *[replace(ended, state="waiting")] * 300]) == [150.0] * 600
    assert 300 < Counted.looks < 600 * 6
    assert expected([entry("a.train", 70)]) == [70], "nothing has finished"


def test_the_time_left_counts_what_runs_waits_and_runs_beside_it() -> None:
    jobs = [
        entry("a.train", 100, "finished", 0, 150),
        entry("b.train", 60, "running", 150),  # of 90 s it has 70 behind it at 220
        entry("c.train", 40),  # 60
        entry("d.train", 40, "failed", 150, 151),
    ]
    assert time_left(jobs, 1, 220) == Left(20 + 60, 1)
    # its own steps say that it takes 70 + 35 s, so the trainings took (150 + 105) / (100 + 60) of their estimates
    assert time_left(jobs, 1, 220, {"b.train": 35.0}) == (pytest.approx(35 + 40 * 255 / 160), 1)
    assert time_left(jobs, 1, 500) == (pytest.approx(40 * 500 / 160), 1), "it is late, and so are those to come"
    assert time_left(jobs, 2, 220) == Left(60, 1), "half of 80, but one job takes 60"
    assert math.isnan(time_left([*jobs, entry("e.sft", math.nan)], 1, 220).seconds)


def task(root: Path, loss: str, stages: tuple[str, ...]) -> Task:
    (job,) = resolve("tiny", loss, seeds=[1])
    return Task(job, "loss", root, f"tiny/{loss}-000000000001", stages, root / "data")


@pytest.fixture
def plan(tmp_path, monkeypatch) -> Plan:
    """Two losses, each to be trained and evaluated, and one of which nothing is left."""
    monkeypatch.setattr(command_module, "seconds_of_each", lambda tasks, counts: [10.0 for _ in tasks])
    monkeypatch.setattr(execution, "check_disk", lambda plan: None)
    monkeypatch.setattr(execution, "process_count", lambda: 1)
    tasks = [task(tmp_path, loss, stages) for loss in ("simpo", "dpo") for stages in (("train",), ("answers", "judge"))]
    return Plan((*tasks, task(tmp_path, "ipo", ())), root=tmp_path)


def test_a_command_can_be_followed_from_outside_while_it_runs(plan, monkeypatch) -> None:
    seen: list[tuple[str, list[str], float, float]] = []

    def fork(task: Task) -> int:
        (now,) = commands_below(task.runs)
        job = standing_of(task)
        seen.append((job.name, [each.state for each in now.jobs], job.own, job.behind))
        if task.job.loss == "dpo":
            RunFolder(task.runs, task.run).path.mkdir()
            RunFolder(task.runs, task.run).fail("out of memory")
        return int(task.job.loss == "dpo")

    monkeypatch.setattr(execution, "_fork", fork)
    said: list[str] = []
    outcomes = execute(plan, announce=said.append)
    assert [name for name, *_ in seen] == ["job 1 of 4", "job 2 of 4", "job 3 of 4"], "the last has nothing to evaluate"
    assert [states for _, states, *_ in seen] == [
        ["running", "waiting", "waiting", "waiting"],
        ["finished", "running", "waiting", "waiting"],
        ["finished", "finished", "running", "waiting"],
    ]
    assert seen[0][2:] == (10.0, 30.0) and seen[2][3] < 1.0, "what took no time corrects what is to come"
    assert said[1].startswith("job 2 of 4 · simpo, seed 1: answers, judge  →  ")
    (after,) = commands_below(plan.root)
    assert [job.state for job in after.jobs] == ["finished", "finished", "failed", "failed"] and not after.under_way
    assert after.jobs[3].reason == "out of memory" and after.before == ("ipo, seed 1",) and not math.isnan(after.closed)
    rows = job_rows(plan.root)
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert json.loads(json.dumps(rows)) == rows and {o.status for o in outcomes} == {"finished", "failed", "skipped"}


def test_an_interrupted_command_leaves_no_job_that_seems_to_run(plan, monkeypatch) -> None:
    def fork(task: Task) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "_fork", fork)
    with pytest.raises(KeyboardInterrupt):
        execute(plan)
    (after,) = commands_below(plan.root)
    assert {job.state for job in after.jobs} == {"interrupted"} and not after.under_way


def test_a_killed_command_is_told_by_its_process(tmp_path) -> None:
    path = tmp_path / "tiny" / "command.json"
    path.parent.mkdir()
    command = Command(path, (entry("a.train", 5, "running", 1.0),), began=1.0)
    command.write()
    assert commands_below(tmp_path) == [command] and command.under_way, "this very process lives"
    replace(command, pid=2**22 + 1).write()  # above the largest process id of Linux
    assert [job.state for job in commands_below(tmp_path)[0].jobs] == ["interrupted"]
    path.write_text("{")
    assert commands_below(tmp_path) == []


def test_what_follows_what_a_first_plan_makes_is_numbered_behind_it(plan, tmp_path) -> None:
    writing = Writing(tmp_path / "tiny" / "command.json")
    (first, *others) = plan.left
    (own,) = writing.plan(replace(plan, tasks=(first,), waits=True), (), "local", 1)
    assert own.number == "job 1 of 1" and writing.command.more
    writing.ended(own, None)
    later = writing.plan(replace(plan, tasks=tuple(others)), (), "local", 1)
    assert [each.number for each in later] == ["job 2 of 4", "job 3 of 4", "job 4 of 4"]
    assert first.number == "", "a task of no command has no number"
    for each in later:
        writing.ended(each, None)
    (again,) = writing.plan(replace(plan, tasks=(first,)), (), "local", 1)
    assert again.number == "job 1 of 1", "another command of the same process begins anew"


def test_a_training_says_at_which_step_it_goes_on(tmp_path) -> None:
    from pobench.progress import Standing, progress, standing
    from pobench.runs.job_rows import progress_text

    with standing(Standing("job 7 of 29", folder=tmp_path)):
        with progress("simpo", 478, "steps") as advance:
            advance(done=120, resumed=True)
            assert progress_text(tmp_path) == "step 0 of 478", "written once a second"
        with progress("answers", 10, "answers"):
            assert read_progress(tmp_path)["title"] == "answers"
    assert read_progress(tmp_path) == {} and progress_text(tmp_path) == ""


def test_a_job_that_begins_or_ends_is_a_line_however_many_jobs_there_are(tmp_path, monkeypatch) -> None:
    written: list[int] = []
    write_json = command_module.write_json
    monkeypatch.setattr(
        command_module, "write_json", lambda path, value: (written.append(len(value["jobs"])), write_json(path, value))
    )
    monkeypatch.setattr(command_module, "seconds_of_each", lambda tasks, counts: [1.0 for _ in tasks])
    tasks = [replace(task(tmp_path, "dpo", ("train",)), run=f"tiny/dpo-{n:012x}") for n in range(50)]
    path = tmp_path / "tiny" / "command.json"
    writing = Writing(path)
    planned = writing.plan(Plan(tuple(tasks), root=tmp_path), (), "local", 1)
    with writing.until_its_end():
        for each in planned[:-1]:
            writing.began(each)
            writing.ended(each, None)
        last = writing.began(planned[-1])
        changes = command_module.changes_of(path)
        assert written == [50] and changes.stat().st_size < 99 * 300
        with changes.open("a") as file:
            file.write('{"written": 1.0, "place": "half of a li')
        (now,) = commands_below(tmp_path)
        assert [job.state for job in now.jobs] == ["finished"] * 49 + ["running"] and now == writing.command
        writing.command.write()
        assert commands_below(tmp_path) == [now] and not changes.exists(), "written whole, it says the same"
        changes.write_text(json.dumps({"written": 1.0, "place": now.jobs[0].place, "state": "failed"}) + "\n")
        assert commands_below(tmp_path) == [now], "a line of a command before it, which was killed, is not taken"
        place, other = now.jobs[0].place, now.jobs[1].place
        written_at = json.loads(path.read_text())["written"]
        lines = [
            '{"place"',
            "[]",
            *(json.dumps({"written": written_at, "place": p, "state": "failed"}) for p in (place, other)),
        ]
        changes.write_text("\n".join(lines) + "\n")
        (read,) = commands_below(tmp_path)
        assert [job.state for job in read.jobs[:3]] == ["failed", "failed", "finished"], "a damaged line hides no other"
    assert written == [50, 50, 50] and not changes.exists()
    monkeypatch.setattr(command_module, "_stored", None)
    assert standing_of(last).name == "job 50 of 50", "its process need not read of all jobs"
