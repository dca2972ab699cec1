"""Digests of what a plan's results are made from: start weights, token pairs, prompts, source code.

Files that pobench did not write are hashed once and remembered by size, modification time and inode, so that a repeated
command takes seconds at 60,000 pairs and 14 GB of weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pobench.composed import Composed
from pobench.data.audit import refuse_unknown, unknown_shares, unknown_text
from pobench.data.capacity import Capacity, Extent
from pobench.data.chat import Chat
from pobench.data.order import Ratings, items_digest
from pobench.data.pairs_folder import PAIRS, Own, PairsFolder, distinct_prompts, own_of, parts_of
from pobench.data.prepare import Prepared, prepare, reader_digest, source_files
from pobench.data.prompts import eval_prompts
from pobench.errors import PobenchError
from pobench.identity import PROTOCOL, code_digest, name_of
from pobench.judging.benchmarks.base import Benchmark
from pobench.model.device import bf16_pays
from pobench.registry import get_loss, judges
from pobench.runs.stage import Content
from pobench.runs.start_model import base_model, stage_folder
from pobench.settings.job import Job
from pobench.sources import fetch_model, is_hub_name, rows_digest, weights_digest

SOURCES = (
    "source",
    "subset",
    "split",
    "revision",
    "held_out",
    "held_out_split",
)  # of the data section: they count by content


class Pairs(NamedTuple):
    """A plan's training items and held-out pairs. folder: where they lie, or will. causes: what names the folder. prepared: the
    items, where they had to be read now; None where the folder is there. Parts: see `PairsFolder`."""

    folder: PairsFolder
    causes: dict[str, Any]
    prepared: Prepared | None

    @property
    def digests(self) -> dict[str, str]:
        """Part → hex sha256."""
        if self.prepared is None:
            return dict(self.folder.about["digests"])
        return {name: items_digest(items) for name, items in parts_of(self.prepared).items()}

    @property
    def counts(self) -> dict[str, int]:
        """Part → how many items."""
        if self.prepared is None:
            return dict(self.folder.about["pairs"])
        return {name: len(items) for name, items in parts_of(self.prepared).items()}

    @property
    def ratings(self) -> dict[str, Ratings]:
        """Part → what is known of the ratings."""
        if self.prepared is None:
            return {name: Ratings(*known) for name, known in self.folder.about["ratings"].items()}
        return {name: Ratings.of(items) for name, items in parts_of(self.prepared).items()}

    def part(self, unit: str) -> str:
        """The part that a loss of this unit is trained on."""
        return unit if unit in self.counts else "train"

    @property
    def own(self) -> dict[str, Own]:
        """Unit → what is known of the lists or answers that the data have."""
        if self.prepared is None:
            return {unit: Own(*known) for unit, known in self.folder.about.get("own", {}).items()}
        return own_of(self.prepared)

    def of_one_prompt(self, unit: str) -> bool:
        """Whether all items that a loss of this unit is trained on share one prompt."""
        if unit in self.own:
            return self.own[unit].prompts == 1
        if self.prepared is None:
            return self.folder.about.get("prompts") == 1  # earlier versions did not write it
        return distinct_prompts(self.prepared.train) == 1

    @property
    def extent(self) -> Extent:
        return self.folder.extent if self.prepared is None else Extent.of(self.prepared.groups)

    @property
    def summary(self) -> str:
        """For the terminal: what was read, and what was left out."""
        return str(self.folder.about["summary"]) if self.prepared is None else self.prepared.text()

    def store(self) -> None:
        """Write the folder, if its pairs were read now."""
        if self.prepared is not None:
            self.folder.store(self.prepared, self.causes)


def find_pairs(job: Job, runs: Path, chat: Chat, note: Callable[[str], None], *, remember: bool = True) -> Pairs:
    """The folder of a job's token pairs; where it is not there, or damaged, the pairs themselves. Nothing is written.

    note: takes a sentence about a damaged folder. remember: digests of large files. Raises PobenchError as `prepare` does.
    """
    files = {name: rows_digest(found, remember=remember) for name, found in source_files(job).items()}
    values = {k: v for k, v in job.data.causes().items() if k not in SOURCES}
    if job.data.sources:
        values["sources"] = [{k: v for k, v in source.items() if k not in SOURCES} for source in values["sources"]]
    rendering = {"rendering": chat.digest, "reader": reader_digest()}
    causes = {"protocol": PROTOCOL, "files": files, **rendering, "data": values}
    folder = PairsFolder(runs / job.setting / f"data-{name_of(causes)}")
    faults = folder.faults() if folder.finished else []
    if folder.finished and not faults:
        return Pairs(folder, causes, None)
    for fault in faults:
        note(f"{fault}; the pairs are read again")
    return Pairs(folder, causes, prepare(job))


def gather(
    job: Job,
    stages: Sequence[str],
    pairs: Pairs,
    chat: Chat,
    note: Callable[[str], None],
    benchmarks: Sequence[Benchmark] = (),
    *,
    remember: bool = True,
) -> Content:
    """The content behind a job's results; the jobs of one plan share all of it but the source of their losses.

    note: takes a warning about the prompts. benchmarks: those whose questions are asked. Raises PobenchError for pairs, prompts
    and questions that the model cannot read, or that the tokenizer does not know.
    """
    digests, ratings, counts = pairs.digests, pairs.ratings, pairs.counts
    capacity = Capacity.of(base_model(job), job.data.max_length, trust_remote_code=job.model.trust_remote_code)
    faults = capacity.faults(pairs.extent, "data.source", chat, f"set data.max_length={capacity.positions}")
    prompts, rows = _prompts(job, stages, chat, capacity, faults, note)
    faults += [fault for benchmark in benchmarks for fault in benchmark.unreadable(chat, capacity)]
    if faults:
        raise PobenchError("\n".join(faults))
    return Content(
        weights=start_weights(job, capacity.reach, remember=remember),
        pairs=digests["train"],
        heldout=digests["heldout"],
        prompts=prompts,
        rows=rows,
        precision=auto_precision(),
        source=cache(_source),
        rendering=chat.digest,
        scores=ratings["train"].digest,
        heldout_scores=ratings["heldout"].digest,
        own={name: (digest, ratings[name].digest) for name, digest in digests.items() if name not in PAIRS},
        without=frozenset(name for name in PAIRS if not counts[name]),
        embedder=cache(partial(_embedder, remember=remember)),
    )


def start_weights(job: Job, reach: int | None, *, remember: bool = True) -> str:
    """The digest of the weights that training starts from; where an SFT stage makes them, its name, which is content too.

    reach: of rotary frequencies that the run's `max_length` chooses (`Capacity`); it changes what the weights compute.
    """
    made = stage_folder(job, remember=remember).run if job.sft is not None else None
    weights = made or weights_digest(base_model(job), remember=remember)
    return with_reach(weights, reach)


def embedder_folder(source: str) -> Path:
    """The folder of the model that `data.prompt_embedder` names. Raises PobenchError where it cannot be had."""
    return fetch_model(source, option="data.prompt_embedder")


def _embedder(source: str, *, remember: bool) -> str:
    """The digest of the weights; in a dry run, which fetches nothing, the name of a model on the hub."""
    if not remember and is_hub_name(source) and not Path(source).exists():
        return source
    return weights_digest(embedder_folder(source), remember=remember)


def with_reach(weights: str, reach: int | None) -> str:
    """The digest of weights that compute with the rotary frequencies for so many tokens."""
    return weights if reach is None else f"{weights} with rotary frequencies for {reach} tokens"


def auto_precision() -> str:
    """What `auto` comes to on this machine."""
    return "bf16" if bf16_pays(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "fp32"


def _prompts(
    job: Job, stages: Sequence[str], chat: Chat, capacity: Capacity, faults: list[str], note: Callable[[str], None]
) -> tuple[str | None, str | None]:
    """(digest of ids and token ids, digest of the whole rows) of the prompts that are answered. faults: takes what the model
    cannot read, if this command answers them; note: a warning."""
    if job.answers.source is None:
        return None, None
    try:
        rows = eval_prompts(job.answers)
    except PobenchError:
        if "answers" in stages:
            raise
        return None, None  # not at hand, and not needed by this command
    if "judge" in stages and job.judge.name is not None:
        judge = judges.get(job.judge.name)(**job.judge.settings)
        unreadable = (
            judge.faults(rows) if hasattr(judge, "faults") else []
        )  # of what this judge reads in a prompt's row
        faults += [f"{job.answers.source}: {fault}" for fault in unreadable]
    prompts = [[row["id"], list(chat.prompt_ids(row["messages"]))] for row in rows]
    if "answers" in stages:
        ids = [prompt for _, prompt in prompts]
        shares = unknown_shares({"prompt": ids}, chat.unknown)
        refuse_unknown(job.answers.source, shares)
        if warning := unknown_text(shares):
            note(f"{job.answers.source}: {warning}")
        new = job.answers.max_new_tokens
        faults += capacity.faults(
            Extent.of_prompts(ids, new),
            f"answers.source: the longest prompt and {new} new tokens",
            chat,
            "set a smaller answers.max_new_tokens, or leave out the longest prompts",
        )
    return _digest(prompts), _digest(rows)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _source(kind: str, name: str) -> str:
    if kind == "judge":
        return code_digest(judges.get(name).function)
    loss = get_loss(name)
    if not loss.parts:
        return code_digest(loss.function)
    return _digest([code_digest(Composed), *(code_digest(part.function) for part in loss.parts)])
