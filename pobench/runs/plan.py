"""Losses × settings × seeds → runs and the stages that are left of each, named by content; nothing is run here."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pobench.data.chat import Chat
from pobench.data.demonstrations import Demonstrations
from pobench.data.pairs_folder import mean_tokens
from pobench.data.prepare import source_faults
from pobench.errors import CorruptError, PobenchError
from pobench.identity import PROTOCOL, changed, name_of
from pobench.model import adapters, vllm
from pobench.results.run_folder import RunFolder
from pobench.runs import stages as stage_list
from pobench.runs.content import Pairs, find_pairs, gather
from pobench.runs.cost import GIB, Cost, Counts, estimate_benchmarks, estimate_cost, is_local
from pobench.runs.stage import Content, Node
from pobench.runs.stages import reference, train
from pobench.runs.start_model import (
    STAGES_ROOT,
    base_model,
    not_made,
    prepare_stage,
    read_demonstrations,
    stage_folder,
)
from pobench.runs.task import Task, benchmarks_of
from pobench.settings.job import Job
from pobench.sources import cache_folder, cached_model
from pobench.training.reference import ReferenceSums, about_reference, old_caches


@dataclass(frozen=True)
class Plan:
    """Everything a command will do, in order: what makes the start model, its reference sums, its evaluation, then the
    losses. A run has a task that trains and a task that evaluates, so that each has a process and its memory to itself.

    tasks: those with nothing left among them. pairs, content: None where neither pairs nor model are at hand. notes:
    sentences for the terminal. demonstrations: what an SFT stage that is left learns from. damaged: stored files and folders
    that may not be used; they are kept under another name.
    """

    tasks: tuple[Task, ...]
    notes: tuple[str, ...] = ()
    demonstrations: Demonstrations | None = None
    pairs: Pairs | None = None
    content: Content | None = None
    damaged: tuple[Path, ...] = ()

    @property
    def left(self) -> list[Task]:
        return [t for t in self.tasks if not t.done]

    def text(self) -> str:
        """For the terminal: what was read for that which is left, and what was left out."""
        kinds = {t.kind for t in self.left}
        lines = [self.demonstrations.text()] if "sft" in kinds and self.demonstrations is not None else []
        if kinds - {"sft"} and self.pairs is not None:
            lines.append(self.pairs.summary)
        return "\n".join([*lines, *self.notes])

    @property
    def counts(self) -> Counts | None:
        """How many pairs, and their tokens; None where they are not read."""
        if self.pairs is None:
            return None
        if (prepared := self.pairs.prepared) is not None:
            return Counts(len(prepared.train), len(prepared.heldout), mean_tokens(prepared.train))
        about = self.pairs.folder.about
        return Counts(about["pairs"]["train"], about["pairs"]["heldout"], about["tokens"])

    @property
    def runs(self) -> dict[str, list[Task]]:
        """Run → its tasks."""
        found: dict[str, list[Task]] = {}
        for task in self.tasks:
            found.setdefault(task.run, []).append(task)
        return found


def make_plan(
    jobs: Sequence[Job],
    runs: Path,
    stages: Sequence[str] = stage_list.DEFAULT,
    plugins: Sequence[str] = (),
    *,
    dry: bool = False,
    like: Plan | None = None,
) -> Plan:
    """Read and check the data, and lay out the tasks. Nothing is written below `runs`.

    dry: touch nothing at all, not even a cache; the data is read only if it is at hand. like: a plan of the same model,
    data and prompts, whose content need not be gathered again. Raises PobenchError with all faults.
    """
    job, stages, plugins = jobs[0], tuple(stages), tuple(plugins)
    _check(jobs, stages, dry)
    first, demonstrations = _sft_task(job, stages, plugins, dry)
    if set(stages) == {"sft"}:
        return Plan(first, demonstrations=demonstrations)
    notes: list[str] = []
    pairs, content = (None, None) if like is None else (like.pairs, like.content)
    if like is None and (not dry or _model_at_hand(job) is not None):
        chat = Chat.of(base_model(job), job.model)
        pairs = find_pairs(job, runs, chat, notes.append, remember=not dry)
        content = gather(job, stages, pairs, chat, remember=not dry)
    layout = _Layout(runs, stages, plugins, pairs, content, notes, [])
    evaluated = [layout.start(job) for job in {layout.start_name(job): job for job in jobs}.values()]
    trained = [task for job in jobs for task in layout.loss(job)]
    passes = layout.reference_tasks([*evaluated, *trained], jobs)
    notes += _old_cache_note(passes)
    tasks, damaged = (*first, *passes, *evaluated, *trained), tuple(dict.fromkeys(layout.damaged))
    return Plan(tasks, tuple(dict.fromkeys(notes)), demonstrations, pairs, content, damaged)


def _check(jobs: Sequence[Job], stages: tuple[str, ...], dry: bool) -> None:
    """Raises PobenchError that lists what this machine lacks for the jobs."""
    job = jobs[0]
    absent = [t for t in job.train.trackers if importlib.util.find_spec(t) is None]
    faults = [f"train.trackers: {', '.join(absent)} not installed; pip install 'pobench[trackers]'"] if absent else []
    faults += dict.fromkeys(fault for job in jobs for fault in adapters.missing(job.train.adapter))
    if "answers" in stages:
        faults += dict.fromkeys(fault for job in jobs for fault in vllm.missing(job.answers.engine))
    if not dry:
        faults += source_faults(job, stages)
        lacking = [fault for benchmark in benchmarks_of(job, stages) for fault in benchmark.faults()]
        faults += [*lacking, *(["benchmarks can be left out: --benchmarks none"] if lacking else [])]
    if faults:
        raise PobenchError("\n".join(faults))


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
        unnamed = Task(job, "sft", home, "not-made", ("sft",), home / "not-made", plugins=plugins)
        return ((unnamed,) if "sft" in stages else ()), None
    folder = stage_folder(job, remember=not dry)
    finished = folder.trained is not None
    if "sft" not in stages:
        if not (finished or dry):
            raise PobenchError(not_made(job))
        return (), None
    task = Task(job, "sft", home, folder.run, () if finished else ("sft",), folder.path, plugins=plugins)
    if finished:
        return (task,), None
    return (task,), read_demonstrations(job) if dry else prepare_stage(job)[1]


def _old_cache_note(passes: Iterable[Task]) -> list[str]:
    old = old_caches(cache_folder() / reference.FOLDER) if any(not task.done for task in passes) else []
    if not old:
        return []
    return [f"reference sums of protocol 1 are not read: {', '.join(old)}; the pass is made once more, as whole files"]


# ---------------------------------------------------------------- runs, nodes, and what is left of them
@dataclass
class _Layout:
    """Names the runs of a plan and their results by content, and finds what is left. content: None where neither pairs
    nor model are at hand; then a run is named by its values, and everything is left."""

    runs: Path
    stages: tuple[str, ...]
    plugins: tuple[str, ...]
    pairs: Pairs | None
    content: Content | None
    notes: list[str]
    damaged: list[Path]

    @property
    def data(self) -> Path:
        return self.pairs.folder.path if self.pairs is not None else self.runs / "data"

    def start_name(self, job: Job) -> str:
        """`<setting>/start-<12 hex>`: the start model, in one precision."""
        if self.content is None:
            return f"{job.setting}/start-{name_of({'model': job.model.causes(), 'precision': job.train.precision})}"
        return f"{job.setting}/start-{name_of(self.start_causes(job))}"

    def start_causes(self, job: Job) -> dict[str, Any]:
        assert self.content is not None
        precision = self.content.precise(job.train.precision)
        weights = {"weights": self.content.weights, "attention": job.model.attention, "precision": precision}
        return {"protocol": PROTOCOL, **weights}

    def causes(self, job: Job) -> dict[str, Any]:
        """Of a trained model."""
        assert self.content is not None
        return {"protocol": PROTOCOL, **train.causes(job, self.content)}

    def start(self, job: Job) -> Task:
        """The start model's evaluation."""
        base = Task(job, "start", self.runs, self.start_name(job), (), self.data, plugins=self.plugins)
        if self.content is None:
            wanted = tuple(
                s.name for s in stage_list.STAGES if s.per_run and s.name in self.stages and s.name != "train"
            )
            return replace(base, start=base.run, stages=wanted)
        nodes = self.nodes(job, base.run, "start")
        task = replace(base, start=base.run, nodes=nodes, causes=self.start_causes(job))
        return self._evaluation(task, retrained=False)

    def loss(self, job: Job) -> list[Task]:
        """The training of a run, and its evaluation."""
        if self.content is None:
            run = f"{job.setting}/{job.loss}-{job.key}"
            base = Task(job, "loss", self.runs, run, (), self.data, start=self.start_name(job), plugins=self.plugins)
            wanted = [s.name for s in stage_list.STAGES if s.per_run and s.name in self.stages]
            first = tuple(s for s in wanted if s == "train")
            return [replace(base, stages=first), replace(base, stages=tuple(s for s in wanted if s != "train"))]
        causes = self.causes(job)
        run, start = f"{job.setting}/{job.loss}-{name_of(causes)}", self.start_name(job)
        task = Task(job, "loss", self.runs, run, (), self.data, start=start, causes=causes, plugins=self.plugins)
        task = replace(task, nodes=self.nodes(job, start, "loss"))
        folder = RunFolder(self.runs, run)
        trained = folder.trained is not None
        evaluation = self._evaluation(task, retrained=not trained)
        gone = not folder.has("model")
        if trained and not gone and (faults := folder.corrupt_weights(read=bool(evaluation.stages))):
            self.notes += [f"{fault}; the model is trained again" for fault in faults]
            trained, evaluation = False, self._evaluation(task, retrained=True)
            self.damaged.append(folder.path / "trained.json")
        if trained and gone and evaluation.stages:
            trained = False
        if not trained:
            self._note_change(task)
        fresh = "train" in self.stages and not trained
        if not (trained or fresh):  # nothing trained yet, and training not asked for
            evaluation = replace(evaluation, stages=())
        training = replace(task, stages=("train",) if fresh else ())
        return [self._with_references(training), self._with_references(evaluation)]

    def nodes(self, job: Job, start: str, kind: str) -> dict[str, Node]:
        """Stage → its result, of every stage behind a model that this job has."""
        assert self.content is not None
        found: dict[str, Node] = {}
        for stage in stage_list.STAGES:
            causes = stage.causes(job, self.content) if stage.per_run and stage.name != "train" else None
            if causes is None:
                continue
            causes = dict(causes)
            if stage.name == "judge":
                causes["answers"] = found["answers"].name
                if kind == "loss" and _compares(job):
                    causes["start"] = start
            found[stage.name] = Node(stage.name, causes)
        for which in reference.sets_of(job, kind, stage_list.ALL):
            found[f"reference:{which}"] = reference.node_of(job, self.content, which)
        return found

    def _evaluation(self, task: Task, *, retrained: bool) -> Task:
        """The stages behind the model that are left."""
        folder = RunFolder(self.runs, task.run)
        left = []
        for stage in stage_list.STAGES:
            if not stage.per_run or stage.name == "train" or stage.name not in self.stages:
                continue
            if stage.name == "benchmarks":
                asked = benchmarks_of(task.job, self.stages)
                if any(retrained or not b.done(folder.path) for b in asked):
                    left.append(stage.name)
            elif stage.name in task.nodes and (retrained or not self._there(folder, task.nodes[stage.name])):
                left.append(stage.name)
        if left and not retrained:
            self._note_results(folder, task, left)
        return self._with_references(replace(task, stages=tuple(left)))

    def _there(self, folder: RunFolder, node: Node) -> bool:
        """Whether a node's result is stored, whole, and made by the weights that the run has now."""
        stored = folder.node(node.name)
        if not stored.finished:
            return False
        if faults := stored.faults():
            self.notes += [f"{fault}; it is made anew" for fault in faults]
            self.damaged.append(stored.path)
            return False
        if stored.about["model"] != folder.weights:
            self.notes.append(f"{stored.path}: it was made by other weights than the run has now; it is made anew")
            self.damaged.append(stored.path)
            return False
        return True

    def _with_references(self, task: Task) -> Task:
        """The folders of the reference sums that the task's stages read."""
        sets = reference.sets_of(task.job, task.kind, task.stages)
        found = {s: _sums_folder(task.nodes[f"reference:{s}"]) for s in sets if f"reference:{s}" in task.nodes}
        return replace(task, references=found)

    def reference_tasks(self, tasks: Sequence[Task], jobs: Sequence[Job]) -> list[Task]:
        """One for each arithmetic: the sets of sequences that a task reads, or `--stages reference` names, and that are not
        there."""
        read = [(task, which) for task in tasks for which in task.references]
        if "reference" in self.stages and not {"train", "heldout"} & set(self.stages) and self.content is not None:
            named = [task for job in jobs for task in self.loss(job)[:1]]
            read += [(t, which) for t in named for which in reference.sets_of(t.job, "loss", stage_list.DEFAULT)]
        passes: dict[str, Task] = {}
        for task, which in read:
            node = task.nodes[f"reference:{which}"]
            folder = _sums_folder(node)
            if self._sums_there(folder):
                continue
            arithmetic = {k: v for k, v in node.causes.items() if k not in ("set", "sequences")}
            run = f"pass-{name_of(arithmetic)}"
            new = Task(task.job, "reference", cache_folder() / reference.FOLDER, run, ("reference",), self.data)
            known = passes.setdefault(run, replace(new, plugins=self.plugins))
            passes[run] = replace(
                known,
                references={**known.references, which: folder},
                nodes={**known.nodes, f"reference:{which}": node},
            )
        return list(passes.values())

    def _sums_there(self, folder: Path) -> bool:
        """Whether a set of reference sums is stored, with the bytes that were written."""
        try:
            if about_reference(folder) is None:
                return False
            ReferenceSums.load(folder)
        except CorruptError as error:
            self.notes.append(f"{error}; the pass is made once more")
            self.damaged.append(folder)
            return False
        return True

    # -- what changed

    def _note_change(self, task: Task) -> None:
        """A sentence where the same command has trained this before, from other content."""
        earlier = _earlier(self.runs / task.job.setting, task)
        if earlier is None:
            return
        name, keys = earlier
        what = " and ".join(_WORDS.get(key, key) for key in keys)
        self.notes.append(f"{task.title}: {what} changed since {name}; that run stays, and a new one is made beside it")

    def _note_results(self, folder: RunFolder, task: Task, left: Sequence[str]) -> None:
        """A sentence for each result that is there already, made from something else."""
        shown = folder.shown
        for stage in left:
            before = folder.node(shown[stage]) if stage in shown else None
            if before is None or not before.finished or shown[stage] == task.nodes[stage].name:
                continue
            keys = changed(before.about["causes"], json.loads(json.dumps(dict(task.nodes[stage].causes))))
            what = ", ".join(_WORDS.get(key, key) for key in keys)
            self.notes.append(f"{task.title}: {stage} is made anew ({what} changed); {shown[stage]} stays beside it")


_WORDS = {
    "source": "the source code",
    "pairs": "the token pairs",
    "weights": "the start weights",
    "prompts": "the prompts",
    "rows": "the prompts' rows",
    "protocol": "the protocol",
    "answers": "the answers",
    "start": "the start model",
}


def _earlier(folder: Path, task: Task) -> tuple[str, list[str]] | None:
    """The stored run that differs from the task in content alone, and in what; None where there is none."""
    now = json.loads(json.dumps(dict(task.causes)))
    best: tuple[str, list[str]] | None = None
    for path in sorted(folder.glob(f"{task.job.loss}-*/trained.json")):
        keys = changed(json.loads(path.read_text(encoding="utf-8")).get("causes", {}), now)
        if (
            keys
            and set(keys) <= {"source", "pairs", "weights", "protocol"}
            and (best is None or len(keys) < len(best[1]))
        ):
            best = (path.parent.name, keys)
    return best


def _sums_folder(node: Node) -> Path:
    return cache_folder() / reference.FOLDER / node.name.rpartition("-")[2]


def _compares(job: Job) -> bool:
    """Whether the job's judge compares with the start model's answers."""
    from pobench.judging import grades
    from pobench.registry import judges

    assert job.judge.name is not None
    return not grades(judges.get(job.judge.name)(**job.judge.settings))


def _model_at_hand(job: Job) -> Path | None:
    return cached_model(job.model.source, revision=job.model.revision, sha256=job.model.sha256)


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
                "jobs": [_described(tasks) for tasks in plan.runs.values()],
                "notes": list(plan.notes),
                "cost": {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in cost.__dict__.items()},
                "judge": job.judge.name,
                "benchmarks": estimate_benchmarks(plan.tasks),
            }
        )
    )


def _described(tasks: Sequence[Task]) -> dict[str, Any]:
    task, left = tasks[0], [stage for task in tasks for stage in task.stages]
    folder = RunFolder(task.runs, task.run)
    row: dict[str, Any] = {"run": task.run, "title": task.title, "state": "to do" if left else "done", "left": left}
    if left and folder.failure:
        row["state"] = f"failed before: {folder.failure}"
    section = {"loss": "train", "sft": "sft"}.get(task.kind)
    if section:
        own = {f"{task.job.loss}.{k}": v for k, v in task.job.loss_settings.items()} if section == "train" else {}
        shown = ("lr", "epochs", "batch_size") if section == "train" else ("source", "lr", "epochs", "batch_size")
        row["values"] = {**own, **{f"{section}.{k}": getattr(getattr(task.job, section), k) for k in shown}}
        row["sources"] = {
            k: task.job.origin.get(k) or task.job.origin.get(f"{task.job.loss}.{k.removeprefix('train.')}") or "default"
            for k in row["values"]
        }
    return row
