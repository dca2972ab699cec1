"""What a command does, to be read from outside while it runs: its jobs in their order, how each ended, and how long they take.

    runs/<setting>/command.json            its jobs, written whole when they are planned, and when the command ends
    runs/<setting>/command.changes.jsonl   in between a line whenever one begins or ends: thousands of jobs are not written anew

An executor that takes jobs away writes more on each below `jobs/` (`pobench.runs.jobs`); then that holds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pobench.files import nan_as_null, write_json
from pobench.locks import SECONDS
from pobench.progress import Standing, read_progress
from pobench.results.run_folder import RunFolder
from pobench.runs.cost import seconds_of_each
from pobench.runs.jobs import JobFolder, newest, place_of, states_of
from pobench.runs.plan import Plan
from pobench.runs.pool import lives
from pobench.runs.task import Stands, Task

FILE = "command.json"


@dataclass(frozen=True)
class Entry:
    """A job of a command. place: the folder of its attempts, should an executor take it away. folder: of its run. nodes:
    stage → the folder of its result. seconds: estimated from the cost model; nan where it cannot be. state: "waiting",
    "running", "finished", "failed", "interrupted"; of a job that was taken away also the other words of `State`. began,
    ended: seconds since 1970; nan where it has not."""

    place: str
    run: str
    title: str
    kind: str
    stages: tuple[str, ...]
    folder: str
    nodes: Mapping[str, str]
    seconds: float = math.nan
    state: str = "waiting"
    began: float = math.nan
    ended: float = math.nan
    reason: str = ""

    @classmethod
    def of(cls, task: Task, seconds: float) -> Entry:
        nodes = {stage: task.nodes[stage].name for stage in task.stages if stage in task.nodes}
        folder = str((task.runs / task.run).absolute())
        return cls(str(place_of(task)), task.run, task.title, task.kind, task.stages, folder, nodes, seconds)

    @property
    def what(self) -> str:
        """`train`, `evaluate`, `reference`, …: jobs of one word take about as long as each other."""
        return self.place.rpartition(".")[2]

    @property
    def took(self) -> float:
        """Seconds; nan where it has not finished."""
        return self.ended - self.began if self.state == "finished" else math.nan

    @property
    def under_way(self) -> bool:
        return self.state in ("waiting", "running", "submitting", "unknown")

    def stage_states(self) -> list[tuple[str, str]]:
        """(stage, "done", "running" or "waiting") in order, by what is stored."""
        states: list[tuple[str, str]] = []
        at_work = self.state == "running"
        for stage in self.stages:
            done = self.state == "finished" or self._stored(stage)
            states.append((stage, "done" if done else "running" if at_work else "waiting"))
            at_work = at_work and done
        return states

    def _stored(self, stage: str) -> bool:
        folder = Path(self.folder)
        if stage in self.nodes:
            return (folder / self.nodes[stage] / "node.json").is_file()
        return stage == "train" and (folder / "trained.json").is_file()


# ---------------------------------------------------------------- how long
class Left(NamedTuple):
    """seconds: until all jobs are done; nan where it is not known. n: finished jobs that it was corrected by."""

    seconds: float
    n: int


def expected(jobs: Sequence[Entry]) -> list[float]:
    """Seconds of each job from its beginning: its estimate times what finished jobs of its kind took in the ratio to their
    estimates, else all finished jobs; without an estimate, the mean of those of its kind. nan where nothing is known."""
    measured = [job for job in jobs if not math.isnan(job.took)]
    alike: dict[str, list[Entry]] = {}
    for job in measured:
        alike.setdefault(job.what, []).append(job)
    means = {what: sum(job.took for job in of_kind) / len(of_kind) for what, of_kind in alike.items()}
    ratios, overall = {what: _ratio(of_kind) for what, of_kind in alike.items()}, _ratio(measured)
    return [
        means.get(job.what, math.nan) if math.isnan(job.seconds) else job.seconds * ratios.get(job.what, overall)
        for job in jobs
    ]


def _ratio(measured: Iterable[Entry]) -> float:
    """What finished jobs took by their estimates; 1 where none had one."""
    estimated = [job for job in measured if job.seconds > 0]
    total = sum(job.seconds for job in estimated)
    return sum(job.took for job in estimated) / total if total else 1.0


def with_late(jobs: Sequence[Entry], now: float, reported: Mapping[str, float]) -> list[Entry]:
    """The jobs, those that run for longer than expected as if they ended as soon as they can: so those to come are corrected
    before they end. reported: place of a running job → seconds that its work has left."""
    last = [now + reported.get(job.place, 0.0) for job in jobs]
    late = [
        job.state == "running" and end - job.began > seconds  # false for nan
        for job, end, seconds in zip(jobs, last, expected(jobs), strict=True)
    ]
    return [
        replace(job, state="finished", ended=end) if is_late else job
        for job, end, is_late in zip(jobs, last, late, strict=True)
    ]


def time_left(jobs: Sequence[Entry], parallel: int, now: float, reported: Mapping[str, float] | None = None) -> Left:
    """Of all jobs. parallel: how many run at one time. reported: as for `with_late`."""
    reported = reported or {}
    each = _each_left(jobs, expected(with_late(jobs, now, reported)), now, reported)
    return Left(_together(each, parallel), sum(not math.isnan(job.took) for job in jobs))


def _each_left(
    jobs: Sequence[Entry], seconds: Sequence[float], now: float, reported: Mapping[str, float]
) -> list[float]:
    """Seconds that each job has left; 0 of one that has ended. seconds: from its beginning."""
    each = []
    for job, whole in zip(jobs, seconds, strict=True):
        if job.state == "running" and not math.isnan(job.began):
            rest = max(whole - (now - job.began), 0.0)
            each.append(max(rest, reported.get(job.place, 0.0)) if not math.isnan(rest) else rest)
        else:
            each.append(whole if job.under_way else 0.0)
    return each


def _together(each: Sequence[float], parallel: int) -> float:
    return max(sum(each) / max(parallel, 1), max(each, default=0.0))


# ---------------------------------------------------------------- what is stored
@dataclass(frozen=True)
class Command:
    """The content of a `command.json`. before: titles of runs of which nothing was left. parallel: jobs at one time. more:
    whether further jobs are planned once these have ended. closed: when the command had no more to do, or was interrupted;
    nan before. written: when the file was."""

    path: Path
    jobs: tuple[Entry, ...]
    executor: str = "local"
    parallel: int = 1
    more: bool = False
    before: tuple[str, ...] = ()
    began: float = math.nan
    closed: float = math.nan
    written: float = field(default=math.nan, compare=False)
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    @property
    def lives(self) -> bool:
        """Whether its process is at work; of one on another machine whether it has touched its lock in the last minutes."""
        if self.host == socket.gethostname():
            return lives(self.pid)
        lease = self.path.with_name(".lease")
        return lease.exists() and time.time() - lease.stat().st_mtime < 2 * SECONDS

    @property
    def under_way(self) -> bool:
        return any(job.under_way for job in self.jobs) or (self.more and self.lives and math.isnan(self.closed))

    def left(self, now: float) -> Left:
        """The time left of all its jobs."""
        at_once = sum(job.state == "running" for job in self.jobs) if self.executor != "local" else self.parallel
        return time_left(self.jobs, at_once, now, self.reported())

    def expected(self, now: float) -> list[float]:
        """Seconds that each of its jobs will take from its beginning; nan where it is not known."""
        return expected(with_late(self.jobs, now, self.reported()))

    def reported(self) -> dict[str, float]:
        """Place of a running job → seconds that it says its work has left."""
        progress = {job.place: read_progress(Path(job.folder)) for job in self.jobs if job.state == "running"}
        return {place: own["left"] for place, own in progress.items() if own.get("left") is not None}

    def write(self) -> float:
        """Write it whole, and returns when that was, by which changes of its jobs are known as its own (`write_change`)."""
        written = time.time()
        values = {name: value for name, value in vars(self).items() if name != "path"}
        write_json(self.path, nan_as_null({**values, "written": written, "jobs": [vars(job) for job in self.jobs]}))
        changes_of(self.path).unlink(missing_ok=True)
        return written


def changes_of(path: Path) -> Path:
    """The file of what has changed since a `command.json` was written."""
    return path.with_suffix(".changes.jsonl")


def write_change(path: Path, written: float, place: str, values: Mapping[str, Any]) -> None:
    """Append what has changed of a job. path: of the `command.json`. written: what `Command.write` returned."""
    line = json.dumps(nan_as_null({"written": written, "place": place, **values}), ensure_ascii=False)
    with changes_of(path).open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"{line}\n")


def _stored(path: Path) -> Command | None:
    """What a `command.json` and its changes say; None where it cannot be read."""
    try:
        values, changed = _read(path)
        jobs = [Entry(**_with_nan({**job, **changed.get(job["place"], {})})) for job in values.pop("jobs")]
        jobs = [replace(job, stages=tuple(job.stages)) for job in jobs]
        return Command(path, tuple(jobs), **_with_nan(values) | {"before": tuple(values["before"])})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The content of a `command.json`, and place of a job → what has changed of it since; of one moment, also while it is
    written anew."""
    while True:
        before = path.stat()
        values = json.loads(path.read_text(encoding="utf-8"))
        lines = []
        with contextlib.suppress(FileNotFoundError):
            lines = changes_of(path).read_text(encoding="utf-8").split("\n")
        if os.path.samestat(before, path.stat()):
            break
    changed: dict[str, dict[str, Any]] = {}
    for line in lines[:-1]:  # behind the last end of a line stands nothing, or half of one
        with contextlib.suppress(
            ValueError, KeyError, TypeError, AttributeError
        ):  # a damaged line tells of one job alone
            change = json.loads(line)
            if change.pop("written") == values.get("written"):  # else of another command, which was killed
                changed.setdefault(change.pop("place"), {}).update(change)
    return values, changed


def read_command(path: Path) -> Command | None:
    """What a `command.json` says, with the states that the jobs have now; None where it cannot be read."""
    command = _stored(path)
    if command is None:
        return None
    if command.executor != "local":
        return replace(command, jobs=tuple(_taken_away(command.jobs)))
    if command.lives and math.isnan(command.closed):
        return command
    ended = tuple(replace(job, state="interrupted") if job.under_way else job for job in command.jobs)
    return replace(command, jobs=ended)


def commands_below(runs: Path) -> list[Command]:
    """The last command of each setting and search, the newest last."""
    paths = [path for where in (f"*/{FILE}", f"*/tuning/*/{FILE}") for path in runs.absolute().glob(where)]
    return sorted(filter(None, map(read_command, sorted(paths))), key=lambda command: command.began)


def _with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in values.items()}


def _taken_away(jobs: Iterable[Entry]) -> list[Entry]:
    """The jobs as their folders and their executor know them."""
    found = {job.place: newest(Path(job.place)) for job in jobs}
    states = states_of([folder for folder in found.values() if folder is not None])
    return [_as_known(job, folder, states[folder].word) if (folder := found[job.place]) else job for job in jobs]


def _as_known(job: Entry, folder: JobFolder, word: str) -> Entry:
    began, ended = folder.read("started").get("time", math.nan), folder.read("ended")
    return replace(
        job, state=word, began=began, ended=ended.get("time", math.nan), reason=ended.get("reason", "") or job.reason
    )


# ---------------------------------------------------------------- writing it
class Writing:
    """The command that this process carries out in one folder. Its methods may be called by several threads."""

    _all: dict[Path, Writing] = {}  # noqa: RUF012 (one a folder, for the process)
    _lock = threading.RLock()

    def __init__(self, path: Path) -> None:
        self._about = Command(path, (), began=time.time())  # without its jobs
        self._jobs: dict[str, Entry] = {}  # by place
        self._written = math.nan

    @classmethod
    def at(cls, path: Path) -> Writing:
        with cls._lock:
            return cls._all.setdefault(path, cls(path))

    @property
    def command(self) -> Command:
        with self._lock:
            return replace(self._about, jobs=tuple(self._jobs.values()))

    def plan(self, plan: Plan, later: Iterable[Plan], executor: str, parallel: int) -> list[Task]:
        """Write down what is left of a plan, and of those that follow it; returns the tasks of the first, which know where they
        stand. Jobs of a plan before, by the same process, stay where more was to come."""
        left = [task for each in (plan, *later) for task in each.left]
        counts = plan.counts
        seconds = seconds_of_each(left, counts)
        skipped = {task.run: task.title for task in plan.tasks if task.kind in ("start", "loss", "pair")}
        for task in left:
            skipped.pop(task.run, None)
        with self._lock:
            goes_on = self._about.more or self._under_way
            entries = self._jobs if goes_on else {}
            for task, took in zip(left, seconds, strict=True):
                entry = Entry.of(task, took)
                if entry.place not in entries or not entries[entry.place].under_way:
                    entries[entry.place] = entry
            done = dict.fromkeys(self._about.before if goes_on else ()) | dict.fromkeys(skipped.values())
            began = self._about.began if goes_on else time.time()
            self._jobs = entries
            self._about = replace(
                self._about, executor=executor, parallel=parallel, more=plan.waits, before=tuple(done), began=began,
                closed=math.nan,
            )  # fmt: skip
            self._written = self.command.write()
            numbers = {place: f"job {number} of {len(entries)}" for number, place in enumerate(entries, 1)}
        path = str(self._about.path)
        return [replace(task, command=path, number=numbers[str(place_of(task))]) for task in plan.left]

    def began(self, task: Task) -> Task:
        """Returns the task with where it stands, so that its process need not read of all jobs."""
        self._change(task, state="running", began=time.time())
        return replace(task, stands=_stands(self.command, str(place_of(task))))

    def ended(self, task: Task, why: str | None) -> None:
        self._change(task, state="failed" if why else "finished", ended=time.time(), reason=why or "")

    @contextlib.contextmanager
    def until_its_end(self) -> Iterator[None]:
        """Write down, behind the block, that nothing more is to come, or that the command was interrupted."""
        try:
            yield
        except BaseException:
            self._close(interrupted=True)
            raise
        self._close(interrupted=False)

    @property
    def _under_way(self) -> bool:
        return any(job.under_way for job in self._jobs.values())

    def _close(self, interrupted: bool) -> None:
        with self._lock:
            over = interrupted or not self._about.more
            self._about = replace(self._about, more=self._about.more and not interrupted)
            if over and (interrupted or not self._under_way):
                self._about = replace(self._about, closed=time.time())
            self._written = self.command.write()

    def _change(self, task: Task, **values: Any) -> None:
        place = str(place_of(task))
        with self._lock:
            if place in self._jobs:
                self._jobs[place] = replace(self._jobs[place], **values)
                write_change(self._about.path, self._written, place, values)


def command_file(plan: Plan) -> Path:
    """Where the command that carries out a plan is written down."""
    task = plan.tasks[-1]
    return (plan.root or task.runs).absolute() / task.job.setting / FILE


def standing_of(task: Task) -> Standing:
    """Where a task that begins now stands in its command, for its progress."""
    folder, began = RunFolder(task.runs, task.run).path, time.monotonic()
    stands = task.stands
    if stands is None and task.command and (command := _stored(Path(task.command))) is not None:
        stands = _stands(command, str(place_of(task)))
    if stands is None:
        return Standing(folder=folder, began=began)
    return Standing(task.number, stands.own, stands.behind, folder, began, stands.shares)


def _stands(command: Command, place: str) -> Stands | None:
    """How long a job and those to come are expected to take; None of one that is not among them."""
    number = next((number for number, job in enumerate(command.jobs) if job.place == place), None)
    if number is None:
        return None
    now, reported = time.time(), command.reported()
    seconds = expected(with_late(command.jobs, now, reported))
    each = _each_left(command.jobs, seconds, now, reported)
    behind = _together([*each[:number], *each[number + 1 :]], command.parallel)
    several = len(command.jobs) > 1
    return Stands(seconds[number], behind if several or command.more else math.nan, command.parallel > 1 and several)
