"""Jobs that are given away: submitted once, behind what they read; what becomes of those that fail or are lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pobench.errors import PobenchError
from pobench.registry import ExecutorType, executors
from pobench.results.run_folder import RunFolder
from pobench.runs import job as node
from pobench.runs.detached import rotate
from pobench.runs.execute import execute
from pobench.runs.executor import make_executor
from pobench.runs.jobs import JobFolder, claim_task, newest, place_of, under_way
from pobench.runs.remote import Remote, Uses
from pobench.runs.task import Task


class Fake(Remote):
    """A cluster of one place: each look at it ends the job that is next, if what it waits for has ended."""

    name: ClassVar[str] = "fake"
    seconds: ClassVar[float] = 0.0
    queue: ClassVar[dict[str, tuple[JobFolder, list[str]]]] = {}
    done: ClassVar[list[str]] = []
    uses: ClassVar[list[Uses]] = []
    stands: ClassVar[bool] = False  # whether the queue does not move
    loses: ClassVar[str] = ""  # the beginning of a job that is killed without a word

    partition: str = "main"

    def submit(self, job: JobFolder, after: Sequence[str], uses: Uses) -> str:
        self.uses.append(uses)
        if self.partition == "nowhere":
            raise PobenchError("invalid partition")
        id = str(len(self.queue) + len(self.done) + 1)
        self.queue[id] = (job, list(after))
        return id

    def states(self, ids: Sequence[str]) -> Mapping[str, str]:
        free = [id for id, (_, after) in self.queue.items() if not set(after) & set(self.queue)]
        if free and not self.stands:
            job, _ = self.queue.pop(free[0])
            self.done.append(job.path.parent.name)
            if not (self.loses and str(job).startswith(self.loses)):
                node.work(job)
        return {id: "running" for id in ids if id in self.queue}

    def cancel(self, ids: Sequence[str]) -> None:
        for id in ids:
            self.queue.pop(id, None)


@pytest.fixture
def fake(monkeypatch) -> type[Fake]:
    executors.names()
    monkeypatch.setitem(executors._items, "fake", ExecutorType("fake", Fake))
    monkeypatch.setitem(executors._aliases, "fake", "fake")
    for name, value in {"queue": {}, "done": [], "uses": [], "stands": False, "loses": ""}.items():
        monkeypatch.setattr(Fake, name, value)
    monkeypatch.setattr(node, "LATE", 0.0)
    monkeypatch.setattr(node, "do_task_here", do)
    return Fake


def do(task: Task) -> str | None:
    """In place of the stages: the training of `dpo` fails."""
    folder = RunFolder(task.runs, task.run)
    folder.path.mkdir(parents=True, exist_ok=True)
    if task.job.loss == "dpo" and "train" in task.stages:
        folder.fail("out of memory")
        return "out of memory"
    return None


def given(plan: Any, **how: Any) -> tuple[dict[str, Any], list[str]]:
    """(title → outcome, what was announced) of a plan that a fake executor runs."""
    texts: list[str] = []
    outcomes = execute(plan, executor=make_executor("fake", {}), announce=texts.append, **how)
    return {outcome.title.partition(",")[0].casefold(): outcome for outcome in outcomes}, texts


def test_jobs_run_behind_what_they_read_and_fail_as_they_do_on_one_machine(plan_here, fake) -> None:
    plan = plan_here("simpo,dpo")
    outcomes, _ = given(plan)
    done = [name.partition("-")[0] + name[name.rindex(".") :] for name in fake.done]
    assert done == ["pass.reference", "start.evaluate", *("simpo.train", "simpo.evaluate", "dpo.train", "dpo.evaluate")]
    assert fake.uses == [Uses.NODES, Uses.NODE, *(Uses.NODES, Uses.NODE) * 2], "trained over nodes, evaluated on one"
    assert (outcomes["simpo"].status, outcomes["dpo"].status) == ("finished", "failed")
    assert outcomes["dpo"].reason == "out of memory"
    (evaluation,) = plan.tasks[-1].runs.glob("small/jobs/dpo-*.evaluate/1")
    assert JobFolder(evaluation).read("ended")["reason"] == "out of memory", "it has nothing to evaluate, and says why"


def test_a_second_command_submits_nothing_and_says_what_is_under_way(plan_here, fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "stands", True)
    plan = plan_here("simpo")
    outcomes, texts = given(plan, detach=True)
    assert {outcome.status for outcome in outcomes.values()} == {"submitted"} and len(texts) == len(plan.left)
    _, again = given(plan_here("simpo"), detach=True)
    assert len(again) == len(texts) and all("under way: waiting" in text for text in again)
    assert len(fake.queue) == len(plan.left)
    _, more = given(plan_here("simpo,kto"), detach=True)
    assert len(fake.queue) == len(plan.left) + 3, (
        "kto's own three jobs: reference sums of other answers, training, evaluation"
    )
    assert sum("under way" in text for text in more) == len(plan.left) - 1
    job = newest(place_of(next(task for task in plan.left if task.kind == "reference")))
    assert job is not None and job.path.name == "2" and fake.queue[job.id][1] == ["1"], (
        "behind the pass that lacks them"
    )


def test_a_command_that_is_stopped_leaves_its_jobs_under_way(plan_here, fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "stands", True)
    plan, executor = plan_here("simpo"), make_executor("fake", {})
    texts: list[str] = []

    def announce(text: str) -> None:
        texts.append(text)
        if len(texts) == len(plan.left):
            threading.Thread(target=executor.stop).start()

    with pytest.raises(KeyboardInterrupt):
        execute(plan, executor=executor, announce=announce)
    assert len(fake.queue) == len(plan.left) and not fake.done
    assert type(executor.fresh()) is fake and executor.fresh() is not executor


def test_of_two_commands_at_one_time_one_submits_the_job(plan_here, fake) -> None:
    task = plan_here("simpo").left[0]
    seen = newest(place_of(task))
    first, second = (claim_task(task, seen, (), executor="fake", settings={}) for _ in range(2))
    assert first is not None and second is None
    assert [(t.run, job) for t, job, state in under_way([task], "fake")] == [(task.run, first)]


def test_jobs_that_are_under_way_elsewhere_are_not_done_here(plan_here, fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "stands", True)
    given(plan_here("simpo"), detach=True)
    with pytest.raises(PobenchError, match=r"is under way at fake \(waiting.*pobench cancel"):
        execute(plan_here("simpo"))


def test_a_lost_job_is_named_and_the_same_command_makes_another_attempt(plan_here, fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "loses", "simpo")
    outcomes, _ = given(plan_here("simpo", ("train",)))
    assert outcomes["simpo"].status == "failed" and "lost: fake no longer knows" in outcomes["simpo"].reason
    monkeypatch.setattr(fake, "loses", "")
    plan = plan_here("simpo", ("train",))
    outcomes, _ = given(plan)
    assert outcomes["simpo"].status == "finished"
    place = place_of(plan.tasks[-2])
    assert sorted(path.name for path in place.iterdir()) == ["1", "2"]
    assert node.work(JobFolder(place / "1")) == 0 and not JobFolder(place / "1").read("started"), "it comes too late"


def test_what_waits_for_a_lost_job_is_submitted_again_behind_the_new_attempt(plan_here, fake, monkeypatch) -> None:
    monkeypatch.setattr(fake, "loses", "simpo")
    given(plan_here("simpo", ("train", "heldout")), detach=True)
    for _ in range(3):
        fake().states(())  # the reference pass, the start model's evaluation, and the training, which is lost
    monkeypatch.setattr(fake, "stands", True)
    given(plan_here("simpo", ("train", "heldout")), detach=True)
    monkeypatch.setattr(fake, "stands", False)
    monkeypatch.setattr(fake, "loses", "")
    names = {id: str(job).partition(".")[2] for id, (job, _) in fake.queue.items() if str(job).startswith("simpo")}
    assert sorted(names.values()) == ["evaluate/1", "evaluate/2", "train/2"]
    after = {name: [names[other] for other in fake.queue[id][1] if other in names] for id, name in names.items()}
    assert after["evaluate/2"] == ["train/2", "evaluate/1"]
    outcomes, _ = given(plan_here("simpo", ("train", "heldout")))
    assert outcomes["simpo"].status == "finished"


def test_what_another_attempt_has_finished_is_not_done_again(plan_here, fake, monkeypatch) -> None:
    plan = plan_here("simpo", ("train",))
    execute(plan)
    task = next(task for task in plan.tasks if "train" in task.stages)
    job = claim_task(task, None, (), executor="fake", settings={})
    monkeypatch.setattr(node, "do_task_here", lambda task: pytest.fail("trained again"))
    assert job is not None and node.work(job) == 0 and job.read("ended")["status"] == "finished"


def test_a_job_that_is_refused_stops_the_command_and_says_how_far_it_came(plan_here, fake) -> None:
    with pytest.raises(PobenchError, match=r"invalid partition\n0 jobs are under way"):
        execute(plan_here("simpo"), executor=make_executor("fake", {"partition": "nowhere"}))
    given(plan_here("simpo"))  # the refused attempt keeps no other from being made


def test_status_and_cancel_say_what_is_under_way(plan_here, fake, monkeypatch, pobench_cli) -> None:
    monkeypatch.setattr(fake, "stands", True)
    plan = plan_here("simpo,dpo")
    given(plan, detach=True)
    runs = str(plan.tasks[-1].runs)
    status, out, _ = pobench_cli("status", "--runs", runs)
    assert status == 0 and out.startswith(f"{len(plan.left)} waiting") and "fake 1" in out
    status, out, err = pobench_cli("cancel", "--runs", runs, "nothing")
    assert status == 2 and "no job of 'nothing' is under way" in err
    status, out, _ = pobench_cli("cancel", "--runs", runs, "dpo")
    assert status == 0 and out.count("cancelled: dpo") == 2
    monkeypatch.setattr(fake, "stands", False)
    for _ in fake.queue.copy():
        fake().states(())
    status, out, _ = pobench_cli("status", "--runs", runs)
    assert status == 0 and "4 finished" in out.splitlines()[0] and "2 cancelled" in out.splitlines()[0]
    given(plan_here("dpo"))
    status, out, _ = pobench_cli("status", "--runs", runs)
    assert status == 1 and out.count("out of memory") == 2
    status, out, _ = pobench_cli("status", "--runs", runs, "--json")
    row = next(row for row in json.loads(out) if row["job"].endswith("train/2"))
    assert (row["state"], row["reason"], row["attempt"], row["times"]) == ("failed", "out of memory", 2, 1)


def test_jobs_that_lie_in_the_cache_are_shown_below_the_runs_of_each_command_that_needs_them(
    plan_here, fake, monkeypatch, tmp_path, pobench_cli
) -> None:
    monkeypatch.setattr(fake, "stands", True)
    plan = plan_here("dpo")
    alone = replace(plan, tasks=tuple(task for task in plan.tasks if task.kind == "reference"))  # as `--stages sft`
    assert "no jobs were submitted" in pobench_cli("status", "--runs", str(tmp_path / "runs"))[1]
    for runs in ("runs", "others"):
        given(replace(alone, root=tmp_path / runs), detach=True)
        assert pobench_cli("status", "--runs", str(tmp_path / runs))[1].startswith("1 waiting")
    assert len(fake.queue) == 1
    assert "cancelled: reference pass" in pobench_cli("cancel", "--runs", str(tmp_path / "others"))[1]


def test_there_is_nothing_to_show_or_to_cancel_below_an_empty_folder(pobench_cli) -> None:
    assert "no jobs were submitted" in pobench_cli("status")[1]
    assert "nothing is under way" in pobench_cli("cancel")[1]


def test_no_file_of_a_job_holds_a_key(plan_here, fake, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret")
    plan = plan_here("simpo", ("train",))
    given(plan)
    files = [path for path in Path(plan.tasks[-1].runs).rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"sk-a-secret" in path.read_bytes()]


def test_a_log_that_has_grown_large_begins_anew_and_what_it_held_stays_once(tmp_path: Path) -> None:
    log = tmp_path / "command_log.err"
    with log.open("ab", buffering=0) as file:
        for text in (b"first", b"second", b"third"):
            file.write(text)
            rotate(log, most=4)
        file.write(b"on")
    assert (log.read_bytes(), log.with_name("command_log.err.old").read_bytes()) == (b"on", b"third")
    rotate(log, most=4)
    assert log.read_bytes() == b"on"
