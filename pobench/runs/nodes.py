"""The runs of a plan and their results, named by content, and what is left of them.

A run is a trained model; a node is one stage's result behind it. What is stored under a node's name is used only where its
bytes are those that were written and its model is the one that the run has now.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pobench.composition import folder_name
from pobench.errors import CorruptError
from pobench.files import read_marker, refuse_corrupt
from pobench.identity import PROTOCOL, changed, name_of
from pobench.registry import get_loss, judges
from pobench.results.run_folder import NodeFolder, RunFolder
from pobench.runs import stages as stage_list
from pobench.runs.content import Pairs
from pobench.runs.stage import Content, Node, Stage
from pobench.runs.stages import answers, compare, density_ratio, reference, train
from pobench.runs.task import Task, benchmarks_of
from pobench.settings.job import Job, Round
from pobench.sources import cache_folder, file_digest
from pobench.training.density_ratio import DensityRatios, about_density_ratio
from pobench.training.reference import ReferenceSums, about_reference
from pobench.training.token_inputs import by_token


@dataclass
class Layout:
    """Names the runs of a plan and their results by content, and finds what is left. content: None where neither pairs
    nor model are at hand; then a run is named by its values, and everything is left."""

    runs: Path
    stages: tuple[str, ...]
    plugins: tuple[str, ...]
    pairs: Pairs | None
    content: Content | None
    notes: list[str]
    damaged: list[Path]
    start_left: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # a start model's run → its stages that are left
    stored: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = field(
        default_factory=dict
    )  # setting, loss → (name, causes) of the trained models that are there

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
        weights = {"weights": self.content.weights, **job.model.layers, "precision": precision}
        return {"protocol": PROTOCOL, **weights}

    def causes(self, job: Job) -> dict[str, Any]:
        """Of a trained model."""
        assert self.content is not None
        return {"protocol": PROTOCOL, **train.causes(job, self.content)}

    def start(self, job: Job) -> Task:
        """The start model's evaluation."""
        job = job.of_start()
        base = Task(job, "start", self.runs, self.start_name(job), (), self.data, plugins=self.plugins)
        if self.content is None:
            wanted = tuple(
                s.name for s in stage_list.STAGES if s.per_run and s.name in self.stages and s.name != "train"
            )
            return replace(base, start=base.run, stages=wanted)
        nodes = self.nodes(job, base.run, "start")
        task = self._speaking(replace(base, start=base.run, nodes=nodes, causes=self.start_causes(job)))
        evaluation = self._evaluation(task, retrained=False)
        self.start_left[task.run] = evaluation.stages
        return evaluation

    def loss(self, job: Job) -> list[Task]:
        """The training of a run, and its evaluation."""
        if self.content is None:
            later = f"-round-{job.round.number}" if job.round.number > 1 else ""
            run = f"{job.setting}/{folder_name(job.loss)}-{job.key}{later}"
            base = Task(job, "loss", self.runs, run, (), self.data, start=self.start_name(job), plugins=self.plugins)
            wanted = [s.name for s in stage_list.STAGES if s.per_run and s.name in self.stages]
            first = tuple(s for s in wanted if s == "train")
            return [replace(base, stages=first), replace(base, stages=tuple(s for s in wanted if s != "train"))]
        causes = self.causes(job)
        run, start = f"{job.setting}/{folder_name(job.loss)}-{name_of(causes)}", self.start_name(job)
        task = Task(job, "loss", self.runs, run, (), self.data, start=start, causes=causes, plugins=self.plugins)
        task = self._speaking(replace(task, nodes=self.nodes(job, start, "loss")))
        folder = RunFolder(self.runs, run)
        trained = self._is_marked(folder)
        evaluation = self._evaluation(task, retrained=not trained)
        gone = not folder.has("model")
        if trained and not gone and (faults := folder.corrupt_weights(read=bool(evaluation.stages))):
            self.notes += [f"{fault}; the model is trained again" for fault in faults]
            trained, evaluation = False, self._evaluation(task, retrained=True)
            self.damaged.append(folder.path / "trained.json")
        if trained and gone and evaluation.stages:
            trained = False
        if not trained and job.round.number == 1:
            self._note_change(task)
        fresh = "train" in self.stages and not trained
        if not (trained or fresh):  # nothing trained yet, and training not asked for
            evaluation = replace(evaluation, stages=())
        training = replace(task, stages=("train",) if fresh else ())
        return [self._with_references(training), self._with_references(evaluation)]

    def _is_marked(self, folder: RunFolder) -> bool:
        """Whether training has finished, by a marker that holds what was written."""
        try:
            return folder.trained is not None
        except CorruptError as error:
            self.notes.append(f"{error}; the model is trained again")
            self.damaged.append(error.path)
            return False

    def _speaking(self, task: Task) -> Task:
        """The task with the chat template and the precision that its model generates with."""
        assert self.content is not None
        precision = task.generates_in(self.content.precision)
        return replace(task, rendering=self.content.rendering, precision=precision)

    def nodes(self, job: Job, start: str, kind: str) -> dict[str, Node]:
        """Stage → its result, of every stage behind a model that this job has."""
        assert self.content is not None
        nodes: dict[str, Node] = {}
        for stage in stage_list.STAGES:
            causes = stage.causes(job, self.content) if stage.per_run and stage.name != "train" else None
            if causes is None:
                continue
            causes = dict(causes)
            if stage.name == "judge":
                causes["answers"] = nodes["answers"].name
                if kind == "loss" and _compares(job):
                    nodes["start:answers"] = Node("answers", answers.causes(job.of_start(), self.content) or {})
                    causes["start"] = f"{start}/{nodes['start:answers'].name}"
            if kind == "loss" and "scores" in get_loss(job.loss).needs and stage.name in ("heldout", "trainpairs"):
                causes["scores"] = self.content.heldout_scores if stage.name == "heldout" else self.content.scores
            if kind == "loss" and stage.name in ("heldout", "trainpairs") and (asked := by_token(get_loss(job.loss))):
                causes["by_token"] = asked  # earlier versions did not compute them, so the loss was missing
            nodes[stage.name] = Node(stage.name, causes)
        for which in reference.sets_of(job, kind, stage_list.ALL):
            if {"heldout": "heldout", "pairs": "train"}.get(which) in self.content.without:
                continue
            nodes[f"reference:{which}"] = reference.node_of(job, self.content, which)
        if kind == "loss" and (ratios := density_ratio.node_of(job, self.content)):
            nodes[density_ratio.NODE] = ratios
        return nodes

    def pair(self, one: Task, other: Task) -> Task:
        """The verdicts on two losses' answers. one, other: their evaluations, in the order of `pairs_of`."""
        sides = (one.run, other.run)
        run = f"{one.job.setting}/pair-{name_of({'sides': sides})}"
        task = Task(one.job, "pair", self.runs, run, ("compare",), self.data, start=one.start, sides=sides)
        task = replace(task, plugins=self.plugins)
        if self.content is None:
            return task
        causes = dict(compare.causes(one.job, self.content) or {})
        causes["answers"] = {side.run: side.nodes["answers"].name for side in (one, other)}
        task = replace(task, nodes={"compare": Node("compare", causes)})
        if any("answers" in side.stages for side in (one, other)):
            return task
        folder = RunFolder(self.runs, run)
        if self._there(folder, task, compare.STAGE):
            return replace(task, stages=())
        self._note_results(folder, task, task.stages)
        return task

    def _evaluation(self, task: Task, *, retrained: bool) -> Task:
        """The stages behind the model that are left."""
        folder, spoken = RunFolder(self.runs, task.run), None if retrained else task.spoken
        left = []
        for stage in stage_list.STAGES:
            if not stage.per_run or stage.name == "train" or stage.name not in self.stages:
                continue
            if stage.name == "benchmarks":
                benchmarks = benchmarks_of(task.job, self.stages)
                if any(retrained or spoken is None or not b.done(folder.path, spoken) for b in benchmarks):
                    left.append(stage.name)
            elif stage.name in task.nodes:
                anew = retrained or self._reads_what_is_left(task, stage, left)
                if anew or not self._there(folder, task, stage):
                    left.append(stage.name)
        if left and not retrained:
            self._note_results(folder, task, left)
        return self._with_references(replace(task, stages=tuple(left)))

    def _reads_what_is_left(self, task: Task, stage: Stage, left: Sequence[str]) -> bool:
        """Whether a result that the stage reads is made anew, the run's own or the start model's."""
        compared = "start" in task.nodes[stage.name].causes and task.kind == "loss"
        return bool(set(stage.reads) & {*left, *(self.start_left.get(task.start, ()) if compared else ())})

    def _there(self, folder: RunFolder, task: Task, stage: Stage) -> bool:
        """Whether a stage's result is stored, whole, and made from the weights and the results that are stored now."""
        stored = folder.node(task.nodes[stage.name].name)
        if not stored.finished:
            return False
        if faults := stored.faults():
            self.notes += [f"{fault}; it is made anew" for fault in faults]
            self.damaged.append(stored.path)
            return False
        read = stage.read(task)
        if None in read.values():  # these are made anew first; if they come out the same, the result stays
            return False
        if not stored.made_from(folder.weights, read):
            self.notes.append(
                f"{stored.path}: it was made from other weights or answers than are stored; it is made anew"
            )
            self.damaged.append(stored.path)
            return False
        return True

    def _with_references(self, task: Task) -> Task:
        """The folders of the reference sums, and of the density ratios, that the task's stages read."""
        sets = reference.sets_of(task.job, task.kind, task.stages)
        folders = {s: _sums_folder(task.nodes[f"reference:{s}"]) for s in sets if f"reference:{s}" in task.nodes}
        if "train" in task.stages and density_ratio.NODE in task.nodes:
            folders[density_ratio.NAME] = density_ratio.folder_of(task.nodes[density_ratio.NODE])
        return replace(task, references=folders)

    def reference_tasks(self, tasks: Sequence[Task]) -> list[Task]:
        """One for each arithmetic: the sets of sequences that a task reads, or `--stages reference` names, and that are not
        there. Behind them one for each set of density ratios."""
        read = [(task, which) for task in tasks for which in task.references if which != density_ratio.NAME]
        if "reference" in self.stages and not {"train", "heldout"} & set(self.stages) and self.content is not None:
            losses = [task for task in tasks if task.kind == "loss"]
            sets = [(t, which) for t in losses for which in reference.sets_of(t.job, t.kind, stage_list.DEFAULT)]
            read += [(task, which) for task, which in sets if f"reference:{which}" in task.nodes]
        self._note_unread(tasks, {_sums_folder(t.nodes[f"reference:{which}"]) for t, which in read})
        passes: dict[str, Task] = {}
        for task, which in read:
            node = task.nodes[f"reference:{which}"]
            folder = _sums_folder(node)
            if self._sums_there(folder):
                continue
            arithmetic = {k: v for k, v in node.causes.items() if k not in ("set", "sequences")}
            assert self.content is not None
            job = task.job
            if self.content.begins:  # the pairs are the round's own
                arithmetic["pairs"] = self.content.pairs
                if node.causes["weights"] == self.content.weights:
                    job = replace(job, round=Round())
            run = f"pass-{name_of(arithmetic)}"
            new = Task(job, "reference", cache_folder() / reference.FOLDER, run, ("reference",), self.data)
            known = passes.setdefault(run, replace(new, plugins=self.plugins))
            if folder in known.references.values():  # the same sequences under another set's name
                continue
            passes[run] = replace(
                known,
                references={**known.references, which: folder},
                nodes={**known.nodes, f"reference:{which}": node},
            )
        return [*passes.values(), *self._ratio_tasks(tasks)]

    def _ratio_tasks(self, tasks: Sequence[Task]) -> list[Task]:
        """The density ratios that a task's training reads, or `--stages density_ratio` names, and that are not there."""
        named = density_ratio.NAME in self.stages and "train" not in self.stages
        made: dict[Path, Task] = {}
        for task in tasks:
            node = task.nodes.get(density_ratio.NODE)
            if node is None or not (named or density_ratio.NAME in task.references):
                continue
            folder = density_ratio.folder_of(node)
            if folder not in made and not self._ratios_there(folder):
                run, stages = f"pass-{folder.name}", (density_ratio.NAME,)
                new = Task(task.job, "reference", folder.parent, run, stages, self.data, plugins=self.plugins)
                nodes, ratios = {density_ratio.NODE: node}, {density_ratio.NAME: folder}
                made[folder] = replace(new, nodes=nodes, references=ratios)
        return list(made.values())

    def _note_unread(self, tasks: Sequence[Task], read: Collection[Path]) -> None:
        """Note damaged sums and ratios of these tasks that nothing which is left reads. read: the sums that something does."""
        read = {*read, *(folder for task in tasks for folder in task.references.values())}
        markers: dict[Path, Callable[[Path], Mapping[str, Any] | None]] = {}
        for task in tasks:
            for name, node in task.nodes.items():
                if name == density_ratio.NODE:
                    markers[density_ratio.folder_of(node)] = about_density_ratio
                elif name.startswith("reference:"):
                    markers[_sums_folder(node)] = about_reference
        for folder in sorted(markers.keys() - read):
            try:
                if (about := markers[folder](folder)) is not None:
                    refuse_corrupt(folder, {about["file"]: about["sha256"]}, file_digest)
            except CorruptError as error:
                self.notes.append(f"{error}; it is set aside, and computed again when a run reads it")
                self.damaged.append(folder)

    def _ratios_there(self, folder: Path) -> bool:
        return self._stands(folder, about_density_ratio, DensityRatios.load, "the ratios are computed once more")

    def _sums_there(self, folder: Path) -> bool:
        return self._stands(folder, about_reference, ReferenceSums.load, "the pass is made once more")

    def _stands(self, folder: Path, about: Callable[[Path], Any], load: Callable[[Path], Any], otherwise: str) -> bool:
        """Whether a result is stored, with the bytes that were written. otherwise: what is done about damage."""
        try:
            if about(folder) is None:
                return False
            load(folder)
        except CorruptError as error:
            self.notes.append(f"{error}; {otherwise}")
            self.damaged.append(folder)
            return False
        return True

    # -- what changed

    def _note_change(self, task: Task) -> None:
        """A sentence where the same command has trained this before, from other content."""
        setting, loss = key = task.job.setting, task.job.loss
        if key not in self.stored:  # read once for all jobs of a loss
            self.stored[key] = _stored(self.runs / setting, loss)
        earlier = _earlier(self.stored[key], task)
        if earlier is None:
            return
        name, keys = earlier
        what = " and ".join(_WORDS.get(key, key) for key in keys)
        self.notes.append(f"{task.title}: {what} changed since {name}; that run stays, and a new one is made beside it")

    def _note_results(self, folder: RunFolder, task: Task, left: Sequence[str]) -> None:
        """A sentence for each result that is there already, made from something else."""
        for stage in left:
            try:
                shown = folder.shown
                before = folder.node(shown[stage]) if stage in shown else None
                if before is None or not before.finished or shown[stage] == task.nodes[stage].name:
                    continue
                causes = before.about["causes"]
            except CorruptError:  # `doctor --verify` and a report name it
                continue
            keys = changed(causes, json.loads(json.dumps(dict(task.nodes[stage].causes))))
            what = ", ".join(_WORDS.get(key, key) for key in keys)
            self.notes.append(f"{task.title}: {stage} is made anew ({what} changed); {shown[stage]} stays beside it")


def still_left(task: Task) -> Task:
    """The task without the stages whose results are there, whole and made from what is stored now: another attempt at it has
    done them, or another command."""
    layout = Layout(task.runs, task.stages, task.plugins, None, None, [], [])
    folder = RunFolder(task.runs, task.run)
    left: list[str] = []
    for name in task.stages:
        stage = stage_list.BY_NAME[name]
        if name in ("train", "sft"):
            there = _is_trained(folder, task)
        elif name == "onpolicy":
            there = (made := NodeFolder(task.data)).finished and not made.faults()
        elif name == "reference":
            there = all(layout._sums_there(sums) for sums in task.references.values())
        elif name == density_ratio.NAME:
            there = layout._ratios_there(task.references[name])
        elif name == "benchmarks":
            there = (spoken := task.spoken) is not None and all(b.done(folder.path, spoken) for b in task.benchmarks)
        else:
            there = not set(stage.reads) & set(left) and layout._there(folder, task, stage)
        if not there:
            left.append(name)
    return replace(task, stages=tuple(left))


def _is_trained(folder: RunFolder, task: Task) -> bool:
    trained = folder.trained
    if trained is None or (task.causes and trained["causes"] != json.loads(json.dumps(dict(task.causes)))):
        return False
    return folder.has("model") and not folder.corrupt_weights(read=False)


_WORDS = {
    "source": "the source code",
    "pairs": "the token pairs",
    "scores": "the pairs' ratings",
    "weights": "the start weights",
    "prompts": "the prompts",
    "rows": "the prompts' rows",
    "protocol": "the protocol",
    "answers": "the answers",
    "density_ratio": "the density ratios of the prompts",
    "start": "the start model",
}


def _stored(folder: Path, loss: str) -> list[tuple[str, dict[str, Any]]]:
    """(name, causes) of a loss's trained models, by name."""
    paths = sorted(folder.glob(f"{loss}-*/trained.json"))
    stored = []
    for path in paths:
        with suppress(CorruptError):  # `doctor --verify` names it
            stored.append((path.parent.name, read_marker(path).get("causes", {})))
    return stored


def _earlier(stored: Sequence[tuple[str, dict[str, Any]]], task: Task) -> tuple[str, list[str]] | None:
    """The stored run that differs from the task in content alone, and in what; None where there is none."""
    now = json.loads(json.dumps(dict(task.causes)))
    best: tuple[str, list[str]] | None = None
    for name, causes in stored:
        keys = changed(causes, now)
        if (
            keys
            and set(keys) <= {"source", "pairs", "scores", "density_ratio", "weights", "protocol"}
            and (best is None or len(keys) < len(best[1]))
        ):
            best = (name, keys)
    return best


def _sums_folder(node: Node) -> Path:
    return cache_folder() / reference.FOLDER / node.name.rpartition("-")[2]


def _compares(job: Job) -> bool:
    """Whether the job's judge compares with the start model's answers."""
    assert job.judge.name is not None
    return judges.get(job.judge.name).compares
