"""Does a job, where an executor has put it: `python -m pobench.runs.job FOLDER`."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

from pobench.printing import say
from pobench.registry import load_plugin
from pobench.results.run_folder import RunFolder
from pobench.runs.content import auto_precision
from pobench.runs.edges import lacking
from pobench.runs.execute import do_task_here
from pobench.runs.jobs import JobFolder
from pobench.runs.nodes import still_left
from pobench.runs.task import Task
from pobench.training import leaving

LATE = 60.0  # seconds until another machine's file is seen on a network file system, at the latest


def work(job: JobFolder, main: bool = True) -> int:
    """Do what is left of a job, and record how it ended. Returns the exit status: 0; 1, with the reason in `ended.json`;
    `INTERRUPTED`, with nothing recorded, where the system asks for its end and it may begin again.

    main: whether this machine, of several that share the job, is the one that records.
    """
    with leaving.listening():
        if job.superseded:
            return _stand_back(job)
        if main:
            job.restart(host=socket.gethostname(), pid=os.getpid())
        os.chdir(job.about["folder"])  # paths of data and models may be relative to it
        task = job.task
        try:
            for plugin in task.plugins:
                load_plugin(plugin)
            why = lacking(task, _not_made(job)) or _other_arithmetic(task)
            if job.superseded:
                return _stand_back(job)
            if why is not None:
                RunFolder(task.runs, task.run).fail(why)
            elif (left := still_left(task)).stages:
                why = do_task_here(left)
        except KeyboardInterrupt:
            return leaving.INTERRUPTED
        except Exception as error:
            say(traceback.format_exc())
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if main:
            job.end("failed" if why else "finished", why or "")
            say(f"{task.title}: {why or 'finished'}")
        return 1 if why else 0


def _stand_back(job: JobFolder) -> int:
    job.end("cancelled", "a later attempt took its place")
    return 0


def _other_arithmetic(task: Task) -> str | None:
    """Why this machine's results would not be those that the task names: `auto` comes to another precision here."""
    planned = task.causes.get("precision") or task.causes.get("train", {}).get("precision")
    if task.job.train.precision != "auto" or planned is None or planned == (here := auto_precision()):
        return None
    return (
        f"planned in {planned}, and this node computes in {here}: name the precision, --set train.precision={here} "
        f"--set answers.precision={here}, or submit from a machine like the nodes"
    )


def _not_made(job: JobFolder) -> list[tuple[Task, str]]:
    """The tasks that the job waited for and whose results are not there, and why."""
    failed = []
    for before in job.waits_for:
        began = time.monotonic()
        while not before.read("ended") and time.monotonic() - began < LATE and not job.superseded:
            time.sleep(1.0)
        ended = before.read("ended") or {"status": "lost", "reason": f"the job {before} was lost"}
        if ended["status"] != "finished" and still_left(before.task).stages:
            failed.append((before.task, ended["reason"] or f"the job {before} was {ended['status']}"))
    return failed


def _end_with_standard_input() -> None:
    """End this process, and all that it has started, as soon as the one that started it is gone: it would go on beside the next
    attempt."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    _end_with_standard_input()
    sys.exit(work(JobFolder(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
