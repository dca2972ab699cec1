"""Downstream tasks by lm-eval, run in this process: does preference optimization hurt other abilities?

The tasks are the six of the first Open LLM Leaderboard with its numbers of shots, as in the SimPO paper's appendix on
downstream tasks, and GSM8K and MMLU zero-shot. Prompts, few-shot sampling and metrics are lm-eval's own, without a chat
template unless `chat_template` is set. The values of the items are averaged here, so that each number has an interval.
lm-eval cuts a request that is longer than the model's context on its left; such requests are counted in the task's note. A
task that fails is named and leaves the others.

    <run>/benchmarks/downstream/<12 hex>/      manifest.json, one JSON for each task as it ends, then score.json

A task's requests are cut into shards (`pobench.shards`), which all processes that evaluate the run answer; filters and metrics
see all answers, once, in the first process. lm-eval's own way to several processes gives each every n-th item, and each draws
shots from the same seed: an item would be asked with other shots than by one process.

Items come from the hub, or from a folder of JSONL files in the columns of the hub's:

    arc_challenge_{train,test}  gsm8k_{train,test}  hellaswag_{train,validation}  truthfulqa_mc_validation
    winogrande_{train,validation}  mmlu/{dev,test}/SUBJECT

A task without a file for its shots draws them from the evaluated items, except the current one; its result says so.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import numpy as np
import torch
from pydantic import Field, field_validator
from tqdm import tqdm

from pobench import shards
from pobench.data.rows import read_rows
from pobench.errors import PobenchError, nearest
from pobench.files import nan_as_null, write_json
from pobench.identity import name_of
from pobench.judging.benchmarks.base import (
    OTHER_WEIGHTS,
    Benchmark,
    QuestionScore,
    Result,
    Speaker,
    Spoken,
    write_result,
)
from pobench.model.rope import held_reach
from pobench.registry import register_benchmark
from pobench.results import stats
from pobench.results.manifest import claim, finish, holds, manifest
from pobench.settings.schema import Count
from pobench.sources import ask_hub

SHOTS_SEED = 1234  # lm-eval's own
SHARD_BATCHES = 8  # of requests, in a shard


class Answering(NamedTuple):
    """Requests of one task, cut into shards. digest: of the requests. cut: their places among all. answer: k → the answers of
    shard k, as `[{"answers": …, "cut": requests that lost their beginning}]`."""

    task: str
    digest: str
    cut: shards.Cut
    answer: Callable[[int], list[Any]]


Answer = Callable[[Answering], list[Any] | None]  # what all shards come to; None where another process joins them


def _all_here(asked: Answering) -> list[Any]:
    return [part for k in range(len(asked.cut)) for part in asked.answer(k)]


class Official(NamedTuple):
    """A task of lm-eval. folder: below lm_eval/tasks. metrics: (metric, filter of the reply), the task's main metric first.
    shots_from: the split of the shots. files: split → local file; `*` stands for the names of several subtasks."""

    task: str
    folder: str
    shots: int
    metrics: tuple[tuple[str, str], ...]
    evaluated: str
    shots_from: str
    files: Mapping[str, str]


_MMLU = Official(
    "mmlu", "mmlu/default", 5, (("acc", "none"),), "test", "dev", {s: f"mmlu/{s}/*.jsonl" for s in ("dev", "test")}
)
_STRICT, _FLEXIBLE = ("exact_match", "strict-match"), ("exact_match", "flexible-extract")
_GSM8K = Official(
    "gsm8k", "gsm8k", 5, (_STRICT, _FLEXIBLE), "test", "train", {s: f"gsm8k_{s}.jsonl" for s in ("train", "test")}
)


def _choice(task: str, folder: str, shots: int, metric: str, evaluated: str, file: str) -> Official:
    files = {split: f"{file}_{split}.jsonl" for split in ("train", evaluated)}
    return Official(task, folder, shots, ((metric, "none"),), evaluated, "train", files)


TASKS: dict[str, Official] = {
    "mmlu": _MMLU,
    "arc_challenge": _choice("arc_challenge", "arc", 25, "acc_norm", "test", "arc_challenge"),
    "hellaswag": _choice("hellaswag", "hellaswag", 10, "acc_norm", "validation", "hellaswag"),
    "truthfulqa_mc2": _choice("truthfulqa_mc2", "truthfulqa", 0, "acc", "validation", "truthfulqa_mc"),
    "winogrande": _choice("winogrande", "winogrande", 5, "acc", "validation", "winogrande"),
    "gsm8k": _GSM8K,
    "mmlu_zero_shot": _MMLU._replace(shots=0),
    "gsm8k_zero_shot": _GSM8K._replace(shots=0),
}


class Item(NamedTuple):
    """One item's value of a metric. group: what it shares with other items: a passage, a video; empty if nothing."""

    name: str
    value: float
    group: str


class TaskScore(NamedTuple):
    """One metric of one task, a share in [0, 1]. metric: lm-eval's name with its filter. limit: most items of each subtask;
    None: all. note: a remark for readers. items: what it is the mean of."""

    task: str
    metric: str
    value: float
    stderr: float
    low: float
    high: float
    n: int
    shots: int
    limit: int | None
    note: str = ""
    items: tuple[Item, ...] = ()


def evaluate(
    model: Any,
    tokenizer: Any,
    *,
    tasks: Sequence[str] = tuple(TASKS),
    limit: int | None = None,
    data: Path | None = None,
    batch_size: int = 8,
    precision: str = "fp32",
    chat_template: bool = False,
    done: Callable[[str, list[TaskScore]], None] = lambda task, scores: None,
    answer: Answer = _all_here,
) -> list[TaskScore]:
    """All metrics of these tasks, in order.

    limit: most items per task, for MMLU per subject. data: a folder of local items; None: the hub. precision: "bf16" uses
    autocast. chat_template: questions and shots as turns of a conversation. done: called after each task. answer: answers all
    requests of a task; a task whose answers another process joins has no scores here.
    Raises PobenchError for unknown tasks and missing files before anything runs, and after all tasks for those that failed.
    """
    if faults := task_faults(tasks, data):
        raise PobenchError("\n".join(faults))
    if chat_template and getattr(tokenizer, "chat_template", None) is None:
        raise PobenchError("the tokenizer has no chat template; leave out benchmarks.downstream.chat_template")
    found: list[TaskScore] = []
    failed: list[str] = []
    with _undisturbed():
        bf16 = torch.bfloat16 if precision == "bf16" else None
        speaker = _counting()(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            mixed_precision_dtype=bf16,
            max_length=held_reach(model),
        )
        for name in tasks:
            speaker.by_shards = functools.partial(_by_shards, answer, name)
            try:
                scores = _scores(speaker, name, limit, data, chat_template)
            except shards.JoinedElsewhere:
                continue
            except PobenchError as error:
                failed.append(str(error))
            except Exception as error:  # lm-eval's own, of any type: memory, an assertion about lengths
                reason = next(iter(str(error).splitlines()), "")[:200]
                failed.append(f"{name}: {type(error).__name__}: {reason}")
            else:
                done(name, scores)
                found += scores
    if failed:
        kept = f"; {len(tasks) - len(failed)} others are done, and the same command tries again" if found else ""
        heading = [f"{len(failed)} of {len(tasks)} tasks failed{kept}:"] if len(tasks) > 1 else []
        raise PobenchError("\n".join([*heading, *failed]))
    return found


def _counting() -> Any:
    """lm-eval's model class, which answers requests in shards, and counts them and those longer than the model's context."""
    from lm_eval.models.huggingface import HFLM

    class Counting(HFLM):  # type: ignore[misc]
        asked = cut = 0
        by_shards: Callable[..., tuple[list[Any], int]]  # `_by_shards` of one task

        def loglikelihood(self, requests: Any, **keywords: Any) -> list[tuple[float, bool]]:
            found = self._answer(requests, lambda some: super(Counting, self).loglikelihood(some, **keywords))
            return [(value, greedy) for value, greedy in found]

        def generate_until(self, requests: Any, **keywords: Any) -> list[str]:
            return self._answer(requests, lambda some: super(Counting, self).generate_until(some, **keywords))

        def _answer(self, requests: Sequence[Any], answer: Callable[[Sequence[Any]], list[Any]]) -> list[Any]:
            def counted(some: Sequence[Any]) -> tuple[list[Any], int]:
                self.cut = 0
                return answer(some), self.cut

            answers, cut = self.by_shards(requests, self.batch_size, counted)
            self.asked, self.cut = len(requests), cut
            return answers

        def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **keywords: Any) -> Any:
            self._count([len(context) + len(answer) for _, context, answer in requests], self.max_length + 1)
            return super()._loglikelihood_tokens(requests, *arguments, **keywords)

        def tok_batch_encode(
            self, strings: Any, padding_side: str = "left", left_truncate_len: int | None = None, **keywords: Any
        ) -> Any:
            ids, mask = super().tok_batch_encode(strings, padding_side, None, **keywords)
            if left_truncate_len is None:
                return ids, mask
            self._count(mask.sum(1).tolist(), left_truncate_len)
            return ids[:, -left_truncate_len:], mask[:, -left_truncate_len:]

        def _count(self, lengths: Sequence[int], most: int) -> None:
            self.cut += sum(length > most for length in lengths)

    return Counting


def _by_shards(
    answer: Answer,
    task: str,
    requests: Sequence[Any],
    batch_size: int,
    answered: Callable[[Sequence[Any]], tuple[list[Any], int]],
) -> tuple[list[Any], int]:
    """The answers to all requests of a task, in order, and how many requests lost their beginning.

    answered: (some requests) → the same of these. Raises JoinedElsewhere where another process joins them.
    """
    cut = _cut(requests, SHARD_BATCHES * batch_size)

    def answer_shard(k: int) -> list[Any]:
        answers, short = answered([requests[i] for block in cut[k] for i in block])
        return [{"answers": answers, "cut": short}]

    asked = hashlib.sha256()
    for request in requests:
        asked.update(f"{request.args!r}\n".encode("utf-8", "surrogatepass"))
    try:
        parts = answer(Answering(task, asked.hexdigest(), cut, answer_shard))
    except PobenchError as error:  # another process could not answer
        raise PobenchError(f"{task}: {error}") from error
    if parts is None:
        raise shards.JoinedElsewhere
    places = [i for blocks in cut for block in blocks for i in block]
    of_place = dict(zip(places, (one for part in parts for one in part["answers"]), strict=True))
    return [of_place[i] for i in range(len(requests))], sum(part["cut"] for part in parts)


def _cut(requests: Sequence[Any], size: int) -> list[list[list[int]]]:
    """The places of the requests, in shards of blocks of about `size`, of similar length each. Requests about one context stay
    together: lm-eval reads their common beginning once."""
    by_length = sorted(range(len(requests)), key=lambda i: (-len(requests[i].args[0]), requests[i].args[0], i))
    blocks: list[list[int]] = []
    for _, same in groupby(by_length, key=lambda i: requests[i].args[0]):
        if not blocks or len(blocks[-1]) >= size:
            blocks.append([])
        blocks[-1] += same
    return shards.deal(blocks)


def task_faults(tasks: Sequence[str], data: Path | None) -> list[str]:
    """What these tasks need and lack, one plain line each."""
    faults = [f"unknown task {t!r}{nearest(t, TASKS)} Known: {', '.join(TASKS)}" for t in tasks if t not in TASKS]
    if data is None:
        return faults
    if not data.is_dir():
        return [*faults, f"data: no folder {str(data)!r}"]
    for name in tasks:
        files = TASKS[name].files if name in TASKS else {}
        wanted = files.get(TASKS[name].evaluated, "") if files else ""
        if wanted and not any(data.glob(wanted)):
            have = [t for t in tasks if t in TASKS and any(data.glob(TASKS[t].files[TASKS[t].evaluated]))]
            faults.append(
                f"{name}: no file {wanted} in {str(data)!r}; leave it out: "
                f"--set benchmarks.downstream.tasks={','.join(have)}"
            )
    return faults


# ---------------------------------------------------------------- one task
def _scores(speaker: Any, name: str, limit: int | None, data: Path | None, chat_template: bool) -> list[TaskScore]:
    if data is None:
        ask_hub()  # its client would try again for minutes at every file of every task
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    official = TASKS[name]
    local = None if data is None else _local_members(official, data)
    members = _hub_members(official) if local is None else list(local)
    overrides = [_overrides(official, None if local is None else local[m]) for m in members]
    group = {"group": f"pobench_{name}", "task": [{"task": m, **o} for m, o in zip(members, overrides, strict=True)]}
    manager = TaskManager(include_path=str(_tasks_folder() / official.folder), include_defaults=False)
    try:
        loaded = manager.load([group])
    except Exception as error:  # the hub client and lm-eval raise a dozen unrelated types
        reason = next(iter(str(error).splitlines()), "")[:120]
        raise PobenchError(
            f"{name}: its items cannot be fetched ({type(error).__name__}: {reason}); "
            "without the hub, name a folder of local items: benchmarks.downstream.data"
        ) from error
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=SHOTS_SEED)
    turns = {"apply_chat_template": True, "fewshot_as_multiturn": True} if chat_template else {}
    result = evaluator.evaluate(speaker, loaded, limit=limit, bootstrap_iters=0, log_samples=True, **turns)
    items = [(f"{member}/{item['doc_id']}", item) for member, samples in result["samples"].items() for item in samples]
    notes = [] if official.shots == 0 or local is None else [_shots_note(official, local)]
    if speaker.cut:
        notes.append(
            f"{speaker.cut} of {speaker.asked} requests exceed {speaker.max_length} tokens and lost their beginning"
        )
    note = "; ".join(filter(None, notes))
    return [_score(name, items, metric, chosen, limit, note) for metric, chosen in official.metrics]


def _score(
    name: str, asked: Sequence[tuple[str, Mapping[str, Any]]], metric: str, chosen: str, limit: int | None, note: str
) -> TaskScore:
    items = [Item(n, float(i[metric]), passage_of(name, i["doc"])) for n, i in asked if i["filter"] == chosen]
    values, groups = [item.value for item in items], [item.group or item.name for item in items]
    alone, right_or_wrong = len(set(groups)) == len(groups), set(values) <= {0.0, 1.0}
    estimate = (
        stats.proportion(sum(values), len(values))
        if alone and right_or_wrong
        else stats.mean(values, groups=groups, bounds=stats.UNIT)
    )
    stderr = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    named = metric if chosen == "none" else f"{metric},{chosen}"
    value, low, high, n = (getattr(estimate, f) for f in ("value", "low", "high", "n"))
    return TaskScore(name, named, value, stderr, low, high, n, TASKS[name].shots, limit, note, tuple(items))


PASSAGE = "This question refers to the following information."  # how MMLU's questions about a passage begin


def passage_of(task: str, doc: Mapping[str, Any]) -> str:
    """What an item shares with others: of HellaSwag the video or article, of MMLU a digest of the passage that stands above
    the question, its last line. Empty where it shares nothing, or nothing says what."""
    if task == "hellaswag":
        return str(doc.get("source_id") or "")
    text = str(doc.get("question") or "")
    if task.startswith("mmlu") and text.startswith(PASSAGE):
        return hashlib.sha256(text.strip().rpartition("\n")[0].encode()).hexdigest()[:12]
    return ""


def _overrides(official: Official, files: Mapping[str, Path] | None) -> dict[str, Any]:
    """Changes to the official task's configuration: our number of shots and, for local files, their items."""
    shots: dict[str, Any] = {"num_fewshot": official.shots, "fewshot_split": official.shots_from}
    if files is None:
        return shots if official.shots else {"num_fewshot": 0}
    # lm-eval leaves the current item out of its shots only if they come from the split that it calls the test split.
    splits: dict[str, str | None] = {"training_split": None, "validation_split": None, "test_split": official.evaluated}
    drawn = official.shots_from if official.shots_from in files else official.evaluated
    return {**shots, **splits, "fewshot_split": drawn, "dataset_name": None, "custom_dataset": _loader(files)}


def _loader(files: Mapping[str, Path]) -> Callable[..., Any]:
    """A function that reads the items when lm-eval asks for them, without a copy in the datasets cache."""

    def load(**ignored: Any) -> Any:
        import datasets

        rows = {split: [row for _, row in read_rows(path)] for split, path in files.items()}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(found) for split, found in rows.items()})

    return load


def _shots_note(official: Official, local: Mapping[str, Mapping[str, Path]]) -> str:
    if all(official.shots_from in files for files in local.values()):
        return ""
    return f"shots are drawn from the {official.evaluated} items, because there are no {official.shots_from} items"


def _local_members(official: Official, data: Path) -> dict[str, dict[str, Path]]:
    """lm-eval's task → split → file. Each subject of MMLU is a task."""
    found: dict[str, dict[str, Path]] = {}
    for split, pattern in official.files.items():
        for path in sorted(data.glob(pattern)):
            member = f"{official.task}_{path.stem}" if "*" in pattern else official.task
            found.setdefault(member, {})[split] = path
    return {member: files for member, files in sorted(found.items()) if official.evaluated in files}


def _hub_members(official: Official) -> list[str]:
    if "*" not in official.files[official.evaluated]:
        return [official.task]
    return sorted(p.stem for p in (_tasks_folder() / official.folder).glob(f"{official.task}_*.yaml"))


@functools.cache
def _tasks_folder() -> Path:
    return Path(str(importlib.resources.files("lm_eval"))) / "tasks"


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep lm-eval from changing the global random state, from logging, and from drawing a bar for each shard."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    logger, level, state = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level, random.getstate()

    def bar(*arguments: Any, **keywords: Any) -> Any:
        return tqdm(*arguments, **{**keywords, "disable": True})

    logger.setLevel(logging.ERROR)
    try:
        with contextlib.ExitStack() as patches:
            for module in (model, task, huggingface):
                patches.enter_context(mock.patch.object(module, "tqdm", bar))
            yield
    finally:
        random.setstate(state)
        logger.setLevel(level)


# ---------------------------------------------------------------- the benchmark
@register_benchmark("downstream")
class Downstream(Benchmark):
    """The six tasks of the Open LLM Leaderboard, and zero-shot GSM8K and MMLU."""

    limited: ClassVar[str] = "at most {limit} items a task"

    tasks: list[str] = Field(list(TASKS), min_length=1)
    data: str | None = None  # folder of local items; None: the hub
    chat_template: bool = False  # ask in turns of a conversation; the result's name says so
    batch_size: Count = 8  # changes only the speed

    @field_validator("tasks", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @property
    def _data(self) -> Path | None:
        return None if self.data is None else Path(self.data).expanduser()

    def packages(self) -> Mapping[str, str]:
        return {"lm_eval": "lm-eval"}

    def faults(self) -> list[str]:
        return [f"benchmarks.downstream: {fault}" for fault in task_faults(self.tasks, self._data)]

    def _causes(self, spoken: Spoken) -> dict[str, Any]:
        """The rendering counts because it covers the tokenizer, and the chat template if it is used."""
        items = {"limit": self.limit, "items": _fingerprint(self._data)}
        items |= {"chat_template": True} if self.chat_template else {}
        return {**items, "rendering": spoken.rendering, "precision": spoken.precision}

    def folder(self, run: Path, spoken: Spoken) -> Path:
        """The folder of these items, whatever the tasks: a task that is asked for later joins the others."""
        return run / "benchmarks" / self.name / name_of(self._causes(spoken))

    def done(self, run: Path, spoken: Spoken) -> bool:
        folder, names = self.folder(run, spoken), [f"{task}.json" for task in self.tasks]
        if not holds(folder, {**self._causes(spoken), "weights": spoken.weights}, "score.json", *names):
            return False
        return set(self.tasks) <= set(json.loads((folder / "score.json").read_text(encoding="utf-8"))["tasks"])

    def evaluate(self, run: Path, speaker: Speaker) -> None:
        folder = self.folder(run, speaker.spoken)
        made_from = {**self._causes(speaker.spoken), "weights": speaker.spoken.weights}
        if speaker.share.first:
            for fault in claim(folder, made_from, OTHER_WEIGHTS):
                speaker.say(fault)
        left = [task for task in self.tasks if not holds(folder, made_from, f"{task}.json")]

        def of_shards(task: str) -> Path:
            return run / f".{self.name}-{folder.name}-{task}.shards"

        with speaker.progress("downstream", len(left), "tasks") as advance:

            def answer(asked: Answering) -> list[Any] | None:
                rows, before = sum(len(block) for of in asked.cut for block in of), left.index(asked.task)
                return shards.compute(
                    of_shards(asked.task),
                    {**made_from, "requests": asked.digest},
                    asked.cut,
                    asked.answer,
                    speaker.share,
                    lambda answered: advance(done=round(before + answered / rows, 2)),
                    lambda: holds(folder, made_from, f"{asked.task}.json"),
                )

            def done(task: str, scores: list[TaskScore]) -> None:
                write_json(folder / f"{task}.json", [nan_as_null(score._asdict()) for score in scores])
                finish(folder, f"{task}.json")
                shards.remove(of_shards(task))
                self._write_score(folder)
                advance(note=f"{task} {scores[0].value:.3f}", done=left.index(task) + 1)
                if scores[0].note:
                    speaker.say(f"{task}: {scores[0].note}")

            if left:
                evaluate(
                    speaker.model,
                    speaker.chat.tokenizer,
                    tasks=left,
                    limit=self.limit,
                    data=self._data,
                    batch_size=self.batch_size,
                    precision=speaker.spoken.precision,
                    chat_template=self.chat_template,
                    done=done,
                    answer=answer,
                )
        if speaker.share.first:
            self._write_score(folder)

    def _write_score(self, folder: Path) -> None:
        finished = [task for task in TASKS if f"{task}.json" in manifest(folder)["files"]]
        stored = {t: json.loads((folder / f"{t}.json").read_text(encoding="utf-8")) for t in finished}
        scores = [score for of_task in stored.values() for score in of_task]
        items = [(_metric_of(score), Item(*item)) for score in scores for item in score.get("items", ())]
        part = "" if self.limit is None else f" ({self.limited.format(limit=self.limit)})"
        write_result(
            folder,
            benchmark=self.name,
            name=f"downstream tasks{' with the chat template' if self.chat_template else ''}{part}",
            judge="",
            asked=sum(of_task[0]["n"] for of_task in stored.values()),
            limit=self.limit,
            rows=[_result(score) for score in scores],
            questions=[QuestionScore(metric, item.name, 100 * item.value, group=item.group) for metric, item in items],
            about={
                "tasks": list(stored),
                "scores": [{name: value for name, value in score.items() if name != "items"} for score in scores],
                "lm_eval": importlib.metadata.version("lm_eval"),
                "notes": sorted({f"{s['task']}: {s['note']}" for s in scores if s["note"]}),
            },
        )
        finish(folder, "score.json")

    def rehearsed(self, folder: Path, questions: int, max_new_tokens: int) -> Downstream:
        """A copy on one generated item per task in the columns of the real ones, with up to 25 shots."""
        data = folder / self.name
        for name in self.tasks:
            write_stand_ins(data, name)
        return self.model_copy(update={"data": str(data), "limit": 1})


def _metric_of(score: Mapping[str, Any]) -> str:
    """The task's name; a second metric adds its filter's name."""
    first = score["metric"] == ",".join(m for m in TASKS[score["task"]].metrics[0] if m != "none")
    return str(score["task"]) if first else f"{score['task']}_{score['metric'].rpartition(',')[2].replace('-', '_')}"


def _result(score: Mapping[str, Any]) -> Result:
    """The score in percent."""
    value, low, high = (math.nan if score[k] is None else 100 * score[k] for k in ("value", "low", "high"))
    return Result(_metric_of(score), value, low, high, score["n"])


def _fingerprint(data: Path | None) -> str:
    if data is None:
        return "hub"
    total = hashlib.sha256()
    for path in sorted(data.rglob("*.jsonl")):
        total.update(f"{path.relative_to(data).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


# ---------------------------------------------------------------- stand-ins, for a rehearsal
_ITEMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "mmlu": lambda i: {"question": f"What is {i} + 1?", "choices": [str(i + k) for k in range(4)], "answer": 1},
    "arc_challenge": lambda i: {
        "question": f"Which is largest? ({i})",
        "choices": {"text": ["a pea", "a plum", "a pear", "a pumpkin"], "label": ["A", "B", "C", "D"]},
        "answerKey": "D",
    },
    "hellaswag": lambda i: {
        "activity_label": "Making tea",
        "ctx_a": f"Somebody boils {i} cups of water.",
        "ctx_b": "they",
        "endings": ["pour it.", "eat it.", "fold it.", "read it."],
        "label": "0",
    },
    "truthfulqa_mc2": lambda i: {
        "question": f"Is {i} a number?",
        "mc1_targets": {"choices": ["Yes.", "No."], "labels": [1, 0]},
        "mc2_targets": {"choices": ["Yes.", "It is.", "No."], "labels": [1, 1, 0]},
    },
    "winogrande": lambda i: {
        "sentence": f"The cup held {i} spoons but the jug held more because the _ was larger.",
        "option1": "cup",
        "option2": "jug",
        "answer": "2",
    },
    "gsm8k": lambda i: {"question": f"Ann has {i} pens and buys 2. How many?", "answer": f"{i} + 2.\n#### {i + 2}"},
}


def write_stand_ins(folder: Path, name: str, items: int = 30) -> None:
    """Write generated items of a task in its own columns, more items than shots."""
    official = TASKS[name]
    for pattern in official.files.values():
        path = folder / pattern.replace("*", "anatomy")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(_ITEMS[official.task](i)) + "\n" for i in range(items)), encoding="utf-8")
