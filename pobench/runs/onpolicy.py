"""A setting's pairs on policy: its start model's own answers to the prompts of its `onpolicy` section, ranked by its ranker,
or each below a human answer. From the second round of iterative training on (`pobench.runs.rounds`) the last round's model
answers.

The stage `onpolicy` and the command `pobench data onpolicy` make them by the same function, `make_pairs_of`. The stage's lie in

    runs/<setting>/onpolicy-<12 hex>/     the samples, named by what decides them: start model, prompts, decoding
        pairs-<12 hex>/                   pairs.jsonl, pairs.heldout.jsonl, pairs.recipe.json and node.json, named also by the
                                          ranker or the human answers, and by what is held out

so that another ranker ranks the same samples. Trained models are named by the digest of the pairs, as with any other data.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import torch
import transformers
from accelerate import PartialState

from pobench import shards
from pobench.data import round_prompts, sampled
from pobench.data.audit import unknown_fault, unknown_shares, unknown_text
from pobench.data.capacity import Capacity, Extent
from pobench.data.chat import Chat
from pobench.data.human_answers import human_answers, source_of
from pobench.data.round_prompts import is_split, round_rows
from pobench.data.rows import messages
from pobench.data.sampled import answered_rows, prompt_files
from pobench.errors import PobenchError
from pobench.files import MarkedFolder, digests_of, sealed, whole, write_json
from pobench.identity import PROTOCOL, code_digest, name_of, room_digest
from pobench.judging.pairwise import Progress
from pobench.judging.ranking import Read, Row, best_against_worst, comparisons
from pobench.judging.weights import rows_of_shard
from pobench.model.generate import PRECISIONS, Decoding
from pobench.model.load import attention_of, load_model
from pobench.printing import say
from pobench.progress import progress
from pobench.registry import judges
from pobench.runs.content import auto_precision, start_weights
from pobench.runs.launch import launch, process_count
from pobench.runs.sampling import Judge, Sampling, digest_of, draw, only_writer, prompt_key, write_pairs
from pobench.runs.stage import Node
from pobench.runs.start_model import base_model, start_model
from pobench.runs.task import Task
from pobench.settings.faults import explain, judge_faults
from pobench.settings.job import Job
from pobench.settings.read import OF_SOURCES
from pobench.settings.resolve import resolve
from pobench.settings.schema import DataConfig, JudgeConfig, ModelConfig, OnPolicyConfig
from pobench.sources import file_digest, rows_digest, weights_digest

FILE = "pairs.jsonl"
SECTION = "onpolicy"


class Recipe(NamedTuple):
    """How a job's pairs are made: its section `onpolicy`, and the judge that ranks. judge: None where human answers stand over
    the model's own."""

    job: Job
    judge: Judge | None
    ranker: JudgeConfig


# ---------------------------------------------------------------- what is asked for
def recipe_of(job: Job, where: str = "onpolicy.ranker.name", prefix: str = "onpolicy.ranker.settings.") -> Recipe:
    """The recipe of a job. where, prefix: the keys by which the user names the ranker and its settings.

    Raises PobenchError where no judge is named to rank by, or its settings are wrong.
    """
    if job.onpolicy.pairs == "human_over_own":
        if where == "--ranker":
            raise PobenchError(
                "--ranker: onpolicy.pairs is human_over_own, for which nothing is ranked; leave one of them out"
            )
        return Recipe(job, None, JudgeConfig())
    ranker = job.onpolicy.ranker if job.onpolicy.ranker.name else job.judge
    if ranker.name is None:
        raise PobenchError(
            f"setting {job.setting!r} names no judge to rank by; set onpolicy.ranker.name (`pobench list judges`)"
        )
    if faults := judge_faults(ranker.name, ranker.settings, where, prefix):
        raise PobenchError("\n".join(faults))
    return Recipe(job, judges.get(ranker.name)(**ranker.settings), ranker)


def recipe_for(
    setting: str,
    *,
    ranker: str | None = None,
    ranker_settings: Mapping[str, Any] | None = None,
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    **values: Any,
) -> Recipe:
    """The recipe of a setting, for `pobench data onpolicy`; only settings are read.

    values: of the section `onpolicy`, over the setting's. ranker: a judge's name, replaces the section's or the setting's
    judge; ranker_settings: added to that judge's settings if the name is the same. overrides: as `--set`. Raises
    PobenchError that lists every fault of names and values.
    """
    faults: list[str] = []
    changes = {**(overrides or {}), **{f"{SECTION}.{key}": value for key, value in values.items()}}
    job = None
    try:
        (job,) = resolve(setting, "simpo", seeds=[0], model=model, overrides=changes)
    except PobenchError as error:
        faults += str(error).splitlines()
        try:  # a setting that cannot be read hides what is wrong with these
            OnPolicyConfig.model_validate(values)
        except pydantic.ValidationError as wrong:
            faults += explain(wrong, f"{SECTION}.", OnPolicyConfig)
    named = None if job is None else job.onpolicy.ranker if job.onpolicy.ranker.name else job.judge
    name = ranker or (named.name if named else None)
    own = named.settings if named is not None and name == named.name else {}
    chosen = JudgeConfig(name=name, settings={**own, **(ranker_settings or {})})
    if job is not None and not faults:
        job = replace(job, onpolicy=job.onpolicy.model_copy(update={"ranker": chosen}))
        return recipe_of(job, "--ranker" if ranker else "onpolicy.ranker.name", "--ranker-set ")
    if ranker is not None:
        faults += judge_faults(ranker, chosen.settings, "--ranker", "--ranker-set ")
    raise PobenchError("\n".join(dict.fromkeys(faults)))


def decoding_of(job: Job) -> Decoding:
    """How the answers are drawn, on this machine."""
    config = job.onpolicy
    precision = auto_precision() if config.precision == "auto" else config.precision
    length = config.max_new_tokens or job.answers.max_new_tokens
    seed = config.seed + job.round.number - 1  # a prompt that is asked again gets other random numbers
    return Decoding(length, config.temperature, config.top_p, config.samples, seed, precision)


def speaker_of(job: Job) -> Path:
    """The folder of the model that answers: the start model, or that of the last round."""
    return Path(job.round.model) if job.round.model else start_model(job)


class Asked(NamedTuple):
    """The prompts of a sampling, and what else stands in its recipe. made_by: the start model, for the recipe. evaluated: keys
    of the prompts that the setting asks after training."""

    rows: list[Row]
    made_by: dict[str, Any]
    evaluated: frozenset[str]


def ask(recipe: Recipe, folder: Path, note: Callable[[str], None]) -> Asked:
    """Read and check the prompts; of a recipe with human answers those that have one. folder: of a model with the tokenizer and
    the context of the one that will answer. note: takes a warning. Raises PobenchError that lists what is wrong with them."""
    job = recipe.job
    rows: list[Row] = [{**row, "prompt": row["messages"]} for row in round_rows(job)]
    if recipe.judge is None:
        rows = _with_human_answers(job, rows, note)
    chat, new = Chat.of(folder, job.model), decoding_of(job).max_new_tokens
    asked = [chat.prompt_ids(row["prompt"]) for row in rows]
    shares, extent = unknown_shares({"prompt": asked}, chat.unknown), Extent.of_prompts(asked, new)
    what = f"onpolicy.prompts: the longest prompt and {new} new tokens"
    remedy = "set a smaller onpolicy.max_new_tokens, or leave out the longest prompts"
    capacity = Capacity.of(folder, job.data.max_length, trust_remote_code=job.model.trust_remote_code)
    unknown = unknown_fault("onpolicy.prompts", shares)
    if faults := [*filter(None, [unknown]), *capacity.faults(extent, what, chat, remedy)]:
        raise PobenchError("\n".join(faults))
    if warning := unknown_text(shares):
        note(f"onpolicy.prompts: {warning}")
    made_by: dict[str, Any] = {
        "source": job.round.run or job.model.source,
        "digest": weights_digest(folder),
        "rendering": chat.digest,
    }
    made_by |= {} if capacity.reach is None else {"rope_reach": capacity.reach}
    evaluated = frozenset(prompt_key(row["messages"]) for row in answered_rows(job))
    return Asked(rows, made_by, evaluated)


def _with_human_answers(job: Job, rows: Sequence[Row], note: Callable[[str], None]) -> list[Row]:
    """The rows whose prompts have a human answer, with it. Raises PobenchError where none has one."""
    answers = human_answers(job)
    keys = [prompt_key(row["prompt"]) for row in rows]
    answered: list[Row] = [
        {**row, "human_answer": answers[key]} for row, key in zip(rows, keys, strict=True) if key in answers
    ]
    without = len(rows) - len(answered)
    if not answered:
        raise PobenchError(
            f"onpolicy.pairs: none of the {without} prompts has a human answer in {source_of(job)}; name a file with answers "
            "to these prompts by --set onpolicy.human_answers=PATH, or its prompts by --set onpolicy.prompts=PATH"
        )
    if without:
        note(
            f"onpolicy.pairs: {without} of {len(rows)} prompts have no human answer in {source_of(job)} and are left out"
        )
    return answered


# ---------------------------------------------------------------- the stage's folders
@dataclass(frozen=True)
class OwnPairs:
    """Where a job's pairs on policy lie, or will: in `run`, the folder of the samples, the folder `node`. recipe: a digest of
    what decides them but the weights that answer."""

    run: str
    node: Node
    recipe: str

    @classmethod
    def of(cls, recipe: Recipe, *, remember: bool = True) -> OwnPairs:
        """Named by content; nothing is written. remember: digests of large files."""
        job = recipe.job
        base = base_model(job)
        capacity = Capacity.of(base, job.data.max_length, trust_remote_code=job.model.trust_remote_code)
        asked, answered = prompt_files(job)
        drawn = {
            "protocol": PROTOCOL,
            "weights": job.round.weights or start_weights(job, capacity.reach, remember=remember),
            "rendering": Chat.of(base, job.model).digest,
            "prompts": rows_digest(asked, remember=remember),
            "max_prompts": job.onpolicy.max_prompts,
            "reader": room_digest(sampled.__file__),
            "decoding": asdict(decoding_of(job)),
            **_round_causes(job, remember=remember),
        }
        if recipe.judge is None:  # they also say which prompts are sampled
            drawn["human_answers"] = digest_of(sorted(human_answers(job).items()))
        causes = {
            "samples": name_of(drawn),
            **_pairing_causes(recipe),
            "held_out_fraction": _held_out_fraction(job),
            "evaluated": rows_digest(answered, remember=remember) if answered is not None else None,
        }
        recipe_digest = name_of({**drawn, **causes, "weights": "", "samples": ""})
        return cls(f"{job.setting}/onpolicy-{name_of(drawn)}", Node("pairs", causes), recipe_digest)


def _pairing_causes(recipe: Recipe) -> dict[str, Any]:
    """What makes pairs of the samples: the judge that ranks them, or the rule that ranks none."""
    if recipe.judge is None:
        return {"pairs": recipe.job.onpolicy.pairs}
    judge = judges.get(recipe.ranker.name or "")
    settings = replace(recipe.job, judge=recipe.ranker).judge_causes()
    return {"ranker": judge.name, "settings": settings, "source": code_digest(judge.function)}


def _round_causes(job: Job, *, remember: bool) -> dict[str, Any]:
    """What decides the prompts of a round, where it asks other ones than the stage alone does."""
    part = {"part": f"{job.round.number} of {job.round.of}"} if is_split(job) else {}
    left_out = {"left_out": file_digest(Path(job.round.held_out), remember=remember)} if job.round.held_out else {}
    return {**part, **left_out, "round_reader": room_digest(round_prompts.__file__)} if part or left_out else {}


def _held_out_fraction(job: Job) -> float:
    """Of the round's pairs: after the first, all are trained on."""
    return 0.0 if job.round.held_out else job.onpolicy.held_out_fraction


class MadePairs(MarkedFolder):
    """Pairs on policy. about: causes, model (the digest of the weights that answered), files."""

    marker = "node.json"

    @property
    def file(self) -> Path:
        return self.path / FILE

    @property
    def held_out(self) -> Path | None:
        """The file of the pairs that are held out, if there are any."""
        file = self.file.with_suffix(".heldout.jsonl")
        return file if file.is_file() else None

    @property
    def counts(self) -> tuple[int, int]:
        """(pairs to train on, pairs held out)."""
        recipe = json.loads(self.file.with_suffix(".recipe.json").read_text(encoding="utf-8"))
        held = recipe.get("held_out", {"train": recipe["counts"]["pairs"], "held_out": 0})
        return held["train"], held["held_out"]

    def as_data(self, job: Job) -> Job:
        """The job, trained on these pairs; what the first round holds out is held out in all."""
        held_out = job.round.held_out or (None if self.held_out is None else str(self.held_out))
        kept = job.data.model_dump(exclude=set(OF_SOURCES))
        data = DataConfig.model_validate({**kept, "source": str(self.file), "held_out": held_out})
        origin = {key: how for key, how in job.origin.items() if key.removeprefix("data.") not in OF_SOURCES}
        job = replace(job, data=data, origin={**origin, "data.source": "made by the stage onpolicy"})
        if job.tuned is None:
            return job
        return replace(job, values_from="default", tuned=None)  # that search was for other pairs


def make_own_pairs(task: Task, say: Callable[[str], None]) -> None:
    """The stage: do what is left of a task's pairs, and mark them as finished."""
    with whole(task.data) as partial:
        partial.mkdir(parents=True)
        samples = task.runs / task.run / FILE
        written = make_pairs_of(recipe_of(task.job), samples, pairs=partial / FILE, say=say)
        about = {"causes": dict(task.nodes[SECTION].causes), "model": written["model"]["digest"]}
        write_json(partial / MadePairs.marker, sealed({**about, "files": digests_of(partial)}))


# ---------------------------------------------------------------- making them
def make_pairs_of(
    recipe: Recipe,
    out: Path,
    *,
    pairs: Path | None = None,
    say: Callable[[str], None] = say,
) -> dict[str, Any]:
    """Make the pairs of a recipe, with as many processes as `pobench run` trains with; shows progress. Returns the content of
    the recipe file. out: the samples lie beside it. pairs: the file of the pairs; None: `out`."""
    job, judge, ranker = recipe
    folder = speaker_of(job)
    asked = ask(recipe, folder, say)
    sampling = Sampling(asked.rows, out, asked.made_by, decoding_of(job))
    with only_writer(out):
        if len(sampling.gather()) < sampling.total:
            _draw_in_processes(sampling, folder, job.model, job.data.max_length, job.answers.batch_size)
            sampling.gather()
        if judge is not None and hasattr(judge, "estimate"):
            say(judge.estimate([two for _, two in comparisons(sampling.answers())]))
        ranking = Ranking.of(recipe, sampling)
        if ranking is not None and process_count() > 1 and len(sampling.read()) > rows_of_shard(judge):
            ranking.in_processes()
        written = write_pairs(
            sampling,
            judge,
            out=pairs,
            held_out=_held_out_fraction(job),
            evaluated=asked.evaluated,
            judge_settings=ranker.settings,
            read_all=None if ranking is None else ranking.read_all,
        )
        if ranking is not None:
            shards.remove(ranking.folder)
    for note in getattr(judge, "notes", ()):
        say(note)
    return written


def _draw_in_processes(sampling: Sampling, folder: Path, model: ModelConfig, length: int, batch_size: int) -> None:
    if process_count() == 1:
        return _draw_share(sampling, folder, model, length, batch_size)
    prompts = [{"id": row["id"], "prompt": messages(row["prompt"])} for row in sampling.rows]
    call = {
        "rows": prompts,
        "out": str(sampling.out),
        "made_by": sampling.origin["model"],
        "decoding": asdict(sampling.decoding),
        "folder": str(folder),
        "model": model.model_dump(),
        "length": length,
        "batch_size": batch_size,
    }
    if status := _in_processes(call):
        raise PobenchError(
            f"a process that drew answers ended with status {status}, see above; its samples are kept, and the same "
            "command continues from there"
        )


def _in_processes(call: Mapping[str, Any]) -> int:
    """Let each process of a job do its share of `call`. Returns the exit status."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "call.json"
        file.write_text(json.dumps(call), encoding="utf-8")
        return launch("pobench.runs.onpolicy", file)


def _draw_share(sampling: Sampling, folder: Path, model: ModelConfig, length: int, batch_size: int) -> None:
    """Draw one process's share, on its device."""
    transformers.logging.disable_progress_bar()  # our own progress bar is enough
    state = PartialState(cpu=not torch.cuda.is_available())
    share = (state.process_index, state.num_processes)
    speaker = load_model(
        folder,
        dtype=PRECISIONS[sampling.decoding.precision],
        attention=attention_of(folder, model.attention),
        trust_remote_code=model.trust_remote_code,
        length=length,
    ).to(state.device)
    title = "answers" if share[1] == 1 else f"answers, {share[1]} processes"
    with progress(title, sampling.total, "answers", shown=state.is_main_process) as advance:
        draw(
            sampling,
            speaker,
            Chat.of(folder, model),
            batch_size=batch_size,
            share=share,
            progress=lambda done, total: advance(done=done),
        )


@dataclass(frozen=True)
class Ranking:
    """Ranking samples by a judge with weights, shard by shard. key: of what decides what the judge says of them."""

    sampling: Sampling
    judge: Judge
    ranker: JudgeConfig
    key: str

    @classmethod
    def of(cls, recipe: Recipe, sampling: Sampling) -> Ranking | None:
        """None where no judge ranks, where it has no weights, or is a plug-in's, which other processes do not know."""
        if recipe.judge is None or not hasattr(recipe.judge, "weights"):
            return None
        kind = judges.get(recipe.ranker.name or "")
        if not kind.function.__module__.startswith("pobench."):
            return None
        settings = replace(recipe.job, judge=recipe.ranker).judge_causes()
        causes = {"samples": sampling.origin, "settings": settings, "source": code_digest(kind.function)}
        return cls(sampling, recipe.judge, recipe.ranker, name_of(causes))

    @property
    def folder(self) -> Path:
        out = self.sampling.out
        return out.with_name(f".{out.stem}-{self.key}.shards")

    def read_all(
        self, progress: Progress | None, lengths: Sequence[int], read: Read, share: shards.Share = shards.ALONE
    ) -> Sequence[Any]:
        """What the judge says of all texts, as `ReadAll`. Raises JoinedElsewhere in all processes but the first."""
        cut = shards.by_length(lengths, rows_of_shard(self.judge))

        def read_shard(k: int) -> list[Any]:
            (places,) = cut[k]
            values = read(places, progress if len(cut) == 1 else None)
            return [[i, value] for i, value in zip(places, values, strict=True)]

        def told(done: int) -> None:
            if progress is not None:
                progress(done, max(len(lengths), 1))

        values = shards.compute(self.folder, {}, cut, read_shard, share, told)
        if values is None:
            raise shards.JoinedElsewhere
        return [value for _, value in sorted(values, key=lambda row: row[0])]

    def in_processes(self) -> None:
        """Let every process of a job rank, each its shards."""
        shards.forget_claims(self.sampling.out.parent)
        rows = [{"id": row["id"], "prompt": messages(row["prompt"])} for row in self.sampling.rows]
        call = {
            "rows": rows,
            "out": str(self.sampling.out),
            "made_by": self.sampling.origin["model"],
            "decoding": asdict(self.sampling.decoding),
            "ranker": self.ranker.model_dump(mode="json"),
            "key": self.key,
        }
        if status := _in_processes(call):
            raise PobenchError(
                f"a process that ranked answers ended with status {status}, see above; what the others have read is kept, and "
                "the same command continues from there"
            )

    def share_of_one(self) -> None:
        """Rank what this process takes, on its device."""
        state = PartialState(cpu=not torch.cuda.is_available())
        share = shards.Share(state.process_index, state.num_processes)
        samples = self.sampling.read()
        title = f"ranked by {self.judge.name}, {share.world} processes"
        with (
            contextlib.suppress(shards.JoinedElsewhere),
            progress(title, len(samples), "answers", shown=share.first) as advance,
        ):
            best_against_worst(
                self.sampling.rows,
                samples,
                self.judge,
                lambda done, total: advance(done=done / total * len(samples)),
                partial(self.read_all, share=share),
            )


def main() -> None:
    """`pobench.runs.rank` calls it with `CALL.json`: one process's share, in each process of a job."""
    call = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sampling = Sampling(call["rows"], Path(call["out"]), call["made_by"], Decoding(**call["decoding"]))
    try:
        if "ranker" in call:
            ranker = JudgeConfig(**call["ranker"])
            judge = judges.get(ranker.name or "")(**ranker.settings)
            return Ranking(sampling, judge, ranker, call["key"]).share_of_one()
        _draw_share(sampling, Path(call["folder"]), ModelConfig(**call["model"]), call["length"], call["batch_size"])
    except PobenchError as error:
        sys.exit(f"pobench: {error}")
