"""Executors that take jobs away: they are submitted, with the plan's edges, and end whether or not the command waits."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import ClassVar

from pydantic import PrivateAttr

from pobench.errors import PobenchError
from pobench.runs.edges import is_shared_by_runs, may_need, stages_of
from pobench.runs.execute import is_cut, is_shared
from pobench.runs.executor import Ended, Executor
from pobench.runs.jobs import JobFolder, State, claim_task, newest, place_of, states_of, under_way
from pobench.runs.task import Task

SECONDS_A_JOB = 0.01  # between two looks: each reads a file of every job
LOOKS = 3  # a job is lost that its executor has not known in so many looks: files of a network come late


class Uses(Enum):
    """What a job can use: every node that is named, all devices of one, or a single device."""

    NODES = "nodes"
    NODE = "node"
    DEVICE = "device"


def uses_of(task: Task) -> Uses:
    """Training processes meet over nodes; those that take shards of rows meet on one."""
    return Uses.NODES if is_shared(task) else Uses.NODE if is_cut(task) else Uses.DEVICE


class Remote(Executor):
    """What the executors of a cluster share. edges: whether it can be told what a job waits for; otherwise the command waits,
    and submits a job when what it reads is there. seconds: between two looks at the jobs."""

    edges: ClassVar[bool] = True
    seconds: ClassVar[float] = 10.0
    _waiting: list[Task] = PrivateAttr(default_factory=list)
    _jobs: dict[JobFolder, Task] = PrivateAttr(default_factory=dict)
    _seen: dict[Path, JobFolder | None] = PrivateAttr(default_factory=dict)
    _by_run: dict[str, list[JobFolder]] = PrivateAttr(default_factory=dict)  # "": what several runs share
    _order: dict[Path, int] = PrivateAttr(default_factory=dict)
    _behind: dict[Path, JobFolder] = PrivateAttr(default_factory=dict)
    _doomed: set[JobFolder] = PrivateAttr(default_factory=set)
    _over: set[JobFolder] = PrivateAttr(default_factory=set)
    _stopped: threading.Event = PrivateAttr(default_factory=threading.Event)
    _announce: Callable[[str], None] = PrivateAttr(default_factory=lambda: print)

    @abstractmethod
    def submit(self, job: JobFolder, after: Sequence[str], uses: Uses) -> str:
        """Give the job away; returns its id. after: ids of jobs that must have ended. uses: which of the devices that are named
        for a job it can use. Raises PobenchError where it is refused."""

    # -- the walk

    def begin(self, tasks: Sequence[Task], announce: Callable[[str], None], ended: Ended) -> None:
        """Submit the tasks, behind those which they may need. What another command has submitted is not submitted again."""
        self._waiting, self._behind, self._announce = list(tasks), {}, announce
        self._seen |= {place_of(task): newest(place_of(task)) for task in tasks}  # before it is asked what is under way
        for task in tasks:
            self._order.setdefault(place_of(task), len(self._order))
        self._adopt()
        self._submit_ready()

    def _adopt(self) -> None:
        """Take the tasks that are under way from the list. One that asks for more than is under way, or whose job waits for one
        that was lost, is submitted again behind that job."""
        for task, job, state in under_way(self._waiting, self.name):
            if not all(map(self._stands, job.waits_for)):
                self._doomed.add(job)
            if job in self._doomed or not job.covers(task):
                self._behind[place_of(task)] = job
                continue
            self._announce(f"{task.title}{stages_of(task)}  →  under way: {state.word}, {job}")
            self._waiting = [other for other in self._waiting if other is not task]
            self._keep(job, task)

    def _stands(self, job: JobFolder) -> bool:
        """Whether a job has finished, or is under way and stays so."""
        if job in self._jobs or job.read("ended").get("status") == "finished":
            return True
        return job not in self._doomed and states_of([job])[job].under_way

    def _submit_ready(self) -> None:
        """Submit every task that is left, or, where the executor knows no edges, every one whose jobs have ended."""
        settings = self.model_dump(mode="json", exclude_defaults=True)
        kept: list[Task] = []
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            after = self._before(task)
            left = [job for job in after if job not in self._over]
            if not self.edges and (left or any(may_need(task, other) for other in kept)):
                kept.append(task)
                continue
            behind = [job] if (job := self._behind.get(place_of(task))) else []
            about = {"executor": self.name, "settings": settings, "behind": "".join(str(job.path) for job in behind)}
            job = claim_task(task, self._seen[place_of(task)], after, **about)
            if job is not None:
                self._give(job, [other.id for other in (*left, *behind)], task)
                self._keep(job, task)
            elif (job := newest(place_of(task))) is not None:
                self._announce(f"{task.title}{stages_of(task)}  →  under way: submitted by another command, {job}")
                self._keep(job, task)
        self._waiting = kept

    def _keep(self, job: JobFolder, task: Task) -> None:
        self._jobs[job] = task
        self._by_run.setdefault("" if is_shared_by_runs(task) else task.run, []).append(job)

    def _before(self, task: Task) -> list[JobFolder]:
        """The jobs of the tasks that stand before it in the plan and make what it may need."""
        near = [job for run in ("", task.run, *task.sides) for job in self._by_run.get(run, ())]
        place = self._order[place_of(task)]
        return [job for job in near if self._order[job.path.parent] < place and may_need(task, self._jobs[job])]

    def _give(self, job: JobFolder, after: Sequence[str], task: Task) -> None:
        try:
            id = self.submit(job, after, uses_of(task))
        except PobenchError as error:
            job.end("failed", f"not submitted: {error}")
            raise PobenchError(
                f"{error}\n{len(self._jobs)} jobs are under way (pobench status); the same command goes on from here"
            ) from None
        job.write("submitted", id=id)
        self._announce(f"{task.title}{stages_of(task)}  →  {self.name} {id}, {job}")

    def wait(self, ended: Ended) -> None:
        """Until every job has ended. An interrupted command leaves the jobs under way."""
        lost: dict[JobFolder, int] = {}
        while len(self._over) < len(self._jobs) or self._waiting:
            for job, state in states_of([job for job in self._jobs if job not in self._over]).items():
                lost[job] = lost.get(job, 0) + 1 if state.word == "lost" else 0
                if not (state.under_way or 0 < lost[job] < LOOKS):
                    self._over.add(job)
                    why = None if state.word == "finished" else self._why(job, state)
                    self._announce(f"{self._jobs[job].title}{stages_of(self._jobs[job])}  {why or 'finished'}")
                    ended(self._jobs[job], why)
            self._submit_ready()
            left = len(self._jobs) - len(self._over)
            if left and self._stopped.wait(max(self.seconds, left * SECONDS_A_JOB)):
                raise KeyboardInterrupt

    def stop(self) -> None:
        self._stopped.set()

    def _why(self, job: JobFolder, state: State) -> str:
        if state.word != "lost":
            return state.reason or state.word
        why = self.why_gone(job.id) or state.reason
        return f"lost: {why}; the same command submits it again, and it goes on from its last checkpoint"
