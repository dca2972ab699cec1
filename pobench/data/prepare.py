"""Prepare a job's data: fetch, read, tokenise, split and audit the preference pairs.

This runs once per setting before any run folder exists, so bad data stops a command before it writes anything.
"""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from pobench.data.audit import told_of
from pobench.data.chat import Chat
from pobench.data.mixture import mixture, source_of
from pobench.data.order import biased, decided_by_length, split_border, subset
from pobench.data.prompts import eval_prompts
from pobench.data.rows import Found
from pobench.data.shapes import load_preferences
from pobench.data.spool import Mapped
from pobench.data.token_rows import TokenRows
from pobench.data.tokens import Inspected, Items, inspected, read_items
from pobench.errors import PobenchError, or_fault
from pobench.identity import room_digest
from pobench.row_files import RowFiles
from pobench.settings.job import Job
from pobench.settings.schema import DataConfig, SftConfig, SourceConfig
from pobench.sources import fetch_model, fetch_rows
from pobench.types import Group, Item, TokenAnswer, TokenList, TokenPair, Unit


@dataclass(frozen=True)
class Prepared:
    """Token pairs for training and evaluation, in memory-mapped files, and the audit (columns fault, count, rows).

    lists, answers: for training too, where the data have ranked or rated lists, or single labelled answers. train is then
    made of these; it may be empty where no prompt has answers of both labels, and so may heldout.
    """

    train: TokenRows[TokenPair]
    heldout: TokenRows[TokenPair]
    audit: pd.DataFrame
    summary: str = ""
    lists: TokenRows[TokenList] = field(default_factory=lambda: TokenRows(TokenList))
    answers: TokenRows[TokenAnswer] = field(default_factory=lambda: TokenRows(TokenAnswer))

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
        parts: tuple[Iterable[Item], ...] = (self.train, self.heldout, self.lists, self.answers)
        return map(Group.of, chain.from_iterable(parts))


@cache
def reader_digest() -> str:
    """Hex sha256 of the code that turns rows into token pairs: the modules of this room that `prepare` uses, directly or not. A
    cause of stored pairs, so that pairs which earlier code read are read again."""
    return room_digest(__file__)


class Read(NamedTuple):
    """What one source gives. name: of one of several sources, else ""."""

    name: str
    items: Items
    chat: Chat
    found: Found

    def of_unit(self, unit: Unit | None) -> TokenRows[Any]:
        """Its pairs, lists or single answers. unit: None, the pairs, or where there are none what it has. Raises PobenchError
        where it has none of this unit."""
        items = self.items
        if unit is None:
            return items.pairs or items.own
        of_units: dict[Unit, TokenRows[Any]] = {"pairs": items.pairs, "lists": items.lists, "answers": items.answers}
        return of_unit(self.found.source, of_units, unit)


Rows = TypeVar("Rows", bound=Sequence[Any])


def of_unit(source: str, rows: Mapping[Unit, Rows], unit: Unit) -> Rows:
    """The rows of a unit. Raises PobenchError that names the units there are, if there are none of this one."""
    if not rows[unit]:
        there = " and ".join(name for name, given in rows.items() if given)
        raise PobenchError(f"{source}: it has no {unit}; it has {there or 'nothing'}")
    return rows[unit]


def read_sources(job: Job) -> list[Read]:
    """What each source of the job's data gives.

    Raises PobenchError that lists the faults of all: a source that cannot be read, bad rows under `data.on_bad_row: stop`.
    """
    reads, _ = _read_all(job, held_out=False)
    return reads


def inspect_items(job: Job, rows: int | None = None, unit: Unit | None = None) -> list[Inspected]:
    """The first `rows` items of each source (None: all), each with the prompt ids that generation would use. unit: see
    `Read.of_unit`, and so the errors raised, besides those of `read_sources`."""
    data = job.data
    cut_to = data.max_prompt_length if data.truncation == "cut" else None
    how: dict[str, Any] = {"count_header": data.count_header, "cut_to": cut_to}
    reads = read_sources(job)
    return [row for r in reads for row in inspected(r.of_unit(unit)[:rows], r.found, r.chat, **how)]


def _model(job: Job) -> Path:
    model = job.model
    return fetch_model(
        model.source,
        revision=model.revision,
        sha256=model.sha256,
        trust_remote_code=model.trust_remote_code,
        base=model.base,
    )


def _rows(part: SourceConfig, option: str) -> RowFiles:
    return fetch_rows(part.source, split=part.split, subset=part.subset, revision=part.revision, option=option)


def _options(job: Job) -> list[tuple[SourceConfig, str]]:
    """Every source of pairs, those that are held out last, with the option that names another."""
    data = job.data
    option = "--set data.sources=[{source: PATH}, …]" if data.sources else "--data"
    held_out = option if data.held_out is None else "--set data.held_out=PATH"
    return [(part, option) for part in data.parts] + [(part, held_out) for part in data.held_out_parts]


def read_preferences(job: Job) -> list[Found]:
    """The rows of each source of the job's data as text, before any tokenizer. Raises as `load_preferences` does."""
    return [_found(job, part, option) for part, option in _options(job)[: len(job.data.parts)]]


def _found(job: Job, part: SourceConfig, option: str) -> Found:
    """The rows of a source; of one of several, its name stands before their ids."""
    files = _rows(part, option)
    found = load_preferences(files, columns=part.columns, ignore=part.ignore, pairs_from=job.data.pairs_from)
    if not part.name:
        return found

    def named(row: Any) -> Any:
        return row._replace(id=f"{part.name}/{row.id}")

    rows = (found.preferences, found.lists, found.answers)
    preferences, lists, answers = (Mapped(named, some) for some in rows)
    return replace(found, preferences=preferences, lists=lists, answers=answers)


def source_files(job: Job) -> dict[str, RowFiles]:
    """The files of a job's pairs: "pairs", and "held_out" if held-out pairs have a source of their own; of several sources each
    with its name behind it."""
    kinds = ["pairs"] * len(job.data.parts) + ["held_out"] * len(job.data.held_out_parts)
    return {
        f"{kind} {part.name}".rstrip(): _rows(part, option)
        for kind, (part, option) in zip(kinds, _options(job), strict=True)
    }


def demonstration_rows(config: SftConfig) -> RowFiles:
    """The files with the conversations of an SFT stage. Raises PobenchError with a remedy if it cannot be fetched."""
    option = "--set sft.source=PATH"
    where = {"split": config.split, "subset": config.subset, "revision": config.revision}
    return fetch_rows(config.source, **where, option=option, section="sft")


def source_faults(job: Job, stages: Sequence[str]) -> list[str]:
    """One fault for each source that these stages need and that cannot be fetched: model, conversations, pairs, held-out
    pairs, prompts. Checked before training, so that no source turns out to be missing hours later."""
    sft = job.sft
    reads: list[Callable[[], Any]] = [lambda: _model(job)]
    if sft is not None and "sft" in stages:
        reads.append(lambda: demonstration_rows(sft))
    if set(stages) != {"sft"}:
        reads += [partial(_rows, part, option) for part, option in _options(job)]
    if "answers" in stages and job.answers.source is not None:
        reads.append(lambda: eval_prompts(job.answers))
    faults: list[str] = []
    for read in reads:
        or_fault(faults, read)
    return list(dict.fromkeys(faults))


def _read(job: Job, part: SourceConfig, option: str) -> Read:
    model, data = job.model, job.data
    found = _found(job, part, option)
    chat = Chat.of(_model(job), model)  # after the rows, which are read at once; a model may have to be fetched
    items = read_items(
        found,
        chat,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        truncation=data.truncation,
        count_header=data.count_header,
        on_bad_row=data.on_bad_row,
        seed=data.seed,
        origin=part.name,
    )
    return Read(part.name, items, chat, found)


def _read_all(job: Job, *, held_out: bool = True) -> tuple[list[Read], list[Read]]:
    """What the sources of pairs give, and those of held-out pairs. Raises PobenchError that lists the faults of all."""
    faults, count = list[str](), len(job.data.parts)
    options = _options(job)[: None if held_out else count]
    with _room_for_rows():
        reads = [or_fault(faults, partial(_read, job, part, option)) for part, option in options]
    if faults:
        raise PobenchError("\n".join(faults))
    whole = [read for read in reads if read is not None]
    return whole[:count], whole[count:]


@contextlib.contextmanager
def _room_for_rows() -> Iterator[None]:
    """A PobenchError with a remedy where the disk with the temporary files is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PobenchError(
            f"the disk is full: {tempfile.gettempdir()!r}, where rows lie while they are read; make room there, or set TMPDIR "
            "to a folder that has it"
        ) from error


@dataclass(frozen=True)
class _Keyed:
    """The rows of one unit of some sources. prompts: (rows,) see `Items.prompts`."""

    rows: TokenRows[Any]
    prompts: np.ndarray

    @classmethod
    def of(cls, unit: Unit, reads: Sequence[Read]) -> _Keyed:
        parts: list[TokenRows[Any]] = [getattr(read.items, unit) for read in reads]
        rows = parts[0] if len(parts) == 1 else TokenRows.joined(parts)
        return cls(rows, np.concatenate([read.items.prompts[unit] for read in reads]))

    def among(self, keys: np.ndarray) -> np.ndarray:
        """(rows,) whether each has a prompt with one of these keys."""
        return np.isin(self.prompts["key"], keys)

    def where(self, chosen: np.ndarray) -> TokenRows[Any]:
        """The rows for which it holds. chosen: (rows,) bool."""
        return self.rows if chosen.all() else self.rows.take(np.flatnonzero(chosen))


def _keyed(reads: Sequence[Read]) -> dict[Unit, _Keyed]:
    units: tuple[Unit, ...] = ("pairs", "lists", "answers")
    return {unit: _Keyed.of(unit, reads) for unit in units}


@dataclass
class _Log:
    """What becomes of the data: frames of the audit, and sentences for the terminal."""

    frames: list[pd.DataFrame]
    summary: list[str]

    def counted(self, fault: str, count: int) -> None:
        self.frames.append(pd.DataFrame([{"fault": fault, "count": count, "rows": "[]"}]))

    def add(self, reads: Sequence[Read], what: str = "") -> None:
        """The audits of sources. what: stands before their faults."""
        for read in reads:
            before = what + (f"{read.name}: " if read.name else "")
            frame = read.items.audit.frame()
            self.frames.append(frame.assign(fault=before + frame["fault"]) if before else frame)
            self.summary.append((f"{read.name} = " if read.name else "") + read.items.audit.text())


def prepare(job: Job) -> Prepared:
    """Fetch, read, audit, split and tokenise a job's data. Raises PobenchError that lists all faults of all its files."""
    data, log = job.data, _Log([], [])
    reads, own_heldout = _read_all(job)
    keyed = _keyed(reads)
    log.add(reads)
    if own_heldout:
        log.add(own_heldout, "held out: ")
        held_keyed = _keyed(own_heldout)
        held = held_keyed["pairs"].rows
        seen = np.concatenate([of_unit.prompts["key"] for of_unit in held_keyed.values()])
        _count_shared(keyed, seen, log)
    else:
        seen = _seen(keyed, data)
        held = keyed["pairs"].where(keyed["pairs"].among(seen))
    pairs, lists, answers = (of_unit.where(~of_unit.among(seen)) for of_unit in keyed.values())
    pairs = _chosen(pairs, data, data.max_pairs, log, "pairs")
    lists = _chosen(lists, data, data.max_pairs, log, "lists")
    answers = _chosen(answers, data, None if data.max_pairs is None else 2 * data.max_pairs, log, "answers")
    held = subset(held, data.max_held_out, data.seed)
    if not (pairs and held) and not answers:
        names = ", ".join(part.source for part in data.parts)
        raise PobenchError(
            f"{names}: {len(pairs)} training pairs and {len(held)} held-out pairs are left; both are needed"
        )
    if data.length_bias > 0:
        pairs, own = _biased(data, pairs, bool(lists or answers), log), TokenRows[Any]
        lists, answers = own(TokenList), own(TokenAnswer)
    for unit, some in (("lists", lists), ("answers", answers)):
        if some:
            kinds = Counter(map(_kind, some))
            for kind in sorted(kinds):
                log.counted(f"used for training, {kind}", kinds[kind])
            log.summary += [f"losses of {unit} train on:", *(f"  {line}" for line in told_of(some, data.pairs_from))]
    log.summary.append(f"training on {len(pairs)} pairs, {len(held)} held out")
    for use, some in (("used for training", pairs), ("held out", held)):
        log.counted(use, len(some))
        for name, count in Counter(filter(None, some.column("source"))).items():
            log.counted(f"{name}: {use}", count)
    audit = pd.concat(log.frames, ignore_index=True)
    return Prepared(pairs, held, audit, "\n".join(log.summary), lists, answers)


def _kind(item: TokenList | TokenAnswer) -> str:
    if isinstance(item, TokenList):
        return "lists"
    return "desirable answers" if item.label else "undesirable answers"


def _count_shared(keyed: Mapping[Unit, _Keyed], seen: np.ndarray, log: _Log) -> None:
    """Count what is left out of training, as its prompt is held out: what is evaluated is never trained on."""
    for unit, of_unit in keyed.items():
        if shared := int(of_unit.among(seen).sum()):
            what = "" if unit == "pairs" else f" ({unit})"
            log.counted(f"prompt is held out, left out of training{what}", shared)
            log.summary.append(f"  {shared} training {unit} left out: their prompts are held out")


def _seen(keyed: Mapping[Unit, _Keyed], data: DataConfig) -> np.ndarray:
    """The keys of the prompts that are held out: a share of those of all items. Among the prompts of the pairs each side has at
    least one, where they have two; else among all."""
    prompts = np.concatenate([of_unit.prompts for of_unit in keyed.values()])
    of_pairs = keyed["pairs"].prompts["place"]
    border = split_border(of_pairs if len(np.unique(of_pairs)) > 1 else prompts["place"], data.held_out_fraction)
    return prompts["key"][prompts["place"] < border]


def _chosen(rows: TokenRows[Any], data: DataConfig, most: int | None, log: _Log, unit: Unit) -> TokenRows[Any]:
    """At most `most` rows to train on: of several sources by their weights, if they have some."""
    weights = {part.name: part.weight for part in data.parts if part.weight is not None}
    if not weights or not rows:
        return subset(rows, most, data.seed)
    mixed = mixture(rows, weights, data.stopping, most, data.seed)
    before, after = (Counter(map(source_of, some.ids)) for some in (rows, mixed))
    shares = (
        f"{name} {weight:g}: {after[name]} {unit} of {before[name]} ({after[name] / max(1, len(mixed)):.1%})"
        for name, weight in weights.items()
    )
    log.summary.append(f"  mixed by weight, {data.stopping}: {', '.join(shares)}")
    return mixed


def _biased(data: DataConfig, pairs: TokenRows[TokenPair], own: bool, log: _Log) -> TokenRows[TokenPair]:
    """The pairs with a share of their labels decided by length. own: whether the data have lists or single answers; losses of
    these then read the pairs. Raises PobenchError where there are no pairs."""
    if not pairs:
        raise PobenchError("data.length_bias: it decides which answer of a pair is chosen, and the data have no pairs")
    share, seed = data.length_bias, data.seed
    decides = np.fromiter((decided_by_length(id, share, seed) for id in pairs.ids), bool, len(pairs))
    swapped = int((decides & (pairs.lengths("chosen") < pairs.lengths("rejected"))).sum())
    decided = int(decides.sum())
    log.counted("label decided by length", decided)
    log.counted("label swapped, as the loser was longer", swapped)
    log.summary.append(
        f"  {decided} training labels decided by length, which swapped {swapped}; held-out labels are true"
    )
    if own:
        log.summary.append(
            "  lists and single answers keep their true labels, so losses of these read the biased pairs"
        )
    return TokenRows.of(TokenPair, (biased(pair, share, seed) for pair in pairs))
