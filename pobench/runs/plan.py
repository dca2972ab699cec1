"""Losses × settings × seeds → runs and the stages that are left of each, named by content; nothing is run here."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pobench.data.chat import Chat
from pobench.data.demonstrations import Demonstrations
from pobench.data.order import Ratings
from pobench.data.pairs_folder import mean_tokens, tokens_of
from pobench.data.prepare import source_faults
from pobench.data.sampled import prompt_files
from pobench.errors import PobenchError, or_fault
from pobench.model import adapters, flash, liger, vllm
from pobench.model.device import device_faults
from pobench.model.load import check_model
from pobench.printing import size
from pobench.registry import get_loss, list_losses
from pobench.results.run_folder import RunFolder
from pobench.runs import stages as stage_list
from pobench.runs.content import Pairs, find_pairs, gather
from pobench.runs.cost import (
    Cost,
    Counts,
    estimate_benchmarks,
    estimate_cost,
    is_local,
    ranker_of,
    sharding_faults,
    with_sharding,
)
from pobench.runs.nodes import Layout
from pobench.runs.onpolicy import MadePairs
from pobench.runs.opponents import START, pairs_of, why_none
from pobench.runs.rounds import Later, in_rounds, pairs_task, rating_faults, rounds_faults
from pobench.runs.stage import Content
from pobench.runs.stages import reference
from pobench.runs.start_model import (
    STAGES_ROOT,
    base_model,
    is_made,
    mend_demonstrations,
    model_at_hand,
    not_made,
    prepare_stage,
    read_demonstrations,
    stage_faults,
    stage_folder,
)
from pobench.runs.task import Task, benchmarks_of
from pobench.settings.job import Job
from pobench.sources import cache_folder
from pobench.training.reference import old_caches


@dataclass(frozen=True)
class Plan:
    """Everything a command will do, in order: what makes the start model and its pairs, the reference sums, the start model's
    evaluation, the losses, later rounds, and pairs of losses head to head. A run has a task that trains and a task that
    evaluates, so that each has a process and its memory to itself.

    tasks: those with nothing left among them. pairs, content: None where neither pairs nor model are at hand. notes:
    sentences for the terminal. left_out: those of them that name a benchmark whose packages are absent. demonstrations:
    what an SFT stage that is left learns from. damaged: stored files and folders that may not be used; they are kept under
    another name. waits: its tasks make pairs, or a model that a later round begins from; what stands behind them is named by
    their content, so it is planned when they are there. root: the command's folder of runs. round_pairs: the token pairs of
    the rounds after the first.
    """

    tasks: tuple[Task, ...]
    notes: tuple[str, ...] = ()
    demonstrations: Demonstrations | None = None
    pairs: Pairs | None = None
    content: Content | None = None
    damaged: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()
    waits: bool = False
    root: Path | None = None
    round_pairs: tuple[Pairs, ...] = ()

    def without(self, failed: Collection[str]) -> Plan:
        """The plan with nothing left to do for runs that have failed, and without reference passes that nothing else reads."""
        kept = [replace(t, stages=(), references={}) if t.run in failed else t for t in self.tasks]
        read = {sums for task in kept if task.kind != "reference" for sums in task.references.values()}
        tasks = (task for task in kept if task.kind != "reference" or read & set(task.references.values()))
        return replace(self, tasks=tuple(tasks))

    @property
    def left(self) -> list[Task]:
        return [t for t in self.tasks if not t.done]

    def text(self) -> str:
        """For the terminal: what was read for that which is left, and what was left out."""
        kinds = {t.kind for t in self.left}
        lines = [self.demonstrations.text()] if "sft" in kinds and self.demonstrations is not None else []
        read = {task.data for task in self.left if task.kind not in stage_list.PREPARING}
        lines += [p.summary for p in (self.pairs, *self.round_pairs) if p is not None and p.folder.path in read]
        return "\n".join([*lines, *self.notes])

    @property
    def counts(self) -> Counts | None:
        """How many pairs, and their tokens; None where they are not read."""
        if self.pairs is None:
            return None
        if (prepared := self.pairs.prepared) is not None:
            longest = int(tokens_of(prepared.train).max(initial=0))
            tokens = mean_tokens(prepared.train)
            return Counts(len(prepared.train), len(prepared.heldout), tokens, longest, self.pairs.own)
        about = self.pairs.folder.about
        return Counts(about["pairs"]["train"], about["pairs"]["heldout"], about["tokens"], own=self.pairs.own)

    @property
    def runs(self) -> dict[str, list[Task]]:
        """Run → its tasks."""
        tasks_of_run: dict[str, list[Task]] = {}
        for task in self.tasks:
            tasks_of_run.setdefault(task.run, []).append(task)
        return tasks_of_run


def make_plan(
    jobs: Sequence[Job],
    runs: Path,
    stages: Sequence[str] = stage_list.DEFAULT,
    plugins: Sequence[str] = (),
    *,
    opponents: str = START,
    rounds: int = 1,
    dry: bool = False,
    like: Plan | None = None,
) -> Plan:
    """Read and check the data, and lay out the tasks. Nothing is written below `runs`.

    opponents: whom the losses' answers are judged against besides the start model, see `pairs_of`; the stage `compare` is
    theirs, and runs behind `judge`. rounds: of iterative training (`pobench.runs.rounds`). dry: touch nothing at all, not
    even a cache; the data is read only if it is at hand. like: a plan of the same model, data and prompts, whose content need
    not be gathered again. Raises PobenchError with all faults.
    """
    stages, plugins = tuple(stages), tuple(plugins)
    jobs, left_out = _without_absent([with_sharding(job) for job in in_rounds(jobs, rounds)], stages)
    resolved, job = jobs, jobs[0]
    _check(jobs, runs, stages, opponents, dry)
    if like is None and (folder := model_at_hand(job)) is not None:
        check_model(folder, trust_remote_code=job.model.trust_remote_code)
    notes, broken = [*left_out], list[Path]()
    first, demonstrations = _sft_task(job, stages, plugins, dry, notes, broken)
    if "onpolicy" in stages:
        own, _ = pairs_task(job, runs, plugins, dry, notes, broken)
        first = (*first, own)
        jobs = [MadePairs(own.data).as_data(each) if own.done else each for each in jobs]
        job = jobs[0]
    to_come = any(task.kind == "onpolicy" and not task.done for task in first)
    runs_wanted = not set(stages) <= stage_list.PREPARING
    if not runs_wanted or (to_come and not dry):
        waits = to_come and runs_wanted
        return Plan(first, tuple(notes), demonstrations, damaged=tuple(broken), waits=waits, root=runs)
    pairs, content = (None, None) if like is None else (like.pairs, like.content)
    if like is None and not to_come and (not dry or model_at_hand(job) is not None):
        chat = Chat.of(base_model(job), job.model)
        pairs = find_pairs(job, runs, chat, notes.append, remember=not dry)
        asked = () if dry else benchmarks_of(job, stages)  # a dry run reads no questions
        content = gather(job, stages, pairs, chat, notes.append, asked, remember=not dry)
    if "train" in stages and pairs is not None:
        _refuse_data(jobs, pairs)
    if content is not None and "heldout" in content.without:
        notes.append(
            "the data have no held-out pairs, so what is measured on them is missing; data.held_out may name some"
        )
    layout = Layout(runs, stages, plugins, pairs, content, notes, broken)
    evaluated = [layout.start(job) for job in {layout.start_name(job): job for job in jobs}.values()]
    trained = [task for job in jobs for task in layout.loss(job)]
    passes = layout.reference_tasks([*evaluated, *trained])
    later = Later.of(resolved, layout, trained, dry)
    passes += later.passes
    notes += _old_cache_note(passes)
    pairs_tasks = _pairs(layout, later.last, opponents) if later.last and {"judge", "compare"} & set(stages) else []
    return Plan(
        (*first, *passes, *evaluated, *trained, *later.tasks, *pairs_tasks),
        tuple(dict.fromkeys(notes)),
        demonstrations,
        pairs,
        content,
        tuple(dict.fromkeys(layout.damaged)),
        left_out,
        waits=later.waits and not dry,
        root=runs,
        round_pairs=tuple(later.pairs),
    )


def _pairs(layout: Layout, evaluations: Sequence[Task], opponents: str) -> list[Task]:
    """A task for every pair of losses that is judged head to head."""
    if why := why_none(evaluations, opponents):
        layout.notes.append(why)
        return []
    return [layout.pair(one, other) for one, other in pairs_of(evaluations, opponents)]


def _check(jobs: Sequence[Job], runs: Path, stages: tuple[str, ...], opponents: str, dry: bool) -> None:
    """Raises PobenchError that lists what this machine lacks for the jobs."""
    job = jobs[0]
    absent = [t for t in job.train.trackers if importlib.util.find_spec(t) is None]
    faults = [f"train.trackers: {', '.join(absent)} not installed; pip install {' '.join(absent)}"] if absent else []
    faults += device_faults()
    faults += rounds_faults(jobs, stages)
    faults += rating_faults(jobs, stages)
    faults += dict.fromkeys(fault for job in jobs for fault in adapters.missing(job.train.adapter))
    faults += dict.fromkeys(fault for job in jobs for fault in sharding_faults(job))
    faults += flash.missing(job.model.attention, job.train.layout, job.train.precision)
    faults += liger.missing(job.model.kernels, job.train.compile)
    if "answers" in stages:
        faults += dict.fromkeys(fault for job in jobs for fault in vllm.missing(job.answers.engine))
    if "compare" in stages and opponents == START:
        faults.append(
            "--stages compare: it judges two losses against each other; name them by --opponents all, or a loss"
        )
    if not (existing := _existing(runs)).is_dir():
        faults.append(f"--runs: {str(existing)!r} is a file, and a folder is needed")
    if not dry:
        if "onpolicy" in stages:  # it makes the pairs
            or_fault(faults, lambda: prompt_files(job))
        faults += source_faults(job, ("sft",) if "onpolicy" in stages else stages)
        benchmark_faults = [fault for benchmark in benchmarks_of(job, stages) for fault in benchmark.faults()]
        faults += [*benchmark_faults, *(["benchmarks can be left out: --benchmarks none"] if benchmark_faults else [])]
    if faults:
        raise PobenchError("\n".join(faults))


def _without_absent(jobs: Sequence[Job], stages: tuple[str, ...]) -> tuple[list[Job], tuple[str, ...]]:
    """The jobs without benchmarks whose packages are not installed, and a sentence for each of those."""
    absent = {b.name: packages for job in jobs for b in benchmarks_of(job, stages) if (packages := b.absent())}
    kept = [replace(job, benchmarks={k: v for k, v in job.benchmarks.items() if k not in absent}) for job in jobs]
    texts = (
        f"benchmark {name} is left out: {', '.join(packages)} not installed; pip install {' '.join(packages)}"
        for name, packages in absent.items()
    )
    return kept, tuple(texts)


def _refuse_data(jobs: Sequence[Job], pairs: Pairs) -> None:
    """Raises PobenchError for losses that find no item to train on, for losses that need `kl`, where all training items share
    one prompt, and for losses that need `scores`, where some have none."""
    unit_of = {job.loss: get_loss(job.loss).unit for job in jobs}
    counts, ratings = pairs.counts, pairs.ratings
    faults = []
    if names := _names(loss for loss, unit in unit_of.items() if not counts[pairs.part(unit)]):
        able = _names(loss.name for loss in map(get_loss, list_losses()) if loss.unit in pairs.own)
        faults.append(
            f"{names}: no prompt of the data has both a desirable and an undesirable answer, so there is no pair to train on; "
            f"add the other answers, or train losses of single answers ({able})"
        )
    for unit in dict.fromkeys(unit_of.values()):
        of_unit = [loss for loss in unit_of if unit_of[loss] == unit]
        part = pairs.part(unit)
        items = f"training {unit if part == unit else 'pairs'}"
        if (names := _names(loss for loss in of_unit if "kl" in get_loss(loss).needs)) and pairs.of_one_prompt(unit):
            faults.append(
                f"{names}: all {items} share one prompt, and kl is estimated from answers to other prompts; "
                "train on at least two prompts, or leave this loss out"
            )
        names = _names(loss for loss in of_unit if "scores" in get_loss(loss).needs)
        if names and ratings[part].missing:
            faults.append(f"{names}: {_unrated(items, ratings[part])}, or leave this loss out")
    if faults:
        raise PobenchError("\n".join(faults))


def _names(losses: Iterable[str]) -> str:
    return ", ".join(sorted(set(losses)))


def _unrated(items: str, ratings: Ratings) -> str:
    some = ", ".join(ratings.first_missing) + (" …" if ratings.missing > len(ratings.first_missing) else "")
    columns = "(data.columns.score_chosen=COLUMN data.columns.score_rejected=COLUMN)"
    if items != "training pairs":
        columns = "(data.columns.scores=COLUMN, or of single answers data.columns.score=COLUMN)"
    return (
        f"needs the data's ratings of {'both answers' if 'pairs' in items else 'each answer'} (scores), and "
        f"{ratings.missing} {items} have none: {some}; name the columns {columns}"
    )


def _sft_task(
    job: Job, stages: tuple[str, ...], plugins: tuple[str, ...], dry: bool, notes: list[str], damaged: list[Path]
) -> tuple[tuple[Task, ...], Demonstrations | None]:
    """What makes the start model, where the setting names none that is finished; its conversations are read and stored.

    notes: takes sentences, damaged: files that may not be used. Raises PobenchError where the stage is asked for alone and
    there is none, or is needed and not asked for.
    """
    if job.sft is None:
        if set(stages) == {"sft"}:
            raise PobenchError(
                f"--stages sft: setting {job.setting!r} has no `sft` section; its start model {job.model.source} is finished"
            )
        return (), None
    home = cache_folder() / STAGES_ROOT
    if dry and not (model_at_hand(job) and is_local(job.sft.source)):
        unnamed = Task(job, "sft", home, "not-made", ("sft",), home / "not-made", plugins=plugins)
        return ((unnamed,) if "sft" in stages else ()), None
    folder = stage_folder(job, remember=not dry)
    faults, finished = stage_faults(folder), is_made(folder)
    if "sft" not in stages:
        if not (finished or dry):
            raise PobenchError("\n".join([*map(str, faults), not_made(job)]))
        return (), None
    if faults:
        notes += [f"{fault}; the start model is made again" for fault in faults]
        damaged.append(folder.path / "trained.json")
    task = Task(job, "sft", home, folder.run, () if finished else ("sft",), folder.path, plugins=plugins)
    if finished:
        if not dry:
            mend_demonstrations(job, folder)
        return (task,), None
    return (task,), read_demonstrations(job) if dry else prepare_stage(job)[1]


def _old_cache_note(passes: Iterable[Task]) -> list[str]:
    old = old_caches(cache_folder() / reference.FOLDER) if any(not task.done for task in passes) else []
    if not old:
        return []
    return [f"reference sums of protocol 1 are not read: {', '.join(old)}; the pass is made once more, as whole files"]


# ---------------------------------------------------------------- what it will cost
def check_disk(plan: Plan) -> None:
    """Raises PobenchError if the folder cannot be written, or the disk cannot hold what the plan writes (`Cost.disk`)."""
    need = estimate(plan).disk
    where = plan.tasks[-1].runs
    existing = _existing(where)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PobenchError(f"--runs: the folder {str(existing)!r} cannot be written; choose another")
    free = shutil.disk_usage(existing).free
    if not math.isnan(need) and need > free:
        raise PobenchError(
            f"not enough disk space for {str(where)!r}: about {size(need)} needed, {size(free)} free; "
            "free some, or choose another folder with --runs"
        )


def _existing(path: Path) -> Path:
    """The path itself, or the nearest above it that exists."""
    return next(
        p for p in [path.absolute(), *path.absolute().parents] if os.path.exists(p)
    )  # False for a name too long


def estimate(plan: Plan) -> Cost:
    """What is left of the plan; see `pobench.runs.cost`."""
    return estimate_cost(plan.tasks, plan.counts)


def describe(plan: Plan) -> dict[str, Any]:
    """The plan as plain data: runs with hyperparameters, their sources and the stages that are left, and the cost."""
    cost = estimate(plan)
    job = plan.tasks[0].job
    counts = plan.counts
    return json.loads(  # type: ignore[no-any-return]
        json.dumps(
            {
                "setting": job.setting,
                "model": job.model.model_dump(),
                "data": job.data.model_dump(),
                "pairs": counts.train if counts else None,
                "held_out": counts.heldout if counts else None,
                **({unit: own.items for unit, own in counts.own.items()} if counts else {}),
                "jobs": [_described(tasks) for tasks in plan.runs.values()],
                "notes": list(plan.notes),
                "cost": {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in cost.__dict__.items()},
                "judge": _judges(plan),
                "benchmarks": estimate_benchmarks(plan.tasks),
            }
        )
    )


def _judges(plan: Plan) -> str | None:
    """The judge of a plan's answers, and the ranker of its samples."""
    rankers = [ranker_of(task.job) for task in plan.tasks if "onpolicy" in task.stages]
    return " and ".join(dict.fromkeys(filter(None, [plan.tasks[0].job.judge.name, *rankers]))) or None


_SHOWN = {  # kind of task → its section, and the values of it that a plan prints
    "loss": ("train", ("lr", "epochs", "batch_size")),
    "sft": ("sft", ("source", "lr", "epochs", "batch_size")),
    "onpolicy": ("onpolicy", ("prompts", "samples", "temperature", "top_p", "max_new_tokens")),
}


def _described(tasks: Sequence[Task]) -> dict[str, Any]:
    task, left = tasks[0], [stage for task in tasks for stage in task.stages]
    folder = RunFolder(task.runs, task.run)
    row: dict[str, Any] = {
        "run": task.run,
        "kind": task.kind,
        "title": task.title,
        "state": "to do" if left else "done",
        "left": left,
    }
    if left and folder.failure:
        row["state"] = f"failed before: {folder.failure}"
    section, shown = _SHOWN.get(task.kind, ("", ()))
    if section:
        loss = get_loss(task.job.loss) if section == "train" else None
        own = {loss.key(k): v for k, v in task.job.loss_settings.items()} if loss else {}
        row["values"] = {**own, **{f"{section}.{k}": getattr(getattr(task.job, section), k) for k in shown}}
        row["sources"] = {
            k: task.job.origin.get(k) or task.job.origin.get(f"{task.job.loss}.{k.removeprefix('train.')}") or "default"
            for k in row["values"]
        }
    return row
