"""Prepare a job's data: fetch, read, tokenise, split and audit the preference pairs.

This runs once per setting before any run folder exists, so bad data stops a command before it writes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pobench.data.audit import Audit
from pobench.data.chat import Chat
from pobench.data.order import bias_labels, decided_by_length, split_by_prompt, subset, text_key
from pobench.data.prompts import eval_prompts
from pobench.data.rows import Found
from pobench.data.shapes import load_preferences
from pobench.data.tokens import Inspected, inspected, tokenize
from pobench.errors import PobenchError, or_fault
from pobench.identity import room_digest
from pobench.row_files import RowFiles
from pobench.settings.job import Job
from pobench.settings.schema import SftConfig
from pobench.sources import fetch_model, fetch_rows
from pobench.types import Group, Item, TokenAnswer, TokenList, TokenPair, Unit


@dataclass(frozen=True)
class Prepared:
    """Token pairs for training and evaluation, and the audit (columns fault, count, rows).

    lists, answers: for training too, where the data have ranked or rated lists, or single labelled answers. train is then
    made of these; it may be empty where no prompt has answers of both labels, and so may heldout.
    """

    train: list[TokenPair]
    heldout: list[TokenPair]
    audit: pd.DataFrame
    summary: str = ""
    lists: list[TokenList] = field(default_factory=list)
    answers: list[TokenAnswer] = field(default_factory=list)

    def text(self) -> str:
        """A summary for the terminal: how much was read, and what was left out."""
        return self.summary

    def items(self, unit: Unit) -> Sequence[Item]:
        """What a loss of this unit is trained on: lists or answers where the data have them, else the training pairs."""
        own: Mapping[Unit, Sequence[Item]] = {"lists": self.lists, "answers": self.answers}
        return own.get(unit) or self.train

    @property
    def groups(self) -> Iterator[Group]:
        """Of all items: training pairs, held-out pairs, lists, answers."""
        return map(Group.of, chain(self.train, self.heldout, self.lists, self.answers))


@cache
def reader_digest() -> str:
    """Hex sha256 of the code that turns rows into token pairs: the modules of this room that `prepare` uses, directly or not. A
    cause of stored pairs, so that pairs which earlier code read are read again."""
    return room_digest(__file__)


class _Read(NamedTuple):
    pairs: list[TokenPair]
    audit: Audit
    chat: Chat
    found: Found


def read_pairs(job: Job, source: str | None = None, split: str | None = None) -> tuple[list[TokenPair], Audit, Chat]:
    """All token pairs of one source (default: the job's), their audit, and the chat that rendered them.

    Raises PobenchError if the source cannot be read, or has bad rows under `data.on_bad_row: stop`.
    """
    return _read(job, source, split)[:3]


def inspect_pairs(job: Job, rows: int | None = None) -> list[Inspected]:
    """The first `rows` token pairs of the job's data (None: all), each with the prompt ids that generation would use.

    Raises PobenchError as `read_pairs` does.
    """
    pairs, _, chat, loaded = _read(job, None, None)
    data = job.data
    cut_to = data.max_prompt_length if data.truncation == "cut" else None
    return inspected(pairs[:rows], loaded.preferences, chat, count_header=data.count_header, cut_to=cut_to)


def _model(job: Job) -> Path:
    model = job.model
    return fetch_model(
        model.source,
        revision=model.revision,
        sha256=model.sha256,
        trust_remote_code=model.trust_remote_code,
        base=model.base,
    )


def _rows(job: Job, source: str | None, split: str | None) -> RowFiles:
    data = job.data
    option = "--set data.held_out=PATH" if source not in (None, data.source) else "--data"
    name, subset = source or data.source, data.subset
    return fetch_rows(name, split=split or data.split, subset=subset, revision=data.revision, option=option)


def read_preferences(job: Job) -> Found:
    """The rows of the job's data as text, before any tokenizer. Raises PobenchError as `load_preferences` does."""
    return load_preferences(_rows(job, None, None), columns=job.data.columns, ignore=job.data.ignore)


def source_files(job: Job) -> dict[str, RowFiles]:
    """The files of a job's pairs: "pairs", and "held_out" if held-out pairs have a source of their own."""
    data = job.data
    files = {"pairs": _rows(job, data.source, data.split)}
    if data.held_out is not None or data.held_out_split is not None:
        files["held_out"] = _rows(job, data.held_out or data.source, data.held_out_split or data.split)
    return files


def demonstration_rows(config: SftConfig) -> RowFiles:
    """The files with the conversations of an SFT stage. Raises PobenchError with a remedy if it cannot be fetched."""
    option = "--set sft.source=PATH"
    where = {"split": config.split, "subset": config.subset, "revision": config.revision}
    return fetch_rows(config.source, **where, option=option, section="sft")


def source_faults(job: Job, stages: Sequence[str]) -> list[str]:
    """One fault for each source that these stages need and that cannot be fetched: model, conversations, pairs, held-out
    pairs, prompts. Checked before training, so that no source turns out to be missing hours later."""
    data, sft = job.data, job.sft
    reads: list[Callable[[], Any]] = [lambda: _model(job)]
    if sft is not None and "sft" in stages:
        reads.append(lambda: demonstration_rows(sft))
    if set(stages) != {"sft"}:
        reads.append(lambda: _rows(job, data.source, data.split))
        if data.held_out is not None or data.held_out_split is not None:
            reads.append(lambda: _rows(job, data.held_out or data.source, data.held_out_split or data.split))
    if "answers" in stages and job.answers.source is not None:
        reads.append(lambda: eval_prompts(job.answers))
    faults: list[str] = []
    for read in reads:
        or_fault(faults, read)
    return list(dict.fromkeys(faults))


def _read(job: Job, source: str | None, split: str | None) -> _Read:
    model, data = job.model, job.data
    loaded = load_preferences(_rows(job, source, split), columns=data.columns, ignore=data.ignore)
    chat = Chat.of(_model(job), model)  # after the rows, which are read at once; a model may have to be fetched
    pairs, audit = tokenize(
        loaded,
        chat,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        truncation=data.truncation,
        count_header=data.count_header,
        on_bad_row=data.on_bad_row,
    )
    return _Read(pairs, audit, chat, loaded)


def _text_keys(loaded: Found) -> dict[str, str]:
    """Pair id -> `text_key` of its prompt."""
    return {p.id: text_key(p.prompt) for p in loaded.preferences}


def prepare(job: Job) -> Prepared:
    """Fetch, read, audit, split and tokenise a job's data. Raises PobenchError that lists all faults of all its files."""
    data = job.data
    faults: list[str] = []

    def read(source: str, split: str | None) -> _Read | None:
        return or_fault(faults, lambda: _read(job, source, split))

    got = read(data.source, data.split)
    own_heldout = data.held_out is not None or data.held_out_split is not None
    heldout = read(data.held_out or data.source, data.held_out_split or data.split) if own_heldout else None
    if faults or got is None:
        raise PobenchError("\n".join(faults))
    pairs, audit, _, loaded = got
    prompts = _text_keys(loaded)
    frames = [audit.frame()]
    summary = [audit.text()]
    if heldout is not None:
        held, held_audit, _, held_loaded = heldout
        held_prompts = _text_keys(held_loaded)
        frames.append(held_audit.frame().assign(fault=lambda f: "held out: " + f.fault))
        summary.append(held_audit.text())
        seen = {held_prompts[p.id] for p in held}
        shared = [p for p in pairs if prompts[p.id] in seen]
        if shared:  # never train on what is evaluated
            pairs = [p for p in pairs if prompts[p.id] not in seen]
            frames.append(
                pd.DataFrame(
                    [{"fault": "prompt is held out, left out of training", "count": len(shared), "rows": "[]"}]
                )
            )
            summary.append(f"  {len(shared)} training pairs left out: their prompts are held out")
    else:
        pairs, held = split_by_prompt(pairs, data.held_out_fraction, data.seed, lambda p: prompts[p.id])
    pairs = subset(pairs, data.max_pairs, data.seed)
    held = subset(held, data.max_held_out, data.seed)
    if not pairs or not held:
        raise PobenchError(
            f"{data.source}: {len(pairs)} training pairs and {len(held)} held-out pairs are left; both are needed"
        )
    if data.length_bias > 0:
        biased = bias_labels(pairs, data.length_bias, data.seed)
        decided = sum(decided_by_length(pair, data.length_bias, data.seed) for pair in pairs)
        swapped = sum(after is not before for before, after in zip(pairs, biased, strict=True))
        counts = {"label decided by length": decided, "label swapped, as the loser was longer": swapped}
        frames.append(pd.DataFrame([{"fault": f, "count": n, "rows": "[]"} for f, n in counts.items()]))
        summary.append(
            f"  {decided} training labels decided by length, which swapped {swapped}; held-out labels are true"
        )
        pairs = biased
    summary.append(f"training on {len(pairs)} pairs, {len(held)} held out")
    frames.append(
        pd.DataFrame(
            [
                {"fault": "used for training", "count": len(pairs), "rows": "[]"},
                {"fault": "held out", "count": len(held), "rows": "[]"},
            ]
        )
    )
    return Prepared(pairs, held, pd.concat(frames, ignore_index=True), "\n".join(summary))
