"""Several tasks at one time: none begins before what it reads is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import huggingface_hub
import pytest

from pobench.errors import PobenchError
from pobench.results.run_folder import RunFolder
from pobench.runs import execute as execution
from pobench.runs.execute import execute
from pobench.runs.executor import make_executor
from pobench.runs.pool import Share, pool, run_alone, share
from pobench.settings.resolve import resolve


@pytest.fixture
def made(monkeypatch) -> list[tuple[str, str, bool]]:
    """(kind, run, whether it trains) at the beginning and at the end of each task. Two trainings wait for each other, so one
    after the other would never end; that of `dpo` fails."""
    events: list[tuple[str, str, bool]] = []
    both = threading.Barrier(2, timeout=600)

    def fork(task: Any) -> int:
        trains = "train" in task.stages
        events.append(("begins", task.run, trains))
        if trains:
            both.wait()
        if trains and task.job.loss == "dpo":
            RunFolder(task.runs, task.run).path.mkdir(parents=True, exist_ok=True)
            RunFolder(task.runs, task.run).fail("out of memory")
            return 1
        events.append(("ends", task.run, trains))
        return 0

    monkeypatch.setattr(execution, "_fork", fork)
    return events


def test_two_tasks_run_at_one_time_and_each_after_what_it_reads(plan_here, made, monkeypatch) -> None:
    fork = execution._fork
    plan = plan_here("simpo,dpo")  # it does tasks in this process; here they do nothing
    monkeypatch.setattr(execution, "_fork", fork)
    outcomes = {outcome.title: outcome for outcome in execute(plan, executor=make_executor("local", {}, 2))}
    shared = [task.run for task in plan.tasks if task.kind in ("reference", "start")]
    assert [run for what, run, _ in made if what == "ends"][: len(shared)] == shared, "what both read comes first"
    (simpo,) = {task.run for task in plan.tasks if task.kind == "loss" and task.job.loss == "simpo"}
    own = [event for event in made if event[1] == simpo]
    assert own == [("begins", simpo, True), ("ends", simpo, True), ("begins", simpo, False), ("ends", simpo, False)]
    statuses = {title.partition(",")[0].casefold(): outcome.status for title, outcome in outcomes.items()}
    assert (statuses["simpo"], statuses["dpo"]) == ("finished", "failed")
    assert not [event for event in made if "/dpo-" in event[1] and not event[2]], "a model that failed answers nothing"


@pytest.mark.parametrize(
    ("words", "begun"),
    [
        (("run", "--losses", "simpo"), ["server", "plan"]),
        (("run", "--losses", "simpo", "--dry-run"), ["plan"]),
        (("run", "--losses", "simpo", "--detach"), ["plan"]),
        (("study", "main-table", "--losses", "simpo"), ["server", "plan"]),
        (("study", "main-table", "--losses", "simpo", "--dry-run"), ["plan"]),
    ],
)
def test_what_forks_the_jobs_begins_before_the_plan_is_made(words, begun, setting, pobench_cli, tmp_path, monkeypatch):
    events = []

    def plan(*jobs: Any, **how: Any) -> None:
        events.append("plan")
        raise PobenchError("no plan")

    monkeypatch.setattr(execution, "start_server", lambda preload: events.append("server"))
    monkeypatch.setattr("pobench.runs.plan.make_plan", plan)
    monkeypatch.setattr("pobench.workflows.study.make_plan", plan)
    status, _, err = pobench_cli(*words, "--setting", str(tmp_path / "small.yaml"))
    assert (status, events) == (2, begun) and "no plan" in err


def test_no_server_begins_early_for_several_processes_or_where_benchmarks_want_more_of_it(
    setting, tmp_path, monkeypatch
):
    begun = []
    monkeypatch.setattr(execution, "start_server", begun.append)
    (job,) = resolve(str(tmp_path / "small.yaml"), "simpo")
    execution.expect_tasks([replace(job, benchmarks={"mt_bench": {}})])
    monkeypatch.setattr(execution, "process_count", lambda: 2)
    execution.expect_tasks([job])
    assert begun == []
    monkeypatch.setattr(execution, "process_count", lambda: 1)
    execution.expect_tasks([job])
    assert begun == [["pobench.runs.execute"]]


def test_what_a_command_found_out_about_the_hub_reaches_children_of_an_older_server(plan_here, monkeypatch) -> None:
    (task, *_), given = plan_here("simpo").tasks, []
    monkeypatch.undo()
    monkeypatch.setattr(execution, "run_each", lambda function, each, preload: given.extend(each) or 0)
    monkeypatch.setattr(execution, "run", lambda task: 0)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert execution._fork(task) == 0 and given[0][1]["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert execution._in_child(*given[0]) == 0
    assert huggingface_hub.constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1"


def test_an_interrupted_pool_marks_no_run_as_failed(plan_here, monkeypatch) -> None:
    plan = plan_here("simpo,dpo")
    monkeypatch.setattr(execution, "_fork", lambda task: -15 if "train" in task.stages else 0)  # ended by the pool
    with pytest.raises(KeyboardInterrupt):
        execute(plan, executor=make_executor("local", {}, 2))
    assert not list(plan.tasks[-1].runs.glob("*/*/failed.json"))


KILLED = """
import multiprocessing, os, signal, threading
from pobench.runs.children import end_with_parent

def work(pipe):
    end_with_parent()
    pipe.send("at work")
    threading.Event().wait()

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    multiprocessing.get_context("forkserver").Process(target=work, args=(there,)).start()
    print(here.recv(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_task_ends_with_the_command_that_is_killed(tmp_path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    command = subprocess.run([sys.executable, tmp_path / "killed.py"], capture_output=True, text=True, timeout=600)
    # a process of its own keeps the pipe open as long as it lives, so this line is reached when it has ended
    assert (command.returncode, command.stdout) == (-signal.SIGKILL, "at work\n"), command.stderr


@pytest.mark.parametrize(
    ("parallel", "gpus", "shares"),
    [
        (1, 8, [{}]),
        (2, 8, [{"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}]),
        (3, 2, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "010"]),
        (2, 0, [{"OMP_NUM_THREADS": "3"}] * 2),
    ],
)
def test_each_of_several_jobs_has_its_gpus_or_its_share_of_the_cores(parallel, gpus, shares, monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [Share(slot, parallel).environment(gpus, 6) for slot in range(parallel)] == shares


def test_a_job_beside_which_no_other_runs_has_all_cores_and_its_own_gpus(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Share(0, 2, alone=True).environment(0, 6) == {}
    assert Share(0, 2, alone=True).environment(8, 6) == Share(0, 2).environment(8, 6)
    seen: list[tuple[str, bool]] = []
    with pool(2) as submit:
        submit(lambda: seen.append(("beside", share().alone))).result()
        submit(run_alone, lambda: seen.append(("alone", share().alone))).result()
        submit(lambda: seen.append(("behind", share().alone))).result()
    assert seen == [("beside", False), ("alone", True), ("behind", False)]


def test_what_the_user_has_set_is_shared_out(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert Share(1, 2).environment(2, 6) == {"CUDA_VISIBLE_DEVICES": "7"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Share(1, 2).environment(0, 6) == {"OMP_NUM_THREADS": "1"}


def test_jobs_that_run_at_one_time_have_different_shares_and_a_job_alone_the_machine() -> None:
    both = threading.Barrier(2, timeout=600)

    def slot() -> Share:
        both.wait()
        return share()

    with pool(2) as submit:
        assert {future.result().slot for future in [submit(slot), submit(slot)]} == {0, 1}
    with pool(1) as submit:
        assert submit(share).result() == Share(0, 1)
