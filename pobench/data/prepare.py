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

from pobench.data.audit import Audit, told_of
from pobench.data.chat import Chat
from pobench.data.order import bias_labels, decided_by_length, held_out_by, subset, text_key
from pobench.data.prompts import eval_prompts
from pobench.data.rows import Found
from pobench.data.shapes import load_preferences
from pobench.data.tokens import Inspected, Items, inspected, read_items
from pobench.errors import PobenchError, or_fault
from pobench.identity import room_digest
from pobench.row_files import RowFiles
from pobench.settings.job import Job
from pobench.settings.schema import DataConfig, SftConfig
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
        items = chain[Item](self.train, self.heldout, self.lists, self.answers)
        return map(Group.of, items)


@cache
def reader_digest() -> str:
    """Hex sha256 of the code that turns rows into token pairs: the modules of this room that `prepare` uses, directly or not. A
    cause of stored pairs, so that pairs which earlier code read are read again."""
    return room_digest(__file__)


class _Read(NamedTuple):
    items: Items
    chat: Chat
    found: Found


def read_pairs(job: Job, source: str | None = None, split: str | None = None) -> tuple[list[TokenPair], Audit, Chat]:
    """All token pairs of one source (default: the job's), their audit, and the chat that rendered them.

    Raises PobenchError if the source cannot be read, or has bad rows under `data.on_bad_row: stop`.
    """
    read = _read(job, source, split)
    return read.items.pairs, read.items.audit, read.chat


def read_unit(job: Job, unit: Unit | None) -> tuple[Sequence[Item], Chat]:
    """The pairs, lists or single answers of the job's data, and the chat that rendered them. unit: None, the pairs, or where
    there are none what the data have. Raises PobenchError as `read_pairs` does, and where the data have none of this unit."""
    read = _read(job, None, None)
    return _of_unit(read, unit), read.chat


def inspect_items(job: Job, rows: int | None = None, unit: Unit | None = None) -> list[Inspected]:
    """The first `rows` items of the job's data (None: all), each with the prompt ids that generation would use. unit: see
    `read_unit`, and so the errors raised."""
    read = _read(job, None, None)
    data = job.data
    cut_to = data.max_prompt_length if data.truncation == "cut" else None
    items = _of_unit(read, unit)[:rows]
    return inspected(items, read.found, read.chat, count_header=data.count_header, cut_to=cut_to)


def _of_unit(read: _Read, unit: Unit | None) -> Sequence[Item]:
    items = read.items
    if unit is None:
        return items.pairs or items.own
    return of_unit(read.found.source, {"pairs": items.pairs, "lists": items.lists, "answers": items.answers}, unit)


def of_unit(source: str, rows: Mapping[Unit, Sequence[Any]], unit: Unit) -> Sequence[Any]:
    """The rows of a unit. Raises PobenchError that names the units there are, if there are none of this one."""
    if not rows[unit]:
        there = " and ".join(name for name, given in rows.items() if given)
        raise PobenchError(f"{source}: it has no {unit}; it has {there or 'nothing'}")
    return rows[unit]


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
    data = job.data
    return load_preferences(
        _rows(job, None, None), columns=data.columns, ignore=data.ignore, pairs_from=data.pairs_from
    )


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
    rows = _rows(job, source, split)
    loaded = load_preferences(rows, columns=data.columns, ignore=data.ignore, pairs_from=data.pairs_from)
    chat = Chat.of(_model(job), model)  # after the rows, which are read at once; a model may have to be fetched
    items = read_items(
        loaded,
        chat,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        truncation=data.truncation,
        count_header=data.count_header,
        on_bad_row=data.on_bad_row,
    )
    return _Read(items, chat, loaded)


class _Keyed(NamedTuple):
    """An item with the `text_key` of its prompt, by which it is held out or not."""

    key: str
    item: Any


def _keyed(read: _Read) -> dict[Unit, list[_Keyed]]:
    found, items = read.found, read.items

    def keyed(rows: Sequence[Any], made: Sequence[Item]) -> list[_Keyed]:
        keys = {row.id: text_key(row.prompt) for row in rows}
        return [_Keyed(keys[item.id], item) for item in made]

    return {
        "pairs": keyed(found.preferences, items.pairs),
        "lists": keyed(found.lists, items.lists),
        "answers": keyed(found.answers, items.answers),
    }


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
    keyed = _keyed(got)
    log = _Log([got.items.audit.frame()], [got.items.audit.text()])
    if heldout is None:
        seen = _seen(keyed, data)
        held = [k.item for k in keyed["pairs"] if k.key in seen]
    else:
        log.frames.append(heldout.items.audit.frame().assign(fault=lambda f: "held out: " + f.fault))
        log.summary.append(heldout.items.audit.text())
        held_keyed = _keyed(heldout)
        held = [k.item for k in held_keyed["pairs"]]
        seen = {k.key for of_unit in held_keyed.values() for k in of_unit}
        for unit, of_unit in keyed.items():
            if shared := sum(k.key in seen for k in of_unit):  # never train on what is evaluated
                what = "" if unit == "pairs" else f" ({unit})"
                log.counted(f"prompt is held out, left out of training{what}", shared)
                log.summary.append(f"  {shared} training {unit} left out: their prompts are held out")
    pairs, lists, answers = ([k.item for k in of_unit if k.key not in seen] for of_unit in keyed.values())
    pairs = subset(pairs, data.max_pairs, data.seed)
    lists = subset(lists, data.max_pairs, data.seed)
    answers = subset(answers, None if data.max_pairs is None else 2 * data.max_pairs, data.seed)
    held = subset(held, data.max_held_out, data.seed)
    if not (pairs and held) and not answers:
        raise PobenchError(
            f"{data.source}: {len(pairs)} training pairs and {len(held)} held-out pairs are left; both are needed"
        )
    if data.length_bias > 0:
        pairs, lists, answers = _biased(data, pairs, [*lists, *answers], log), [], []
    for unit, own in (("lists", lists), ("answers", answers)):
        if own:
            log.counted(f"used for training, {unit}", len(own))
            lines = (f"  {line}" for line in told_of(own, data.pairs_from))
            log.summary.extend([f"losses of {unit} train on:", *lines])
    log.summary.append(f"training on {len(pairs)} pairs, {len(held)} held out")
    log.counted("used for training", len(pairs))
    log.counted("held out", len(held))
    audit = pd.concat(log.frames, ignore_index=True)
    return Prepared(pairs, held, audit, "\n".join(log.summary), lists, answers)


class _Log(NamedTuple):
    """What becomes of the data: frames of the audit, and sentences for the terminal."""

    frames: list[pd.DataFrame]
    summary: list[str]

    def counted(self, fault: str, count: int) -> None:
        self.frames.append(pd.DataFrame([{"fault": fault, "count": count, "rows": "[]"}]))


def _seen(keyed: Mapping[Unit, Sequence[_Keyed]], data: DataConfig) -> set[str]:
    """The keys of the prompts that are held out: a share of those of all items. Among the prompts of the pairs each side has at
    least one, where they have two; else among all."""
    keys = [k.key for of_unit in keyed.values() for k in of_unit]
    of_pairs = [k.key for k in keyed["pairs"]]
    held = held_out_by(of_pairs if len(set(of_pairs)) > 1 else keys, data.held_out_fraction, data.seed)
    return {key for key in keys if held(key)}


def _biased(data: DataConfig, pairs: list[TokenPair], own: Sequence[Item], log: _Log) -> list[TokenPair]:
    """The pairs with a share of their labels decided by length. own: lists or single answers, which losses of these then read
    of the pairs. Raises PobenchError where there are no pairs."""
    if not pairs:
        raise PobenchError("data.length_bias: it decides which answer of a pair is chosen, and the data have no pairs")
    biased = bias_labels(pairs, data.length_bias, data.seed)
    decided = sum(decided_by_length(pair, data.length_bias, data.seed) for pair in pairs)
    swapped = sum(after is not before for before, after in zip(pairs, biased, strict=True))
    log.counted("label decided by length", decided)
    log.counted("label swapped, as the loser was longer", swapped)
    log.summary.append(
        f"  {decided} training labels decided by length, which swapped {swapped}; held-out labels are true"
    )
    if own:
        log.summary.append(
            "  lists and single answers keep their true labels, so losses of these read the biased pairs"
        )
    return biased
