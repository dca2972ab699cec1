"""Running a plan: each task in a process of its own; a failed one leaves the others running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pobench.errors import PobenchError
from pobench.model.device import layout_of_devices
from pobench.results.run_folder import RunFolder
from pobench.runs.plan import Plan, check_disk, make_plan
from pobench.runs.rehearsal import rehearse as stand_ins
from pobench.runs.task import INTERRUPTED, STAGES, Task
from pobench.runs.worker import run
from pobench.settings.resolve import resolve

SLOW_IMPORTS = ("fastchat.llm_judge.common",)  # of optional packages


@dataclass(frozen=True)
class Outcome:
    """How a task ended. status: "finished" (now), "skipped" (was finished), "failed"."""

    run: str
    title: str
    status: str
    reason: str = ""


def execute(plan: Plan, *, announce: Any = lambda text: None) -> list[Outcome]:
    """Run what is left, one task after the other, each in a process of its own. A failed task leaves the others running.

    Raises PobenchError when another command is at work in the same folder, or the disk is too small; KeyboardInterrupt.
    """
    left = plan.left
    outcomes = {t.run: Outcome(t.run, t.title, "skipped") for t in plan.tasks if t not in left}
    if left:
        check_disk(plan)
    for kinds in (("sft",), ("start", "loss")):
        tasks = [t for t in left if t.kind in kinds]
        if not tasks:
            continue
        with _alone(tasks[0].data if kinds == ("sft",) else tasks[0].runs / tasks[0].job.setting):
            if plan.prepared is not None and kinds != ("sft",):
                plan.prepared.save(tasks[0].data)
            for task in tasks:
                announce(f"{task.title}  →  {task.runs / task.run}")
                outcomes[task.run] = _one(task)
        lacking = [o for o in outcomes.values() if o.status == "failed"] if kinds == ("sft",) else []
        if lacking:
            missed = f"its start model could not be made: {lacking[0].reason}"
            outcomes |= {t.run: Outcome(t.run, t.title, "failed", missed) for t in left if t.kind != "sft"}
            break
    return [outcomes[t.run] for t in plan.tasks]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises PobenchError where another command is at work in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout:
        raise PobenchError(
            f"another `pobench run` is at work in {str(folder)!r}; wait for it, or use another --runs"
        ) from None


def _one(task: Task) -> Outcome:
    folder = RunFolder(task.runs, task.run)
    (folder.path / "failed.json").unlink(missing_ok=True)
    status = _launch(task) if _devices() > 1 else _fork(task)
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == 0:
        return Outcome(task.run, task.title, "finished")
    if status < 0:
        hint = ": the system may have run out of memory" if status == -9 else ""
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.fail(f"killed by signal {-status}{hint}")
    return Outcome(task.run, task.title, "failed", folder.failure or f"exit status {status}")


def _fork(task: Task) -> int:
    """A child forked from a server that has imported everything and computed nothing: a clean process in no time."""
    context = multiprocessing.get_context("forkserver")
    # What the checks before the plan have had to import, every child needs too; it would take each of them seconds.
    context.set_forkserver_preload(["pobench.runs.worker", *(name for name in SLOW_IMPORTS if name in sys.modules)])
    child = context.Process(target=_child, args=(task,))
    child.start()
    try:
        child.join()
    except BaseException:
        child.terminate()
        child.join(20)
        child.kill()
        raise
    return child.exitcode if child.exitcode is not None else 1


def _child(task: Task) -> None:
    sys.exit(run(task))


def _devices() -> int:
    return layout_of_devices()[0]


def _launch(task: Task) -> int:
    """`accelerate launch`, following the user's `accelerate config`; the start model is evaluated by one process."""
    if task.kind == "start":
        return _fork(task)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "task.json"
        task.dump(path)
        return launch("pobench.runs.worker", path)


def launch(module: str, file: Path) -> int:
    """`python -m module file` as every process of a training job; the exit status."""
    import torch

    if torch.cuda.is_available() or not os.environ.get("POBENCH_PROCESSES"):
        command = ["accelerate.commands.launch", "--num_processes", str(_devices())]
    else:  # on CPUs `accelerate launch` wants MPI; torch's own launcher does without
        command = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(_devices())]
    return subprocess.call([sys.executable, "-m", *command, "-m", module, str(file)])


def run_setting(
    losses: str | Sequence[str],
    setting: str = "smollm2",
    *,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    data: str | None = None,
    model: str | None = None,
    runs: str | Path = "runs",
    stages: Sequence[str] = STAGES,
    rehearse: bool = False,
) -> list[Outcome]:
    """`pobench run` from Python: plan and execute; `load_frames(runs)` reads what came of it.

    losses, setting, seeds, overrides ("train.lr" → value), data, model, runs, stages: as on the command line.
    rehearse: on stand-ins, see `pobench.runs.rehearsal`; below `runs/rehearsal`.
    Raises PobenchError that lists every fault of names, keys, values and data.
    """
    jobs = resolve(setting, losses, seeds=seeds, overrides=overrides, data=data, model=model)
    if rehearse:
        jobs, runs = stand_ins(jobs), Path(runs) / "rehearsal"
    return execute(make_plan(jobs, Path(runs), stages))
