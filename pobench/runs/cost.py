"""What a plan will cost before it is run: device hours, memory on each device, disk, and what a judge will read.

From the model's size (its configuration alone, where the weights are not at hand: `published.py`), the pairs (counted
where the data is at hand, else as published) and the pace of a step: measured steps of the setting's newest runs, else this
machine's rate of multiplying matrices, else the hours that the SimPO authors print for eight H100s.
"""

from __future__ import annotations

import glob
import heapq
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pobench.data.mixture import interleaved
from pobench.data.pairs_folder import Own
from pobench.data.prompts import eval_prompts
from pobench.data.published import DATASETS, MODELS
from pobench.data.round_prompts import is_split
from pobench.data.rows import read_rows
from pobench.data.sampled import sampled_rows
from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError, UnknownNameError
from pobench.model.device import bf16_pays, device_memory, layout_of_devices, peak_flops
from pobench.model.generate import MOST_TOKENS
from pobench.model.shape import ModelShape, shape_of
from pobench.model.vllm import missing
from pobench.registry import get_loss, judges
from pobench.results.run_folder import RunFolder
from pobench.runs.task import Task
from pobench.settings.job import Job
from pobench.settings.schema import MICRO_TOKENS, DataConfig, LoopConfig, SourceConfig, TrainConfig
from pobench.sources import cached_config, fetch_rows
from pobench.training.memory_parts import GIB as GIB
from pobench.training.memory_parts import (
    USABLE,
    AnsweringMemory,
    Step,
    TrainingMemory,
    answering_memory,
    training_memory,
)

# arXiv 2405.14734, its comparison of run times: Llama-3-Base (8.03 billion parameters, 61 thousand pairs) took SimPO 60
# minutes on eight H100s and DPO 73; ours reads the reference from a cache, filled once, which DPO's 13 minutes more pay for.
H100_SECONDS_A_PAIR = 8 * 60 * 60 / 61135 / 8.03e9  # of device time, a parameter
REFERENCE_SHARE = 13 / 60
H100_FLOPS = 989e12  # bf16 without sparsity, NVIDIA's data sheet
SPEAKING = 0.1  # of the matrix-product rate is what sampling reaches: a token a step, bound by memory
# Beside the products, measured on two cores with `tiny` (a step of 0.10 to 0.15 s, 0.05 s of it products; 47 s for start model,
# training and evaluation) and `smollm2` (1.2 to 1.3 s a pair, for which this gives 1.5): what a layer takes for each
# micro-batch whatever its size, and what a process takes to start, to prove its layout, and to read a gigabyte of weights.
# A processor's products reach most of its rate, as the layers' own time is counted apart; a GPU's about half.
TRAINING, TRAINING_ON_GPU = 0.8, 0.5
LAYER_SECONDS, LAYER_SECONDS_ON_GPU = 0.02, 0.001
IMPORT_SECONDS, START_SECONDS, READ_SECONDS = 10.0, 5.0, 1.0
TIMED_RUNS = 20  # of a setting, the newest: their steps are read for the pace, however many there are


@dataclass(frozen=True)
class Cost:
    """An estimate of what is left; nan where it is not known. basis: what the time is estimated from.

    seconds: wall time of training and evaluation. device_hours: of all devices together; answers are counted as if all
    were as long as they may be. memory: bytes on each device. sharded: whether weights, gradients and moments are
    split over the devices. disk: bytes, at the worst moment. judge_calls, judge_tokens: of a judge that is asked over a
    network; 0 for one that is free. parts: the memory of training by part; micro_tokens: of its largest micro-batch. answering:
    the memory of answering by part, each in bytes on a device; None where nothing of the kind is left.
    """

    seconds: float
    memory: float
    disk: float
    basis: str
    device_hours: float = math.nan
    devices: int = 1
    sharded: bool = False
    parameters: float = math.nan
    pairs: float = math.nan
    judge_calls: int = 0
    judge_tokens: float = 0.0
    parts: dict[str, float] | None = None
    micro_tokens: int = 0
    answering: dict[str, float] | None = None


class Counts(NamedTuple):
    """Of a plan's data. tokens: of a training pair, prompt and both responses, on average. longest: of the longest one; 0 where
    the pairs are not read. own: of the lists or answers that the data have, by unit."""

    train: int
    heldout: int
    tokens: float
    longest: int = 0
    own: Mapping[str, Own] = {}

    def longest_of(self, loss: str) -> int:
        """Tokens of the longest item that a loss is trained on; 0 where it is not known."""
        unit = get_loss(loss).unit
        return self.own[unit].longest if unit in self.own else self.longest


def _first_passes(loss: str) -> float:
    """A training step's time with the further passes that the loss asks for, in steps without: a forward pass over a borrowed
    answer a pair for `kl`, over the pair itself for `batch`; forward and backward over its prompt for `value`."""
    needs = get_loss(loss).needs
    return 1.0 + ("kl" in needs) / 4 + ("batch" in needs) / 3 + ("value" in needs) / 5


def estimate_cost(tasks: Sequence[Task], counts: Counts | None) -> Cost:
    """Of what is left of the tasks."""
    job = tasks[0].job
    config = model_config(job)
    shape = _shape(config)
    if config is None or shape is None:
        return Cost(math.nan, math.nan, math.nan, "the model is not at hand, so its size is not known")
    size = shape.parameters
    sft = [replace(t, job=_as_training(t.job)) for t in tasks if t.kind == "sft" and t.stages]
    trained = [t for t in tasks if "train" in t.stages]
    answering = sum("answers" in t.stages for t in tasks)
    judging = [t for t in tasks if "judge" in t.stages]
    devices = layout_of_devices()[0]
    sharded = any(_shards(t.job) > 1 for t in [*sft, *trained])
    data = _Data.of(job, counts)
    pairs = data.pairs
    pace = _pace(tasks, data, size, config)
    prompts = asked_prompts(job)
    training = sum(_training(t, pace, data) for t in trained)
    reading = [t for t in trained if get_loss(t.job.loss).reads_reference]
    read = [t.job.train for t in reading]
    # one for all, and one for all that read tokens; after the first round one for each run
    cached = [t for t in reading if t.job.train.reference == "cached"]
    passes = len({("tokens" in get_loss(t.job.loss).needs, t.run * (t.job.round.number > 1)) for t in cached})
    passes += sum(train.epochs for train in read if train.reference == "every_step")
    training += REFERENCE_SHARE * pace.pair * pairs * passes if passes else 0.0
    training += sum(_demonstrating(t.job, pace) for t in sft)
    evaluation = sum(_evaluating(t, pace, data, size, prompts) for t in tasks)
    evaluation += _speaking(size, pace.flops) * sum(row["spoken_tokens"] for row in estimate_benchmarks(tasks))
    drawn = [t.job for t in tasks if "onpolicy" in t.stages]
    free, compares = _judge_facts(job.judge.name)
    pairs_judged = sum("compare" in t.stages for t in tasks)
    compared = sum(t.kind == "loss" for t in judging) + pairs_judged
    judged = 2 * compared if compares else len(judging)  # both orders, beside the start model or another loss
    calls = 0.0 if free else judged * prompts * job.answers.samples
    judge_tokens = calls * 2.0 * job.answers.max_new_tokens if calls else 0.0
    for drawn_job in drawn:
        ranking = _ranking_calls(drawn_job)
        calls += ranking
        judge_tokens += ranking * 2.0 * _new_tokens(drawn_job) if ranking else 0.0
    memory, micro_tokens = _largest(sft, _first_of_kinds(trained), shape, counts)
    spoken = answering_of(job, shape) if answering else None
    return Cost(
        seconds=training / devices + evaluation + _starting(tasks, size),
        memory=memory.total if memory else math.nan,
        parts=memory.parts if memory else None,
        micro_tokens=micro_tokens,
        answering=spoken.parts if spoken else None,
        disk=_disk([*sft, *trained], size),
        basis=pace.basis,
        device_hours=(training + evaluation) / 3600,
        devices=devices,
        sharded=sharded,
        parameters=float(size),
        pairs=float(pairs),
        judge_calls=int(calls) if not math.isnan(calls) else 0,
        judge_tokens=judge_tokens,
    )


def seconds_of_each(tasks: Sequence[Task], counts: Counts | None) -> list[float]:
    """Wall time of each task by itself, from the start of its process; nan where it is not known."""
    config = model_config(tasks[0].job) if tasks else None
    shape = _shape(config)
    if config is None or shape is None:
        return [math.nan] * len(tasks)
    job, size, devices = tasks[0].job, shape.parameters, layout_of_devices()[0]
    data = _Data.of(job, counts)
    pace = _pace(tasks, data, size, config)
    prompts = asked_prompts(job)

    def of(task: Task) -> float:
        training = _training(task, pace, data) if "train" in task.stages else 0.0
        if training and get_loss(task.job.loss).reads_reference and task.job.train.reference == "every_step":
            training += REFERENCE_SHARE * pace.pair * data.pairs * task.job.train.epochs
        if task.kind == "sft":
            training += _demonstrating(_as_training(task.job), pace)
        if task.kind == "reference":
            training += REFERENCE_SHARE * pace.pair * data.pairs
        spoken = _speaking(size, pace.flops) * sum(row["spoken_tokens"] for row in estimate_benchmarks([task]))
        return training / devices + _evaluating(task, pace, data, size, prompts) + spoken + _process_starts(size)

    return [of(task) for task in tasks]


def _training(task: Task, pace: _Pace, data: _Data) -> float:
    """Device seconds of a training's steps."""
    return pace.pair * data.worth(task.job.loss) * task.job.train.epochs * _first_passes(task.job.loss)


def _demonstrating(job: Job, pace: _Pace) -> float:
    """Device seconds of an SFT stage. A conversation counts as a pair: two answers to one prompt are about as long. job: of
    `_as_training`."""
    return pace.pair * _conversations(job) * job.train.epochs


def _evaluating(task: Task, pace: _Pace, data: _Data, size: int, prompts: float) -> float:
    """Seconds of the stages of a task that one process does, but for benchmarks. A forward pass is a third of a step. prompts:
    that are answered."""
    job, speaking, seconds = task.job, _speaking(size, pace.flops), 0.0
    if "heldout" in task.stages:
        seconds += pace.pair / 3 * data.held_out
    if "trainpairs" in task.stages:
        seconds += pace.pair / 3 * min(data.pairs, job.data.max_trainpairs)
    if "answers" in task.stages:
        seconds += speaking * prompts * job.answers.samples * job.answers.max_new_tokens
    if "onpolicy" in task.stages:
        seconds += speaking * drawn_tokens(job)
    return seconds


def _first_of_kinds(trained: Sequence[Task]) -> list[Task]:
    """The first training of each unit of losses, with the reference stored or beside the policy; those of one kind need the
    same memory."""
    kinds = {
        (get_loss(task.job.loss).unit, task.job.train.reference, _valued(task.job)): task for task in reversed(trained)
    }
    return list(kinds.values())


def _largest(
    sft: Sequence[Task], trained: Sequence[Task], shape: ModelShape, counts: Counts | None
) -> tuple[TrainingMemory | None, int]:
    """(memory, tokens of a micro-batch) of the task that needs the most; (None, 0) where none trains."""
    longest = [(t, counts.longest if counts else 0) for t in sft]
    longest += [(t, counts.longest_of(t.job.loss) if counts else 0) for t in trained]
    steps = [step_of(t.job, shape, _shards(t.job), tokens) for t, tokens in longest]
    found = [(training_memory(shape, step), step.tokens) for step in steps]
    return max(found, key=lambda one: one[0].total) if found else (None, 0)


def _starting(tasks: Sequence[Task], size: int) -> float:
    """Seconds until the processes of what is left have begun to compute."""
    left = sum(bool(t.stages) for t in tasks)
    return left * _process_starts(size) + (IMPORT_SECONDS if left else 0.0)


def _process_starts(size: int) -> float:
    """Seconds until a process has read the model and begins to compute."""
    return START_SECONDS + READ_SECONDS * 4e-9 * size


def _speaking(size: int, flops: float) -> float:
    """Seconds for one sampled token."""
    return 2 * size / (SPEAKING * flops)


def answering_seconds(job: Job, prompts: float, samples: float) -> float:
    """Of one trained model: its process starts, and answers so many prompts so many times; nan where the model's size is not
    known. Answers are counted as if all were as long as they may be."""
    shape = model_shape(job)
    if shape is None:
        return math.nan
    size = shape.parameters
    tokens = prompts * samples * job.answers.max_new_tokens
    return _process_starts(size) + _speaking(size, _flops(size)) * tokens


def _judge_facts(name: str | None) -> tuple[bool, bool]:
    """(free, compares) of a judge; a plug-in that is not loaded now may cost something."""
    if name is None:
        return True, False
    try:
        judge = judges.get(name)
    except UnknownNameError:
        return False, False
    return judge.free, judge.compares


def estimate_benchmarks(tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """One row a benchmark that is left: its judge, how many models, requests and tokens, dollars (None: not known)."""
    left = [
        benchmark
        for task in tasks
        for benchmark in task.benchmarks
        if task.spoken is None or not benchmark.done(task.runs / task.run, task.spoken)
    ]
    rows = []
    for name in dict.fromkeys(benchmark.name for benchmark in left):
        same = [benchmark for benchmark in left if benchmark.name == name]  # the same settings for every model
        total = same[0].calls().of(len(same)).and_also(same[0].shared_calls())._asdict()
        part = "" if same[0].limit is None else same[0].limited.format(limit=same[0].limit)
        rows.append({"benchmark": name, "limit": same[0].limit, "part": part, "models": len(same), **total})
    return rows


# ---------------------------------------------------------------- size
def model_config(job: Job) -> Mapping[str, Any] | None:
    """The start model's configuration: at hand, else published; None where neither."""
    model = job.model
    config = cached_config(model.source, revision=model.revision, sha256=model.sha256, base=model.base)
    if config is not None:
        return config
    return MODELS[model.source].config if model.source in MODELS else None


def model_shape(job: Job) -> ModelShape | None:
    """The sizes of the start model; None where its configuration is not known, or is of code of its own."""
    return _shape(model_config(job))


def _shape(config: Mapping[str, Any] | None) -> ModelShape | None:
    try:
        return None if config is None else shape_of(config)
    except (ValueError, KeyError, TypeError, AttributeError):  # code of its own, which a plan does not run
        return None


@dataclass(frozen=True)
class _Data:
    pairs: float
    held_out: float
    tokens: float  # of a pair: prompt and both responses
    own: Mapping[str, Own] = field(default_factory=dict)

    def worth(self, loss: str) -> float:
        """How many pairs have as many tokens as all that a loss is trained on."""
        own = self.own.get(get_loss(loss).unit)
        return self.pairs if own is None else own.items * own.tokens / self.tokens

    @classmethod
    def of(cls, job: Job, counts: Counts | None) -> _Data:
        """Counted where pairs are prepared; from the texts of a local file, four characters a token; else published."""
        data = job.data
        if counts is not None and counts.train == 0 and (answers := counts.own.get("answers")):
            return cls(answers.items / 2, counts.heldout, 2 * answers.tokens, counts.own)
        if counts is not None:
            return cls(counts.train, counts.heldout, counts.tokens or math.nan, counts.own)
        found = [_rows(data, part) for part in data.parts]
        pairs = sum(n for n, _ in found)
        weights = [part.weight for part in data.parts if part.weight is not None]
        if weights and pairs < math.inf:  # false for nan
            pairs = float(len(interleaved([int(n) for n, _ in found], weights, data.stopping)[0]))
        tokens = sum(n * of_pair for n, of_pair in found) / pairs if pairs else math.nan
        held = sum(_rows(data, part)[0] for part in data.held_out_parts)
        if not data.held_out_parts:
            pairs, held = (1 - data.held_out_fraction) * pairs, data.held_out_fraction * pairs
        return cls(min(pairs, data.max_pairs or math.inf), min(held, data.max_held_out or math.inf), tokens)


def _rows(data: DataConfig, part: SourceConfig) -> tuple[float, float]:
    """(pairs, tokens of a pair) of a data set that no tokenizer has seen; nan where neither at hand nor published."""
    if part.source in DATASETS:
        return float(DATASETS[part.source].splits.get(part.split or "train", math.nan)), math.nan
    if not is_local(part.source):
        return math.nan, math.nan
    try:
        files = fetch_rows(part.source, split=part.split, subset=part.subset)
        found = load_preferences(files, columns=part.columns, ignore=part.ignore, pairs_from=data.pairs_from)
    except PobenchError:
        return math.nan, math.nan
    texts = [sum(len(m.content) for m in p.prompt) + len(p.chosen) + len(p.rejected) for p in found.preferences]
    if not texts:  # two single answers are as long as a pair
        texts = [2 * (sum(len(m.content) for m in a.prompt) + len(a.answer)) for a in found.answers[::2]]
    return float(len(texts)), statistics.mean(texts) / 4 if texts else math.nan


def _as_training(job: Job) -> Job:
    """The SFT stage of a job as if it trained on pairs."""
    assert job.sft is not None
    return replace(job, train=TrainConfig(**job.sft.model_dump(include=set(LoopConfig.model_fields))))


def _conversations(job: Job) -> float:
    """How many the SFT stage learns from in an epoch; nan where neither at hand nor published."""
    assert job.sft is not None
    source, split, subset = job.sft.source, job.sft.split, job.sft.subset
    if source in DATASETS:
        count = float(DATASETS[source].splits.get(split or "train", math.nan))
    else:
        count = float(len(read_rows(fetch_rows(source, split=split, subset=subset)))) if is_local(source) else math.nan
    return min(count, job.sft.max_conversations or math.inf)


def is_local(source: str) -> bool:
    """Whether rows are read without a network."""
    return source.startswith("builtin:") or glob.has_magic(source) or Path(source).expanduser().exists()


def asked_prompts(job: Job) -> float:
    """How many prompts are answered; nan where they are not at hand."""
    answers = job.answers
    if answers.source is None:
        return 0.0
    if answers.source in DATASETS:
        splits = DATASETS[answers.source].splits
        return min(float(splits.get(answers.split or "train", math.nan)), answers.max_prompts or math.inf)
    try:
        return float(len(eval_prompts(answers))) if is_local(answers.source) else math.nan
    except PobenchError:
        return math.nan


def drawn_tokens(job: Job) -> float:
    """Tokens of all answers that the stage `onpolicy` samples, if all were as long as they may be; nan where the prompts are
    not at hand."""
    return _drawn_prompts(job) * job.onpolicy.samples * _new_tokens(job)


def _new_tokens(job: Job) -> int:
    return job.onpolicy.max_new_tokens or job.answers.max_new_tokens


def _drawn_prompts(job: Job) -> float:
    """How many prompts are sampled; nan where they are not at hand."""
    config, data = job.onpolicy, job.data
    source, split = config.prompts or data.source, config.prompts_split or data.split
    if source in DATASETS:
        sizes = DATASETS[source].splits
        prompts = sum(float(sizes.get(part, math.nan)) for part in (split or "train").split("+"))
    else:
        prompts = float(len(sampled_rows(job))) if is_local(source) else math.nan
    return min(prompts, config.max_prompts or math.inf) / (job.round.of if is_split(job) else 1)


def ranker_of(job: Job) -> str | None:
    """The judge that ranks the samples of the stage `onpolicy`; None where they are not ranked."""
    return None if job.onpolicy.pairs == "human_over_own" else job.onpolicy.ranker.name or job.judge.name


def _ranking_calls(job: Job) -> float:
    """Requests to a ranker that costs something: one a sample, or both orders of every two samples of a prompt."""
    free, compares = _judge_facts(ranker_of(job))
    samples = job.onpolicy.samples
    return 0.0 if free else _drawn_prompts(job) * (samples * (samples - 1) if compares else samples)


def training_of(job: Job, shape: ModelShape, shards: int = 1, longest: int = 0) -> TrainingMemory:
    """The memory of one device at the peak of a training step, by part. shards: devices that share weights, gradients and
    moments. longest: tokens of the longest pair; 0: as long as the setting allows."""
    return training_memory(shape, step_of(job, shape, shards, longest))


def step_of(job: Job, shape: ModelShape, shards: int = 1, longest: int = 0) -> Step:
    """How a training step computes: on a GPU if there is one, or if the model is none for a processor."""
    gpu = not _for_a_processor(shape.parameters)
    pair = longest or 2 * job.data.max_length
    step = Step.of(job.train, pair, shards=shards, gpu=gpu, narrow=gpu or bf16_pays(torch.device("cpu")))
    most = max(pair, -(-job.train.batch_size // shards) * pair)
    return replace(step, tokens=min(step.tokens, most), responses=min(step.responses, most), moving=_moving(job))


def answering_of(job: Job, shape: ModelShape) -> AnsweringMemory:
    """The memory of one device that answers the setting's prompts, each as long as it may be, in whole batches."""
    narrow = job.answers.precision == "bf16" or (
        job.answers.precision == "auto" and not _for_a_processor(shape.parameters)
    )
    answers, prompt = job.answers, job.data.max_prompt_length
    rows = min(answers.batch_size, max(1, MOST_TOKENS // prompt))
    return answering_memory(shape, rows, prompt, answers.max_new_tokens, 2.0 if narrow else 4.0)


def _for_a_processor(size: int) -> bool:
    return not torch.cuda.is_available() and size < 1e9


# ---------------------------------------------------------------- weights split over devices
def with_sharding(job: Job) -> Job:
    """The job with `sharding` resolved, of training and of SFT: "fsdp2" where several processes hold a share each."""
    sft = None
    if job.sft is not None:
        sft = job.sft.model_copy(update={"sharding": _sharding(_as_training(job))})
    return replace(job, train=job.train.model_copy(update={"sharding": _sharding(job)}), sft=sft)


def _sharding(job: Job) -> str:
    """`auto`: as the user's `accelerate config` says, else where the estimate of a whole copy does not fit a device."""
    devices, configured = layout_of_devices()
    quantised = job.train.adapter is not None and job.train.adapter.quantize != "none"
    whole = quantised or _valued(job)
    if devices == 1 or job.train.sharding != "auto":
        return "none" if devices == 1 else job.train.sharding
    if configured or whole:
        return "none" if whole else "fsdp2"
    shape = model_shape(job)
    fits = shape is None or training_of(job, shape).total <= USABLE * device_memory()
    return "none" if fits else "fsdp2"


def _shards(job: Job) -> int:
    """Over how many devices the weights of a job are split."""
    return layout_of_devices()[0] if _sharding(job) == "fsdp2" else 1


def sharding_faults(job: Job) -> list[str]:
    """What weights that are split over devices cannot be combined with; `job` is resolved."""
    if job.train.sharding != "fsdp2":
        return []
    faults = []
    if job.train.adapter is not None and job.train.adapter.quantize != "none":
        faults.append(
            f"train.sharding: fsdp2 does not split weights of {job.train.adapter.quantize}; use none: a copy on each device "
            "takes half a byte a weight"
        )
    if _valued(job):
        faults.append(
            f"train.sharding: {job.loss} trains a value model beside the policy, which fsdp2 does not split; use none"
        )
    if job.train.compile:
        faults.append("train.sharding: fsdp2 with train.compile is not tested; use --set train.compile=false")
    return faults


def _disk(trained: Sequence[Task], size: int) -> float:
    """Each trained model, and its checkpoints with moments and a reference that moves: those that are kept, and one more, as a
    new one is written before an old one goes; of an adapter about one per cent of that, and the merged model that vLLM reads
    while it answers."""
    weights = sum(
        4.0 * size * (1.0 if t.job.train.adapter is None or t.job.train.adapter.merge else 0.01) for t in trained
    )
    largest = max((_state_bytes(t.job) * (1 + _kept_checkpoints(t.job.train)) for t in trained), default=0.0)
    written = max((_copied_for_vllm(t) for t in trained), default=0.0) * layout_of_devices()[0]
    return weights + size * max(largest, written)


def _kept_checkpoints(config: LoopConfig) -> int:
    return 1 if config.sharding == "fsdp2" else config.keep_checkpoints


def _state_bytes(job: Job) -> float:
    """Bytes a parameter of a checkpoint: weights and moments, of a value model too; the weights that move beside them."""
    if job.train.adapter is not None:
        return 0.01 * 12.0
    return 12.0 * (2 if _valued(job) else 1) + 4.0 * _moving(job)


def _moving(job: Job) -> int:
    """How many copies of the trained weights the steps move: none in an SFT stage; a second model, and where it is led an
    average of the policy and the policy's start."""
    loss = get_loss(job.loss)
    if job.train.reference != "every_step" or not loss.moves_reference:
        return 0
    return 3 if loss.leads_reference else 1


def _valued(job: Job) -> bool:
    """Whether a value model is trained beside the policy; it never is in an SFT stage."""
    return job.train.value_learning_rate is not None


def _copied_for_vllm(task: Task) -> float:
    """Bytes a parameter that each process writes for vLLM: of a merged adapter alone, whose weights are stored nowhere."""
    adapter, answers = task.job.train.adapter, task.job.answers
    if adapter is None or adapter.merge or answers.source is None or answers.engine == "transformers":
        return 0.0
    served = answers.engine == "vllm" or (torch.cuda.is_available() and not missing("vllm"))
    return (4.0 if answers.precision == "fp32" else 2.0) if served else 0.0


# ---------------------------------------------------------------- pace
@dataclass(frozen=True)
class _Pace:
    pair: float  # device seconds for one pair of one training step
    flops: float  # matrix products a second, of one device
    basis: str


def _on_this_machine(size: int) -> bool:
    """A plan for eight billion parameters is no plan for this processor."""
    return torch.cuda.is_available() or size < 1e9


def _flops(size: int) -> float:
    """Matrix products a second of one device that the model will run on."""
    return peak_flops() if _on_this_machine(size) else H100_FLOPS


def _pace(tasks: Sequence[Task], data: _Data, size: int, config: Mapping[str, Any]) -> _Pace:
    devices = layout_of_devices()[0]
    on_this_machine, flops = _on_this_machine(size), _flops(size)
    measured = _measured(tasks)
    if measured:
        return _Pace(
            statistics.median(measured) * devices,
            flops,
            f"the median of {len(measured)} measured steps of this setting",
        )
    if on_this_machine and not math.isnan(data.tokens):
        reached = TRAINING_ON_GPU if torch.cuda.is_available() else TRAINING
        return _Pace(
            6 * size * data.tokens / (reached * flops) + _beside_products(tasks[-1].job.train, data.tokens, config),
            flops,
            f"6 × parameters × tokens at {reached:.0%} of this machine's matrix-product rate, and the layers' own time",
        )
    if size < 1e9:
        return _Pace(math.nan, flops, "the data is not at hand, so the pairs are not counted")
    return _Pace(
        H100_SECONDS_A_PAIR * size,
        H100_FLOPS,
        "H100 hours, scaled from the SimPO paper's 60 minutes on eight for 8 billion parameters and 61 thousand pairs",
    )


def _beside_products(train: TrainConfig, tokens: float, config: Mapping[str, Any]) -> float:
    """Seconds a pair that a step spends on its layers whatever their size. tokens: of a pair."""
    micro = train.micro_tokens if isinstance(train.micro_tokens, int) else MICRO_TOKENS
    micro_batches = math.ceil(train.batch_size * tokens / micro)
    a_layer = LAYER_SECONDS_ON_GPU if torch.cuda.is_available() else LAYER_SECONDS
    return a_layer * int(config.get("num_hidden_layers", 0)) * micro_batches / train.batch_size


def _measured(tasks: Sequence[Task]) -> list[float]:
    """Seconds a pair of the logged steps of the setting's newest runs, but each run's first step, which warms up."""
    root = tasks[-1].runs / tasks[-1].job.setting
    seconds = []
    for path in heapq.nlargest(TIMED_RUNS, root.glob("*/steps.jsonl"), key=_written):
        rows = RunFolder(root.parent, f"{root.name}/{path.parent.name}").logged()
        seconds += [
            row["seconds"] / row["pairs"] for row in rows[1:] if "pairs" in row
        ]  # not lists, not single answers
    return seconds


def _written(path: Path) -> int:
    """When the file was written, in nanoseconds; 0 where it has gone."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
