"""Pairs of a model's own answers in a plan: of the start model, and of each round of iterative training.

    start model → pairs → round 1: train → pairs of its answers → round 2: train → …       for every loss and seed

A round is named by content, as everything is: its pairs by the weights that answer, its run by these pairs and by the weights
that it begins from. So it is planned when the round before it is there, and a command plans as often as something new is.
Every round has the held-out pairs of the first, whose reference is the start model, so that its figures can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pobench.data.capacity import Capacity
from pobench.data.chat import Chat
from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.results.run_folder import RunFolder
from pobench.runs.content import Pairs, find_pairs, with_reach
from pobench.runs.cost import is_local
from pobench.runs.nodes import Layout
from pobench.runs.onpolicy import MadePairs, OwnPairs, ask, decoding_of, recipe_of, speaker_of
from pobench.runs.start_model import base_model, is_made, model_at_hand, stage_folder
from pobench.runs.task import Task
from pobench.settings.job import Job, Round
from pobench.sources import weights_digest


def rating_faults(jobs: Sequence[Job], stages: Sequence[str]) -> list[str]:
    """Why losses that read ratings cannot be trained on the pairs that the stage `onpolicy` makes."""
    losses = sorted({job.loss for job in jobs if "scores" in get_loss(job.loss).needs})
    if not losses or not {"onpolicy", "train"} <= set(stages) or jobs[0].onpolicy.pairs == "ranked":
        return []
    return [
        f"{', '.join(losses)}: needs ratings of both answers (scores), and onpolicy.pairs=human_over_own has none, as no judge "
        "rates; set onpolicy.pairs=ranked, or leave this loss out"
    ]


def rounds_faults(jobs: Sequence[Job], stages: Sequence[str]) -> list[str]:
    """Why these jobs cannot be trained in the rounds that they ask for."""
    job = jobs[0]
    if job.round.of < 1:
        return [f"rounds: got {job.round.of}; at least 1"]
    if job.round.of == 1:
        return []
    option, faults = f"--rounds {job.round.of}", []
    if missing := [stage for stage in ("onpolicy", "train") if stage not in stages]:
        faults.append(
            f"{option}: each round makes pairs of the last one's answers and trains on them; add "
            f"{' and '.join(missing)} to --stages"
        )
    if job.onpolicy.held_out_fraction == 0:
        faults.append(f"{option}: onpolicy.held_out_fraction is 0, and all rounds are measured on the pairs held out")
    if any(each.train.adapter is not None and not each.train.adapter.merge for each in jobs):
        faults.append(f"{option}: a round begins from the last one's whole model; add --set train.adapter.merge=true")
    if "trainpairs" in stages and job.rounds.reference == "last":
        faults.append(
            f"{option}: the stage trainpairs compares with the held-out pairs, whose reference is the start model; leave it "
            "out, or --set rounds.reference=start"
        )
    return faults


# ---------------------------------------------------------------- pairs
def pairs_task(
    job: Job, runs: Path, plugins: tuple[str, ...], dry: bool, notes: list[str], damaged: list[Path]
) -> tuple[Task, str]:
    """(what makes the pairs of a job's round, done where they are there; the recipe's digest).

    notes: takes sentences, damaged: folders that may not be used. Raises PobenchError for a ranker or prompts that will not do.
    """
    recipe, decoding = recipe_of(job), decoding_of(job)
    about = replace(job, onpolicy=job.onpolicy.model_copy(update={"precision": decoding.precision}))
    if dry and not (model_at_hand(job) and all(map(is_local, _sources(job)))):
        return unnamed_pairs(about, runs, plugins), ""
    own = OwnPairs.of(recipe, remember=not dry)
    pairs = MadePairs(runs / own.run / own.node.name)
    task = Task(about, "onpolicy", runs, own.run, (), pairs.path, nodes={"onpolicy": own.node}, plugins=plugins)
    if pairs.finished:
        damage = [f"{fault}; it is made anew" for fault in pairs.faults()]
        damaged += [pairs.path] if damage else []
        if (
            not damage
            and _is_made(job, dry)
            and pairs.about["model"] != weights_digest(speaker_of(job), remember=not dry)
        ):
            damage = [f"{pairs.path.parent}: another start model answered there; it is made anew"]
            damaged.append(pairs.path.parent)
        if not damage:
            return task, own.recipe
        notes += damage
    if not dry:
        ask(recipe, base_model(job), lambda warning: None)
    return replace(task, stages=("onpolicy",)), own.recipe


def _sources(job: Job) -> list[str]:
    """Of the rows that a job's pairs on policy are made of."""
    sources = [job.onpolicy.prompts or job.data.source, job.answers.source]
    if job.onpolicy.pairs == "human_over_own":
        own = job.onpolicy.human_answers
        sources += [part.source for part in job.data.parts] if own is None else [own]
    return [source for source in sources if source]


def unnamed_pairs(job: Job, runs: Path, plugins: tuple[str, ...]) -> Task:
    """Pairs that cannot be named yet, for a dry run."""
    later = f"-{job.loss}-{job.seed}-round-{job.round.number}" if job.round.number > 1 else ""
    unnamed = f"{job.setting}/onpolicy-not-made{later}"
    return Task(job, "onpolicy", runs, unnamed, ("onpolicy",), runs / unnamed, plugins=plugins)


def _is_made(job: Job, dry: bool) -> bool:
    """Whether the model that answers is there."""
    if job.round.model:
        return Path(job.round.model).is_dir()
    return job.sft is None or is_made(stage_folder(job, remember=not dry))


# ---------------------------------------------------------------- rounds
@dataclass
class Later:
    """The rounds after the first. tasks: in order, those with nothing left among them. passes: their reference passes. pairs:
    of each round. last: the evaluations of the last round. waits: whether a round stands behind what is not made yet."""

    tasks: list[Task] = field(default_factory=list)
    passes: list[Task] = field(default_factory=list)
    pairs: list[Pairs] = field(default_factory=list)
    last: list[Task] = field(default_factory=list)
    waits: bool = False

    @classmethod
    def of(cls, jobs: Sequence[Job], first: Layout, trained: Sequence[Task], dry: bool) -> Later:
        """Behind the first round. jobs: as resolved. trained: of each its training and its evaluation, which `first` names."""
        later = cls()
        for job, training, evaluation in zip(jobs, trained[::2], trained[1::2], strict=True):
            later.follow(job, first, training, evaluation, dry)
        return later

    def follow(self, job: Job, first: Layout, training: Task, evaluation: Task, dry: bool) -> None:
        """Plan the rounds of one loss and seed as far as they can be named. job: as resolved, without pairs of its own.
        training, evaluation: its first round."""
        layout = first
        for number in range(2, job.round.of + 1):
            ahead = replace(job, round=replace(job.round, number=number))
            folder = RunFolder(training.runs, training.run)
            if training.stages or folder.trained is None or first.content is None:
                return self._to_come(ahead, layout, dry)
            ahead, made, pairs = _pairs_of(ahead, folder, evaluation, layout, dry)
            self.tasks.append(made)
            if pairs is None:
                return self._to_come(ahead, layout, dry, made=True)
            self.pairs.append(pairs)
            layout = _layout_of(first, ahead, pairs, folder)
            training, evaluation = layout.loss(MadePairs(made.data).as_data(ahead))
            _refuse_without_model(folder, training)
            self.tasks += [training, evaluation]
            self.passes += layout.reference_tasks([training, evaluation])
        self.last.append(evaluation)
        return None

    def _to_come(self, ahead: Job, layout: Layout, dry: bool, made: bool = False) -> None:
        """What cannot be named yet: it waits, or in a dry run stands without a name. made: whether the pairs of the round are
        planned."""
        self.waits = True
        unnamed = replace(layout, content=None, pairs=None)
        for number in range(ahead.round.number, ahead.round.of + 1) if dry else ():
            job = replace(ahead, round=replace(ahead.round, number=number))
            if not (made and number == ahead.round.number):
                self.tasks.append(unnamed_pairs(job, layout.runs, layout.plugins))
            self.tasks += unnamed.loss(job)


def _pairs_of(
    job: Job, before: RunFolder, evaluation: Task, layout: Layout, dry: bool
) -> tuple[Job, Task, Pairs | None]:
    """(the job in its round, what makes its pairs of the last round's answers, these; None while they are not made)."""
    held_out = evaluation.job.data.held_out
    if held_out is None:
        raise PobenchError(
            f"--rounds: {evaluation.title} holds out no pairs, on which all rounds are measured; set a larger "
            "onpolicy.held_out_fraction"
        )
    weights = with_reach(before.weights or "", _reach(job))
    begun = replace(job.round, run=before.run, model=str(before.path / "model"), weights=weights, held_out=held_out)
    job = replace(job, round=begun)
    made, recipe = pairs_task(job, layout.runs, layout.plugins, dry, layout.notes, layout.damaged)
    job = replace(job, round=replace(begun, recipe=recipe))
    _refuse_without_model(before, made)
    if not made.done:
        return job, made, None
    trained = MadePairs(made.data).as_data(job)
    chat = Chat.of(base_model(job), job.model)
    return job, made, find_pairs(trained, layout.runs, chat, layout.notes.append, remember=not dry)


def _refuse_without_model(before: RunFolder, task: Task) -> None:
    """Raises PobenchError where something is left of a task that begins from a model which was removed."""
    if task.stages and not before.has("model"):
        raise PobenchError(
            f"{task.title} begins from the model of {before.run}, which is gone; to train it again, remove "
            f"{str(before.path / 'trained.json')!r}"
        )


def _layout_of(first: Layout, job: Job, pairs: Pairs, before: RunFolder) -> Layout:
    """Names the runs of a later round. Raises PobenchError where other pairs would be held out than in the first round."""
    assert first.content is not None
    digests, ratings = pairs.digests, pairs.ratings
    if digests["heldout"] != first.content.heldout:
        raise PobenchError(f"{before.run}: the pairs held out in round {job.round.number} are not those of round 1")
    content = replace(first.content, pairs=digests["train"], scores=ratings["train"].digest, begins=job.round.weights)
    return replace(first, pairs=pairs, content=content)


def _reach(job: Job) -> int | None:
    return Capacity.of(base_model(job), job.data.max_length, trust_remote_code=job.model.trust_remote_code).reach


def in_rounds(jobs: Sequence[Job], rounds: int) -> list[Job]:
    """The jobs, each the first of so many rounds."""
    return [replace(job, round=Round(of=rounds)) for job in jobs]
