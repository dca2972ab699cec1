"""Losses × settings × seeds → jobs: what is done, what is left, what it will cost; then run what is left."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pobench.data.demonstrations import Demonstrations
from pobench.data.prepare import Prepared, prepare, source_faults
from pobench.errors import PobenchError
from pobench.model import adapters
from pobench.model import vllm as vllm_engine
from pobench.results.run_folder import RunFolder
from pobench.runs.cost import GIB, Cost, estimate_benchmarks, estimate_cost, is_local
from pobench.runs.start_model import STAGES_ROOT, not_made, prepare_stage, read_demonstrations, stage_folder
from pobench.runs.task import Task, benchmarks_of
from pobench.settings.job import Job
from pobench.sources import cache_folder, cached_model


@dataclass(frozen=True)
class Plan:
    """Everything a command will do, in order: what makes the start model, then its evaluation, since scores compare with
    it. demonstrations: what an SFT stage that is left learns from."""

    tasks: tuple[Task, ...]
    prepared: Prepared | None
    demonstrations: Demonstrations | None = None

    @property
    def left(self) -> list[Task]:
        return [t for t in self.tasks if not t.done]

    def text(self) -> str:
        """For the terminal: what was read for that which is left, and what was left out."""
        kinds = {t.kind for t in self.left}
        read = [self.demonstrations if "sft" in kinds else None, self.prepared if kinds - {"sft"} else None]
        return "\n".join(r.text() for r in read if r is not None)


def make_plan(
    jobs: Sequence[Job], runs: Path, stages: Sequence[str], plugins: Sequence[str] = (), *, dry: bool = False
) -> Plan:
    """Read and check the data, and lay out the tasks. Nothing is written below `runs`.

    dry: touch nothing at all, not even a cache; the data is read only if it is at hand. Raises PobenchError with all faults.
    """
    absent = [t for t in jobs[0].train.trackers if importlib.util.find_spec(t) is None]
    faults = [f"train.trackers: {', '.join(absent)} not installed; pip install 'pobench[trackers]'"] if absent else []
    faults += dict.fromkeys(fault for job in jobs for fault in adapters.missing(job.train.adapter))
    if "answers" in stages:
        faults += dict.fromkeys(fault for job in jobs for fault in vllm_engine.missing(job.answers.engine))
    if not dry:
        faults += source_faults(jobs[0], stages)
        lacking = [fault for benchmark in benchmarks_of(jobs[0], stages) for fault in benchmark.faults()]
        faults += [*lacking, *(["benchmarks can be left out: --benchmarks none"] if lacking else [])]
    if faults:
        raise PobenchError("\n".join(faults))
    at_hand = not dry or _model_at_hand(jobs[0]) is not None
    first, demonstrations = _sft_task(jobs[0], tuple(stages), tuple(plugins), dry)
    if set(stages) == {"sft"}:
        return Plan(first, None, demonstrations)
    prepared = prepare(jobs[0]) if at_hand else None
    folder = runs / jobs[0].setting / (f"data-{prepared.digest[:8]}" if prepared else "data")
    starts = {job.start_run: job for job in jobs}
    tasks = [Task(job, "start", runs, tuple(stages), folder, tuple(plugins)) for job in starts.values()]
    tasks += [Task(job, "loss", runs, tuple(stages), folder, tuple(plugins)) for job in jobs]
    return Plan((*first, *tasks), prepared, demonstrations)


def _sft_task(
    job: Job, stages: tuple[str, ...], plugins: tuple[str, ...], dry: bool
) -> tuple[tuple[Task, ...], Demonstrations | None]:
    """What makes the start model, where the setting names none that is finished; its conversations are read and stored.

    Raises PobenchError where the stage is asked for alone and there is none, or is needed and not asked for.
    """
    if job.sft is None:
        if set(stages) == {"sft"}:
            raise PobenchError(
                f"--stages sft: setting {job.setting!r} has no `sft` section; its start model {job.model.source} is finished"
            )
        return (), None
    home = cache_folder() / STAGES_ROOT
    if dry and not (_model_at_hand(job) and is_local(job.sft.source)):
        return ((Task(job, "sft", home, stages, home / "not-made", plugins),) if "sft" in stages else ()), None
    folder = stage_folder(job, remember=not dry)
    if "sft" not in stages:
        if not (folder.finished or dry):
            raise PobenchError(not_made(job))
        return (), None
    task = Task(job, "sft", home, stages, folder.path, plugins)
    if folder.finished:
        return (task,), None
    return (task,), read_demonstrations(job) if dry else prepare_stage(job)[1]


# ---------------------------------------------------------------- what it will cost
def check_disk(plan: Plan) -> None:
    """Raises PobenchError if the disk cannot hold what the plan writes (each trained model, one checkpoint with moments)."""
    need = estimate(plan).disk
    where = plan.tasks[-1].runs
    existing = next(p for p in [where.absolute(), *where.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if not math.isnan(need) and need > free:
        raise PobenchError(
            f"not enough disk space for {str(where)!r}: about {need / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free; "
            "free some, or choose another folder with --runs"
        )


def estimate(plan: Plan) -> Cost:
    """What is left of the plan; see `pobench.runs.cost`."""
    return estimate_cost(plan.tasks, plan.prepared)


def _model_at_hand(job: Job) -> Path | None:
    return cached_model(job.model.source, revision=job.model.revision, sha256=job.model.sha256)


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: jobs with hyperparameters and their sources, and the cost."""
    jobs = []
    for task in plan.tasks:
        folder = RunFolder(task.runs, task.run)
        row: dict[str, Any] = {"run": task.run, "title": task.title, "state": "done" if task.done else "to do"}
        if folder.failure:
            row["state"] = f"failed before: {folder.failure}"
        section = {"loss": "train", "sft": "sft"}.get(task.kind)
        if section:
            own = {f"{task.job.loss}.{k}": v for k, v in task.job.loss_settings.items()} if section == "train" else {}
            shown = ("lr", "epochs", "batch_size") if section == "train" else ("source", "lr", "epochs", "batch_size")
            row["values"] = {**own, **{f"{section}.{k}": getattr(getattr(task.job, section), k) for k in shown}}
            row["sources"] = {
                k: task.job.origin.get(k)
                or task.job.origin.get(f"{task.job.loss}.{k.removeprefix('train.')}")
                or "default"
                for k in row["values"]
            }
        jobs.append(row)
    cost = estimate(plan)
    job = plan.tasks[0].job
    return json.loads(
        json.dumps(
            {
                "setting": job.setting,
                "model": job.model.model_dump(),
                "data": job.data.model_dump(),
                "pairs": len(plan.prepared.train) if plan.prepared else None,
                "held_out": len(plan.prepared.heldout) if plan.prepared else None,
                "jobs": jobs,
                "cost": {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in cost.__dict__.items()},
                "judge": job.judge.name,
                "benchmarks": estimate_benchmarks(plan.tasks),
            }
        )
    )
