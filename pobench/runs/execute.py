"""Running a plan: each task in a process of its own, one or several at a time; a failed one leaves the others running."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pobench.errors import PobenchError
from pobench.locks import HeldError, hold
from pobench.printing import say
from pobench.results.run_folder import RunFolder
from pobench.runs import rehearsal
from pobench.runs.children import SERVER_GONE as SERVER_GONE
from pobench.runs.children import run_each, start_server
from pobench.runs.command import Writing, command_file
from pobench.runs.executor import Executor, make_executor
from pobench.runs.jobs import note_shared
from pobench.runs.launch import environment, launch, machines, process_count
from pobench.runs.opponents import START, with_opponents
from pobench.runs.plan import Plan, check_disk, make_plan
from pobench.runs.processes import ended_file
from pobench.runs.stages import BY_NAME, DEFAULT
from pobench.runs.task import Task
from pobench.runs.worker import run
from pobench.settings.job import Job
from pobench.settings.resolve import resolve
from pobench.shards import Share, forget_claims
from pobench.sources import OFFLINE, work_offline
from pobench.training.leaving import INTERRUPTED

LOCK = ".lease"  # in a setting's folder of runs, while a command is at work there
SLOW_IMPORTS = ("fastchat.llm_judge.common",)  # of optional packages


@dataclass(frozen=True)
class Outcome:
    """How a run ended. status: "finished" (now), "skipped" (nothing was left), "failed"; "submitted" where the command does not
    wait for it."""

    run: str
    title: str
    status: str
    reason: str = ""


def execute(
    plan: Plan,
    *,
    executor: Executor | None = None,
    detach: bool = False,
    announce: Callable[[str], None] = lambda text: None,
    held: Collection[Path] = (),
    later: Sequence[Plan] = (),
) -> list[Outcome]:
    """Run what is left, each task in a process of its own. If a task fails, those that need its result fail too, and the
    others run.

    executor: where they run; default: on this machine, one at a time. detach: return once the jobs are with the executor.
    held: folders in which the caller itself keeps other commands out (`alone`). later: plans that the caller executes next.

    Raises PobenchError when another command is at work in the same folder, or the disk is too small; KeyboardInterrupt.
    """
    executor = executor or make_executor("local", {})
    left, writing = plan.left, Writing.at(command_file(plan))
    outcomes = {t.run: Outcome(t.run, t.title, "skipped") for t in plan.tasks if t.kind != "reference"}
    if left:
        check_disk(plan)

    def ended(task: Task, why: str | None) -> None:
        writing.ended(task, why)
        if task.kind != "reference" and outcomes[task.run].status != "failed":
            outcomes[task.run] = Outcome(task.run, task.title, "failed" if why else "finished", why or "")

    with contextlib.ExitStack() as locks:
        folders = dict.fromkeys(t.data if t.kind == "sft" else t.runs / t.job.setting for t in left)
        for folder in [folder for folder in folders if folder not in held]:
            locks.enter_context(alone(folder))
        for pairs in filter(None, (plan.pairs, *plan.round_pairs)):
            pairs.store()  # also where nothing is left: damaged pairs, and those that other code had read
        for path in plan.damaged:
            _set_aside(path)
        _point_to(plan)
        _forgive_what_is_done(plan, left)
        with writing.until_its_end() if left else contextlib.nullcontext():
            left = writing.plan(plan, later, executor.name, getattr(executor, "parallel", 1)) if left else []
            executor.begin(left, announce, ended)
            if plan.root is not None and executor.name != "local":
                note_shared(plan.root, left)
    if not detach:
        executor.wait(ended)
        return list(outcomes.values())
    under_way = {t.run for t in left}
    return [replace(o, status="submitted") if o.run in under_way else o for o in outcomes.values()]


def plan_and_execute(
    make: Callable[[], Plan], run: Callable[[Plan], list[Outcome]] = execute
) -> tuple[Plan, list[Outcome]]:
    """Make a plan and run it; while more stands behind what its tasks make, plan once more with that, and run it. What has
    failed is not tried again. Returns the plan that was made last, and how every task ended."""
    plan = make()
    outcomes = {outcome.run: outcome for outcome in run(plan)}
    tried = {(task.run, task.stages) for task in plan.left}
    while plan.waits and not any(outcome.status == "submitted" for outcome in outcomes.values()):
        later = make().without([run for run, outcome in outcomes.items() if outcome.status == "failed"])
        new = {(task.run, task.stages) for task in later.left} - tried
        if later.waits and not new:  # all that could go on has failed
            break
        plan, tried = later, tried | new
        ended = {outcome.run: outcome for outcome in run(plan)}
        outcomes |= {
            run: outcome for run, outcome in ended.items() if run not in outcomes or outcome.status == "failed"
        }
    return plan, list(outcomes.values())


def _forgive_what_is_done(plan: Plan, left: Collection[Task]) -> None:
    """Forget the failure of a process that was killed behind its last result: nothing of its run is left to do."""
    unfinished = {task.run for task in left}
    for task in plan.tasks:
        if task.kind not in ("reference", "sft") and task.run not in unfinished:
            RunFolder(task.runs, task.run).forgive()


def _set_aside(path: Path) -> None:
    """Keep what may not be used under another name."""
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)
    if path.exists():
        path.rename(aside)


def _point_to(plan: Plan) -> None:
    """Write each run's values, and which of its results this command names: those that are there, and those that it makes.
    Other stored results stay."""
    for name, tasks in plan.runs.items():
        task = tasks[0]
        folder = RunFolder(task.runs, name)
        if task.kind == "pair" and task.nodes:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.show({stage: node.name for stage, node in task.nodes.items()})
        if task.kind not in ("start", "loss") or not task.nodes:
            continue
        if not folder.path.is_dir() and not any(t.stages for t in tasks):
            continue  # nothing is stored, and nothing will be
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_config(task.job, task.kind, task.start)
        for error in folder.unread:
            say(f"{error}; it is set aside")
            _set_aside(error.path)
        nodes = {name: node.name for name, node in task.nodes.items() if ":" not in name}
        left = {stage for each in tasks for stage in each.stages}
        named = {stage: node for stage, node in nodes.items() if stage in left or folder.node(node).finished}
        folder.show(named, without=nodes.keys() - named.keys())


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Raises PobenchError where another command is at work in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with hold(folder / LOCK):
            yield
    except HeldError as held:
        raise PobenchError(
            f"another command is at work in {str(folder)!r} ({held.holder}); wait for it, or use another --runs"
        ) from None


def do_task(task: Task) -> str | None:
    """Run a task in a process of its own. Returns why it failed, or None."""
    _begin(task)
    if task.command:
        task = Writing.at(Path(task.command)).began(task)
    return why_failed(task, _launch(task) if process_count() > 1 else _fork(task))


def do_task_here(task: Task) -> str | None:
    """The same in this process, unless several processes share it."""
    _begin(task)
    several = process_count() > 1 or (is_shared(task) and machines() is not None)
    return why_failed(task, _launch(task) if several and (is_shared(task) or is_cut(task)) else run(task))


def _begin(task: Task) -> None:
    """Forget what an earlier attempt left: why it failed, and what its processes had taken."""
    folder = RunFolder(task.runs, task.run)
    folder.forgive()
    forget_claims(folder.path)


def is_cut(task: Task) -> bool:
    """Whether any number of processes can do the task, shard by shard."""
    return any(BY_NAME[stage].cut for stage in task.stages)


def why_failed(task: Task, status: int) -> str | None:
    """What the exit status of a task's process comes to: the reason why it failed, or None. Raises KeyboardInterrupt."""
    folder = RunFolder(task.runs, task.run)
    if status in (INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):  # the others where it had not begun to listen
        raise KeyboardInterrupt
    if status == 0:
        return None
    if status == SERVER_GONE:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.fail(
            "the server that starts processes was killed, and its processes ended with it; the same command goes on"
        )
    elif status < 0:
        hint = ": the system may have run out of memory" if status == -9 else ""
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.fail(f"killed by signal {-status}{hint}")
    return folder.failure or f"exit status {status}"


def _fork(*tasks: Task) -> int:
    """Run the tasks at one time, each in a child. Returns the status of the first task, or that of another one that fails; then
    all end."""
    # The server may be older than what this command has found out about the hub (`ask_hub`).
    offline = {OFFLINE: os.environ[OFFLINE]} if OFFLINE in os.environ else {}
    return run_each(_in_child, [(task, {**environment(), **offline}) for task in tasks], _imported_once())


def _imported_once() -> list[str]:
    """What the server imports that forks the children. If the checks before the plan have imported the slow ones, every child
    needs them too, and would take seconds to do so."""
    return [__name__, *(name for name in SLOW_IMPORTS if name in sys.modules)]


def expect_tasks(jobs: Sequence[Job]) -> None:
    """Called before a plan is made of the jobs: the server that forks their processes imports while that is done. Not where
    benchmarks may want more of it than is known by then."""
    if process_count() == 1 and not any(job.benchmarks for job in jobs):
        start_server(_imported_once())


def _in_child(task: Task, variables: dict[str, str]) -> int:
    os.environ.update(variables)
    if "OMP_NUM_THREADS" in variables:  # torch, which the server has imported, has read the variable
        import torch

        torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    if variables.get(OFFLINE) == "1":  # likewise the hub's client
        work_offline()
    if task.share.world > 1:
        _keep_to_share(task.share)
    return run(task)


def _keep_to_share(share: Share) -> None:
    """Let this process see its GPU alone, or use its part of the threads. Called before the first use of a device."""
    import torch

    known = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = known or [str(i) for i in range(share.world)]
    os.environ["CUDA_VISIBLE_DEVICES"] = names[share.rank % len(names)]
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // share.world))


def _launch(task: Task) -> int:
    """Run the task in a process a device: those of a training job, if its stages are shared; those that take shards, if they
    are cut by rows. Else in a child."""
    if is_cut(task):
        count = process_count()
        return _fork(*(replace(task, share=Share(rank, count)) for rank in range(count)))
    if not is_shared(task):
        return _fork(task)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "task.json"
        task.dump(path)
        status = launch("pobench.runs.worker", path)
        if (ended := ended_file(path)).is_file():  # the others may have written how they lost the one that was killed
            RunFolder(task.runs, task.run).fail(ended.read_text(encoding="utf-8"))
        return status


def is_shared(task: Task) -> bool:
    """Whether the processes of a training job work on it together."""
    return all(BY_NAME[stage].shared for stage in task.stages)


def run_setting(
    losses: str | Sequence[str],
    setting: str = "smollm2",
    *,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    data: str | None = None,
    model: str | None = None,
    runs: str | Path = "runs",
    stages: Sequence[str] = DEFAULT,
    opponents: str = START,
    rounds: int = 1,
    rehearse: bool = False,
    executor: str = "local",
    executor_settings: Mapping[str, Any] | None = None,
) -> list[Outcome]:
    """`pobench run` from Python: plan and execute. `load_frames(runs)` reads the results.

    losses, setting, seeds, overrides ("train.lr" → value), data, model, runs, stages, opponents, rounds: as on the command
    line; rounds need the stage `onpolicy`.
    rehearse: on stand-ins, see `pobench.runs.rehearsal`; below `runs/rehearsal`. executor, executor_settings: as `--executor`
    and `--executor-set`.
    Raises PobenchError that lists every fault of names, keys, values and data.
    """
    names, opponents = with_opponents(losses, opponents)
    jobs = resolve(setting, names, seeds=seeds, overrides=overrides, data=data, model=model)
    if rehearse:
        jobs, runs = rehearsal.rehearse(jobs, stages), Path(runs) / "rehearsal"
    where = make_executor(executor, executor_settings or {})

    def run_plan(plan: Plan) -> list[Outcome]:
        return execute(plan, executor=where)

    return plan_and_execute(lambda: make_plan(jobs, Path(runs), stages, opponents=opponents, rounds=rounds), run_plan)[
        1
    ]
