"""Runs a study: expands its grid to jobs, runs them, draws its figures and decides its claims.

A study is a YAML of experiments/studies (`pobench.workflows.study_file`). Jobs come from `resolve`, so a job that two
studies share runs once. Jobs with different data (a length bias in the labels) need different token pairs, so each data
section has its own plan, and the plans run in turn.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pobench.errors import PobenchError
from pobench.files import nan_as_null
from pobench.registry import figures
from pobench.reporting import plot
from pobench.reporting.draw import draw
from pobench.reporting.page import build_report
from pobench.results.comparable import ordered, split
from pobench.results.derived import Frames
from pobench.results.earlier_looks import record_look
from pobench.runs.execute import Outcome, execute
from pobench.runs.plan import Plan, describe, make_plan
from pobench.settings.job import Job
from pobench.settings.read import read_setting
from pobench.settings.resolve import resolve, resolve_names
from pobench.workflows.study_file import Entry, Study, Variant


# ---------------------------------------------------------------- the grid
def expand(
    study: Study,
    setting: str,
    *,
    losses: str | Iterable[str] | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Job]:
    """The study's jobs, each once, in the order of the grid.

    losses: only these; any loss is allowed where the grid varies no setting of a loss. overrides: as `--set`; `times`
    multiplies them. Raises PobenchError that lists every fault together.
    """
    overrides = dict(overrides or {})
    faults: list[str] = []
    chosen: list[str] | None = None
    if losses is not None:
        chosen, faults = resolve_names(losses)
    try:
        variant = study.settings.get(str(read_setting(setting)[0]["name"]), Variant())
    except PobenchError:
        variant = Variant()  # `resolve` reports it below, with everything else
    overrides = {**study.set, **variant.set, **overrides}
    jobs: dict[str, Job] = {}
    used: set[str] = set()
    for entry in variant.grid or study.grid:
        names = resolve_names(entry.losses)[0]
        if chosen is not None:
            names = [name for name in chosen if name in names or not entry.own]
        used |= set(names)
        for loss in names:
            try:
                for job in _of_one(study, entry, loss, setting, seeds or variant.seeds or study.seeds, overrides):
                    jobs.setdefault(job.key, job)
            except PobenchError as error:
                faults += str(error).splitlines()
    if left := [name for name in chosen or () if name not in used]:
        faults.append(f"--losses: the study {study.name} has no grid for {', '.join(left)}")
    if not used:  # report the setting's faults as well
        try:
            resolve(setting, resolve_names(study.grid[0].losses)[0], seeds=seeds, overrides=overrides)
        except PobenchError as error:
            faults += str(error).splitlines()
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(faults)))
    return list(jobs.values())


def _of_one(
    study: Study, entry: Entry, loss: str, setting: str, seeds: Sequence[int] | None, overrides: dict[str, Any]
) -> list[Job]:
    own = resolve(setting, loss, seeds=seeds, overrides=overrides)
    own_jobs = {job.key: job for job in own}  # a job with the setting's own values keeps the setting's sources
    axes: list[list[tuple[str, Any]]] = []
    faults = []
    for key, values in entry.values.items():
        if (full := key if "." in key else f"{loss}.{key}") in overrides:
            faults.append(f"--set {full}: the study {study.name} varies it")
        axes.append([(full, value) for value in values])
    for key, factors in entry.times.items():
        base = own[0].value(key)
        if isinstance(base, bool) or not isinstance(base, int | float):
            faults.append(f"study {study.name}: {loss} has no number {key!r} under {setting!r} to multiply")
            continue
        axes.append([(key if "." in key else f"{loss}.{key}", float(f"{base * f:.6g}")) for f in factors])
    if faults:
        raise PobenchError("\n".join(faults))
    jobs = []
    for point in itertools.product(*axes):
        for job in resolve(setting, loss, seeds=seeds, overrides={**overrides, **dict(point)}):
            origin = {**job.origin, **{key: f"study {study.name}" for key, _ in point}}
            jobs.append(own_jobs.get(job.key) or replace(job, origin=origin))
    return jobs


# ---------------------------------------------------------------- running
def make_plans(
    jobs: Sequence[Job], runs: Path, stages: Sequence[str], plugins: Sequence[str] = (), *, dry: bool = False
) -> list[Plan]:
    """One plan for each data section, in the order of the jobs. Arguments and faults as of `make_plan`."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.data.model_dump_json(), []).append(job)
    return [make_plan(group, runs, stages, plugins, dry=dry) for group in groups.values()]


def execute_all(plans: Sequence[Plan], **how: Any) -> list[Outcome]:
    """Run the tasks that are left in every plan. The plans share a start model, which is reported once. how: arguments of
    `execute`, whose faults are raised."""
    outcomes: dict[str, Outcome] = {}
    for at, plan in enumerate(plans):
        for outcome in execute(plan, later=plans[at + 1 :], **how):
            outcomes.setdefault(outcome.run, outcome)
    return list(outcomes.values())


def describe_study(study: Study, plans: Sequence[Plan]) -> dict[str, Any]:
    """The study as plain data: its question, its jobs with the values varied in each, how many are done, and the cost."""
    described = [describe(plan) for plan in plans]
    jobs: dict[str, dict[str, Any]] = {}
    for plan, part in zip(plans, described, strict=True):
        for (task, *_), row in zip(plan.runs.values(), part["jobs"], strict=True):
            varied = [key for key, where in task.job.origin.items() if where == f"study {study.name}"]
            row["varied"] = {key: task.job.value(key) for key in varied if task.kind == "loss"}
            jobs.setdefault(row["run"], row)
    costs = [part["cost"] for part in described]

    def over(key: str, by: Any) -> Any:
        values = [cost[key] for cost in costs]
        return None if None in values else by(values)

    states = [row["state"] for row in jobs.values()]
    return {
        **study.model_dump(include={"name", "title", "paper", "question", "claims", "figures"}),
        "setting": described[0]["setting"],
        "model": described[0]["model"],
        "data": described[0]["data"]["source"],
        "pairs": described[0]["pairs"],
        "held_out": described[0]["held_out"],
        "jobs": list(jobs.values()),
        "count": {
            "jobs": len(states),
            "finished": states.count("done"),
            "to do": sum(s == "to do" for s in states),
            "failed before": sum(s.startswith("failed") for s in states),
        },
        "cost": {
            "seconds": over("seconds", sum),
            "memory": over("memory", max),
            "disk": over("disk", sum),
            "basis": costs[0]["basis"],
        },
        "judge": described[0]["judge"],
    }


# ---------------------------------------------------------------- results
def study_frames(plans: Sequence[Plan], stored: Frames) -> Frames:
    """The frames of the study's own runs. stored: the frames of its setting."""
    tasks = [task for plan in plans for task in plan.tasks if task.kind in ("start", "loss")]
    names, data = {task.run for task in tasks}, {task.data.name.removeprefix("data-") for task in tasks}
    frames = stored.of_runs(names)
    audit = frames["audit"]
    return Frames({**frames.stored, "audit": audit[audit["data"].isin(data)], "tuning": frames["tuning"].iloc[:0]})


def report_study(study: Study, frames: Frames, stored: Frames, runs: Path) -> Path:
    """Store that the study's runs are looked at, and draw its figures and tables; returns the page's path, below
    `runs/report`. frames: of `study_frames`. stored: those of its setting."""
    (setting,) = frames["runs"]["setting"].unique()
    record_look(runs, frames["runs"], stored["runs"])
    return build_report(frames, runs / "report" / f"{study.name}-{setting}", figures=study.figures)


def scorecard(study: Study, frames: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """The study's rows of the table `claims`, with the columns of its CSV."""
    rows: list[dict[str, Any]] = []
    claims = figures.get("claims")
    for comparable in split(ordered(frames)):
        try:
            table = draw(claims, comparable.shown_in(claims))
        except plot.NothingToDraw:
            continue
        data = table.attrs["data"]
        rows += [
            {k: nan_as_null(v) for k, v in row.items()}
            for row in data[data["name"].isin(study.claims)].to_dict("records")
        ]
    return json.loads(json.dumps(rows))  # type: ignore[no-any-return]
