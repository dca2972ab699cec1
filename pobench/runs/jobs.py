"""Jobs that an executor was given, one folder each, below `runs/<setting>/jobs`, or the cache where the result lies there.

    jobs/<run>.train/1/          the first attempt at a run's training; `<run>.evaluate` is what stands behind it
        job.json                 who submitted it, to which executor, behind which jobs; created exclusively, so that of two
                                 commands one submits the job
        task.json                what it does
        submitted.json           its id there
        started.json             where and when it began, and how often
        ended.json               "finished", "failed" or "cancelled", and why
        <id>_0_log.out, .err     what it printed

What lies in the cache has a note below the runs of each command that gave it away, `jobs/start-<hex>.sft.json`, which says
where. A job without `ended.json` that its executor no longer knows is lost: a node was, or the job was killed. A command that
needs it submits another attempt, which goes on from the last checkpoint. No file holds a key: they stay in the environment.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pobench.errors import PobenchError
from pobench.files import write_json
from pobench.runs.executor import Executor, make_executor
from pobench.runs.pool import lives
from pobench.runs.task import Task
from pobench.sources import cache_folder

UNDER_WAY = ("submitting", "waiting", "running", "unknown")


def place_of(task: Task) -> Path:
    """The folder of the attempts at a task. Tasks that would write the same files have the same one."""
    shared = task.kind in ("sft", "reference")
    home = cache_folder().absolute() if shared else task.runs.absolute() / task.job.setting
    what = ("train" if "train" in task.stages else "evaluate") if task.kind in ("start", "loss") else task.kind
    return home / "jobs" / f"{task.run.rpartition('/')[2]}.{what}"


@dataclass(frozen=True)
class JobFolder:
    """One attempt. path: its folder, absolute."""

    path: Path

    def __str__(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    def read(self, name: str) -> dict[str, Any]:
        """The content of one of its files; {} where there is none, or it is just being written."""
        try:
            return dict(json.loads((self.path / f"{name}.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}

    def write(self, name: str, **values: Any) -> None:
        write_json(self.path / f"{name}.json", {**values, "time": time.time()})

    @property
    def about(self) -> dict[str, Any]:
        return self.read("job")

    @property
    def id(self) -> str:
        return str(self.read("submitted").get("id", ""))

    @property
    def task(self) -> Task:
        return Task.load(self.path / "task.json")

    def covers(self, task: Task) -> bool:
        """Whether it does all that the task does."""
        own = self.task
        results = all(
            own.nodes[s].name == node.name for s in task.stages if (node := task.nodes.get(s)) and s in own.nodes
        )
        sums = set(task.references.values()) <= set(own.references.values())
        return results and sums and set(task.stages) <= set(own.stages)

    @property
    def waits_for(self) -> list[JobFolder]:
        return [JobFolder(Path(path)) for path in self.about.get("after", ())]

    @property
    def superseded(self) -> bool:
        """Whether a later attempt was made in its place. One that was made to run behind it leaves it to do its part."""
        later = newest(self.path.parent)
        while later is not None and later != self:
            later = JobFolder(Path(behind)) if (behind := later.about.get("behind")) else None
        return later is None

    @property
    def logs(self) -> list[Path]:
        return sorted(self.path.glob("*_log.*"))

    def end(self, status: str, reason: str = "") -> None:
        self.write("ended", status=status, reason=reason)

    def restart(self, **where: Any) -> None:
        """Record that it begins, where, and the how manieth time."""
        self.write("started", **where, times=self.read("started").get("times", 0) + 1)


def newest(place: Path) -> JobFolder | None:
    """The latest attempt in `place_of` a task."""
    numbers = [int(path.name) for path in place.glob("*") if path.name.isdigit()] if place.is_dir() else []
    return JobFolder(place / str(max(numbers))) if numbers else None


def claim(place: Path, before: JobFolder | None, after: Sequence[JobFolder], **about: Any) -> JobFolder | None:
    """A new attempt in `place`, which no other command can make too; None where one has done so in the meantime.

    before: the latest attempt that this command has seen. after: the attempts that the new one waits for. about: what
    `job.json` says besides.
    """
    folder = place / str(1 + (int(before.path.name) if before else 0))
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        **about,
        "after": [str(job.path) for job in after],
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": time.time(),
    }
    try:
        with (folder / "job.json").open("x", encoding="utf-8") as file:
            json.dump(values, file, indent=1)
    except FileExistsError:
        return None
    return JobFolder(folder)


def claim_task(task: Task, before: JobFolder | None, after: Sequence[JobFolder], **about: Any) -> JobFolder | None:
    """A new attempt at a task; as `claim`."""
    facts = {"title": task.title, "kind": task.kind, "run": task.run, "stages": list(task.stages), **about}
    if (job := claim(place_of(task), before, after, **facts)) is not None:
        task.dump(job.path / "task.json")
    return job


def note_shared(runs: Path, tasks: Iterable[Task]) -> None:
    """Write down below a folder of runs which jobs of a command lie in the cache, for `jobs_below`."""
    for task in tasks:
        place, folder = place_of(task), runs.absolute() / task.job.setting / "jobs"
        if place.parent != folder and newest(place) is not None:
            write_json(folder / f"{place.name}.json", {"place": str(place)})


def jobs_below(runs: Path) -> Iterator[JobFolder]:
    """The latest attempts at all jobs of a folder of runs, trials of a search among them, each behind those that it waits
    for."""
    seen: dict[Path, JobFolder] = {}

    def visit(job: JobFolder) -> None:
        if job.path in seen:
            return
        seen[job.path] = job  # before what it waits for, so that a damaged file makes no circle
        for other in job.waits_for:
            if other.about and newest(other.path.parent) == other:
                visit(other)
        order.append(job)

    order: list[JobFolder] = []
    for place in sorted(path for jobs in ("*/jobs/*", "*/tuning/*/jobs/*") for path in runs.absolute().glob(jobs)):
        if place.suffix == ".json":
            place = Path(json.loads(place.read_text(encoding="utf-8"))["place"])
        if (job := newest(place)) is not None:
            visit(job)
    yield from order


# ---------------------------------------------------------------- what became of them
@dataclass(frozen=True)
class State:
    """word: "submitting", "waiting", "running", "finished", "failed", "cancelled", "lost"; "unknown" where the executor cannot
    be asked. reason: why it ended, in one line."""

    word: str
    reason: str = ""

    @property
    def under_way(self) -> bool:
        return self.word in UNDER_WAY


def states_of(jobs: Iterable[JobFolder]) -> dict[JobFolder, State]:
    """What became of each job, by its files and its executor."""
    states = {job: _ended(job) for job in jobs}
    groups: dict[str, list[JobFolder]] = {}
    for job in [job for job, state in states.items() if state is None]:
        if job.id:
            about = job.about
            groups.setdefault(json.dumps([about["executor"], about["settings"]]), []).append(job)
        else:
            states[job] = _being_submitted(job)
    for key, group in groups.items():
        name, settings = json.loads(key)
        try:
            known = executor_of(name, settings).states([job.id for job in group])
        except PobenchError as error:
            states |= {job: State("unknown", str(error)) for job in group}
            continue
        for job in group:
            word = known.get(job.id)
            if word == "running" and not job.read("started"):
                word = "waiting"
            # what has ended between the two looks has left its word
            states[job] = State(word) if word else _ended(job) or State("lost", f"{name} no longer knows {job.id}")
    return {job: state or State("unknown") for job, state in states.items()}


def under_way(tasks: Sequence[Task], executor: str) -> list[tuple[Task, JobFolder, State]]:
    """The tasks that another command has given to the executor, and that have not ended. Raises PobenchError where one is under
    way elsewhere."""
    found = [(task, job) for task in tasks if (job := newest(place_of(task))) is not None]
    states = states_of([job for _, job in found])
    left = [(task, job, states[job]) for task, job in found if states[job].under_way]
    for task, job, state in left:
        if (other := job.about.get("executor", "")) != executor:
            raise PobenchError(
                f"{task.title} is under way at {other} ({state.word}, {job}); wait for it, or end it: pobench cancel {task.run}"
            )
    return left


def executor_of(name: str, settings: Mapping[str, Any]) -> Executor:
    """The one that a `job.json` names. Raises PobenchError where it cannot be asked from here."""
    executor = make_executor(name, settings)
    if faults := executor.faults(False):
        raise PobenchError("\n".join(faults))
    return executor


def _ended(job: JobFolder) -> State | None:
    ended = job.read("ended")
    return State(ended["status"], ended.get("reason", "")) if ended else None


def _being_submitted(job: JobFolder) -> State:
    """Of a job without an id: a command is about to submit it, or has ended before it did."""
    about = job.about
    if about.get("host") != socket.gethostname():
        return State("submitting", f"by a command on {about.get('host')}")
    if lives(int(about["pid"])):
        return State("submitting", f"by process {about['pid']}")
    return State("lost", "the command that was submitting it has ended")
