"""The jobs below a folder of runs, for people and machines, and their end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pobench.errors import PobenchError
from pobench.progress import read_progress
from pobench.runs.command import Command, Entry, commands_below
from pobench.runs.jobs import JobFolder, State, executor_of, jobs_below, states_of


def job_rows(runs: Path) -> list[dict[str, Any]]:
    """One row a job, in the order in which they wait for each other: its run, state and reason, where it is, when it began and
    ended (seconds since 1970), how often it began, its progress, its log. Those that were submitted or detached, and those of
    the last command on this machine in each setting."""
    taken = [_row(job, state) for job, state in states_of(jobs_below(runs)).items()]
    local = [command for command in commands_below(runs) if command.executor == "local"]
    return taken + [_row_of_entry(command, job) for command in local for job in command.jobs]


def _row_of_entry(command: Command, job: Entry) -> dict[str, Any]:
    at_work = job.state == "running"
    return {
        "job": Path(job.place).name,
        "run": job.run,
        "title": job.title,
        "kind": job.kind,
        "stages": list(job.stages),
        "state": job.state,
        "reason": job.reason,
        "executor": "local",
        "id": f"{command.host}:{command.pid}",
        "host": command.host if at_work else "",
        "attempt": 1,
        "times": 0 if math.isnan(job.began) else 1,
        "submitted": command.began,
        "began": None if math.isnan(job.began) else job.began,
        "ended": None if math.isnan(job.ended) else job.ended,
        "progress": progress_text(Path(job.folder)) if at_work else "",
        "log": None,
    }


def _row(job: JobFolder, state: State) -> dict[str, Any]:
    about, started, ended = job.about, job.read("started"), job.read("ended")
    reason = state.reason
    if state.word == "lost" and job.id:
        reason = _why_gone(job) or reason
    logs = job.logs
    return {
        "job": str(job),
        "run": about.get("run", ""),
        "title": about.get("title", ""),
        "kind": about.get("kind", ""),
        "stages": about.get("stages", []),
        "state": state.word,
        "reason": reason,
        "executor": about.get("executor", ""),
        "id": job.id,
        "host": started.get("host", "") if state.word == "running" else "",
        "attempt": int(job.path.name),
        "times": started.get("times", 0),
        "submitted": about.get("time"),
        "began": started.get("time"),
        "ended": ended.get("time"),
        "progress": progress_text(_run_folder(job)) if state.word == "running" else "",
        "log": str(logs[0]) if logs else None,  # .err comes first
    }


def _why_gone(job: JobFolder) -> str:
    about = job.about
    try:
        return executor_of(about["executor"], about["settings"]).why_gone(job.id)
    except PobenchError:
        return ""


def _run_folder(job: JobFolder) -> Path:
    values = job.read("task")
    return Path(values.get("runs", "")) / values.get("run", "")


def progress_text(folder: Path) -> str:
    """`step 12 of 75` of the job at work in a run's folder; "" where it has reported nothing."""
    if not (own := read_progress(folder)):
        return ""
    unit = str(own["unit"]).removesuffix("s") or str(own["title"])
    resumed = f", from {own['resumed']:g}" if own["resumed"] else ""
    return f"{unit} {own['done']:g} of {own['total']:g}{resumed}"


def cancel_jobs(runs: Path, names: Sequence[str]) -> list[JobFolder]:
    """Cancel the jobs under way, those of the runs whose names begin with one of `names`, or all; returns them.

    Raises PobenchError for a name that begins none of them, and where an executor cannot be asked.
    """
    under_way = [job for job, state in states_of(jobs_below(runs)).items() if state.under_way]
    titles = {job: str(job.about["run"]) for job in under_way}

    def begins(run: str, name: str) -> bool:
        return run.startswith(name) or run.partition("/")[2].startswith(name)

    if strange := [name for name in names if not any(begins(run, name) for run in titles.values())]:
        known = ", ".join(sorted({run for run in titles.values() if run})) or "nothing"
        raise PobenchError(f"no job of {', '.join(map(repr, strange))} is under way. Under way: {known}")
    chosen = [job for job in under_way if not names or any(begins(titles[job], name) for name in names)]
    groups: dict[str, list[JobFolder]] = {}
    for job in chosen:
        groups.setdefault(json.dumps([job.about["executor"], job.about["settings"]]), []).append(job)
    for key, group in groups.items():
        executor_of(*json.loads(key)).cancel([job.id for job in group if job.id])
        for job in group:
            if not job.read("ended"):
                job.end("cancelled")
    return chosen
