"""This machine: each task in a process of its own, one or several at a time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from pobench.errors import PobenchError
from pobench.registry import register_executor
from pobench.results.run_folder import RunFolder
from pobench.runs.edges import lacking, ready, stages_of
from pobench.runs.execute import do_task, expect_tasks
from pobench.runs.executor import Ended, Executor
from pobench.runs.jobs import under_way
from pobench.runs.pool import lives, now, pool, run_alone
from pobench.runs.task import Task
from pobench.settings.job import Job


@register_executor("local")
class Local(Executor):
    """parallel: tasks that run at one time, each with its share of the machine; one beside which no other can run has all
    cores. A job that outlives its command is a whole command (`pobench.runs.detached`); its id is `<host>:<process>`."""

    parallel: int = 1

    def expect(self, jobs: Sequence[Job]) -> None:
        expect_tasks(jobs)

    def begin(self, tasks: Sequence[Task], announce: Callable[[str], None], ended: Ended) -> None:
        """Run the tasks in order, as many at one time as may be. The folders are ours until the last has ended."""
        under_way(tasks, self.name)
        waiting = list(tasks)
        running: dict[Future[Any], Task] = {}
        failed: list[tuple[Task, str]] = []
        with pool(self.parallel) as submit:
            while waiting or running:
                while len(running) < self.parallel and (task := ready(waiting, running.values())) is not None:
                    waiting.remove(task)
                    if (why := lacking(task, failed)) is not None:
                        RunFolder(task.runs, task.run).fail(why)
                        running[now(lambda why: why, why)] = task
                    else:
                        place = f"{task.number} · " if task.number else ""
                        announce(f"{place}{task.title}{stages_of(task)}  →  {task.runs / task.run}")
                        alone = not running and ready(waiting, [task]) is None
                        running[submit(run_alone, do_task, task) if alone else submit(do_task, task)] = task
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task, why = running.pop(future), future.result()
                    if why is not None:
                        failed.append((task, why))
                    ended(task, why)

    def states(self, ids: Sequence[str]) -> Mapping[str, str]:
        return {id: "running" for id in ids if lives(self._process(id))}

    def cancel(self, ids: Sequence[str]) -> None:
        for id in ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process(id), signal.SIGTERM)

    def _process(self, id: str) -> int:
        host, _, number = id.rpartition(":")
        if host != socket.gethostname():
            raise PobenchError(f"it runs on {host}, and can be asked there alone")
        return int(number)
