"""Does the stages of one task, in order, in a process of its own.

Started by `execute` as a forked child, or on several devices as each process of a job (`processes`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from pobench.errors import CorruptError, PobenchError, reason_of
from pobench.locks import HeldError, hold
from pobench.model.device import PART_OF_A_MACHINE, environment
from pobench.printing import say
from pobench.progress import standing
from pobench.registry import load_plugin
from pobench.results.run_folder import RunFolder
from pobench.results.scores import scores_of
from pobench.runs.command import standing_of
from pobench.runs.context import Context
from pobench.runs.stages import BY_NAME
from pobench.runs.task import Task
from pobench.shards import POLL
from pobench.training import leaving

LOCK = ".worker.lease"  # in a run's folder, while a process is at work there
PATIENCE = 10.0  # seconds; one whose command was killed ends in less


def run(task: Task) -> int:
    """Do the stages of a task. Returns the exit status: 0; 1 with the reason in the run folder's `failed.json`; `INTERRUPTED`,
    also where the system asked the process to leave."""
    if not os.environ.get("POBENCH_DEBUG"):  # pobench prints its own progress and messages
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it where it is installed
        warnings.filterwarnings("ignore")
    folder = RunFolder(task.runs, task.run)
    try:
        with leaving.listening(), _alone(task):
            for plugin in task.plugins:
                load_plugin(plugin)
            with standing(standing_of(task)):
                _work(task)
        return 0
    except KeyboardInterrupt:
        return leaving.INTERRUPTED
    except Exception as error:
        try:
            if _first_to_fail(folder):
                _keep_traceback(folder, error)
                folder.fail(reason_of(error))
        except OSError:  # nothing can be written there: the disk is full, or the folder is gone
            say(f"{task.title}: {reason_of(error)}")
        return 1


@contextlib.contextmanager
def _alone(task: Task) -> Iterator[None]:
    """Keep other processes out of the run's folder; of those that share the task, the first holds it for all. A reference pass,
    which several commands may need, waits for the other one. Raises PobenchError that names who is at work there."""
    folder = task.runs / task.run
    if not task.share.first or int(os.environ.get("RANK", "0")):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with hold(folder / LOCK, wait=task.kind == "reference", patience=PATIENCE):
            yield
    except HeldError as held:
        raise PobenchError(f"another process writes {str(folder)!r} ({held.holder}); wait until it has ended") from None


def _first_to_fail(folder: RunFolder) -> bool:
    """Of several processes, the first knows why; the others only lose it."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or folder.failure is None


def _keep_traceback(folder: RunFolder, error: Exception) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    if not isinstance(error, PobenchError):
        (folder.path / "traceback.txt").write_text(traceback.format_exc())
    if os.environ.get("POBENCH_DEBUG"):
        say(traceback.format_exc())


def _of_all_attempts(context: Context) -> dict[str, Any]:
    """The environment of this attempt. What part of a machine the run had is left out where an earlier attempt, from whose
    checkpoint it goes on, had another: the seconds of both are added up."""
    now = environment(context.accelerator)
    if not any(context.folder.path.glob("checkpoint-*")):
        return now
    before: dict[str, Any] = {}
    with contextlib.suppress(CorruptError, OSError):
        before = context.folder.read_json("environment.json")
    if all(before.get(name) == now.get(name) for name in PART_OF_A_MACHINE):
        return now
    return {name: value for name, value in now.items() if name not in PART_OF_A_MACHINE}


def _work(task: Task) -> None:
    context = Context(task)
    if "train" in task.stages and context.main:
        context.folder.path.mkdir(parents=True, exist_ok=True)
        context.folder.write_json("environment.json", _of_all_attempts(context))
    failed = _each_stage(context)
    context.release()
    if task.share.first and task.kind in ("start", "loss") and "train" not in task.stages:
        if not context.folder.has("environment.json"):
            context.folder.write_json("environment.json", environment(context.accelerator))
        scores_of(task.runs, task.run)  # stored, so that a report need not compute them
    if failed:
        several = len(task.stages) > 1
        raise PobenchError("\n".join(f"{name}: {why}" if several else why for name, why in failed.items()))


def _each_stage(context: Context) -> dict[str, str]:
    """Do the stages in order. One that fails leaves those that do not read its result. Returns stage → why it failed."""
    failed: dict[str, str] = {}
    for name in context.task.stages:
        leaving.leave_if_asked()
        if any(stage in failed for stage in BY_NAME[name].reads):
            continue  # the reason is that of the stage it reads
        if not context.task.share.first:
            if not BY_NAME[name].cut:
                continue
            _wait_for(context, name)
        try:
            BY_NAME[name].run(context)
        except Exception as error:
            if _first_to_fail(context.folder):
                _keep_traceback(context.folder, error)
            failed[name] = reason_of(error)
        if name in failed:
            context.release()  # after the error, whose frames may hold the model
    return failed


def _wait_for(context: Context, name: str) -> None:
    """Until the first process has stored what the stage reads. Where that fails, this process is ended with it."""
    for read in BY_NAME[name].reads:
        if read in context.task.stages:
            while not context.stands(read, BY_NAME[read].read(context.task)):
                time.sleep(POLL)


def main() -> None:
    """`pobench.runs.rank` calls it with `TASK.json`, in each process of a job."""
    sys.exit(run(Task.load(Path(sys.argv[1]))))
