"""Prepare a job's data: fetch, read, tokenise, split and audit the preference pairs.

This runs once per setting before any run folder exists, so bad data stops a command before it writes anything.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pobench.data.audit import Audit
from pobench.data.chat import Chat
from pobench.data.mixture import mixture
from pobench.data.order import biased, decided_by_length, held_out, place_of, subset, text_key
from pobench.data.prompts import eval_prompts
from pobench.data.rows import Found, Preference
from pobench.data.shapes import load_preferences
from pobench.data.spool import Mapped
from pobench.data.token_rows import TokenRows
from pobench.data.tokens import Inspected, inspected, tokenize
from pobench.errors import PobenchError, or_fault
from pobench.identity import room_digest
from pobench.row_files import RowFiles
from pobench.settings.job import Job
from pobench.settings.schema import DataConfig, SftConfig, SourceConfig
from pobench.sources import fetch_model, fetch_rows
from pobench.types import Group, TokenPair


@dataclass(frozen=True)
class Prepared:
    """Token pairs for training and evaluation, in memory-mapped files, and the audit (columns fault, count, rows)."""

    train: TokenRows[TokenPair]
    heldout: TokenRows[TokenPair]
    audit: pd.DataFrame
    summary: str = ""

    def text(self) -> str:
        """A summary for the terminal: how much was read, and what was left out."""
        return self.summary

    @property
    def groups(self) -> Iterator[Group]:
        """All pairs, of both lists."""
        return map(Group.of, chain(self.train, self.heldout))


@cache
def reader_digest() -> str:
    """Hex sha256 of the code that turns rows into token pairs: the modules of this room that `prepare` uses, directly or not. A
    cause of stored pairs, so that pairs which earlier code read are read again."""
    return room_digest(__file__)


class Read(NamedTuple):
    """What one source gives. name: of one of several sources, else ""."""

    name: str
    pairs: TokenRows[TokenPair]
    audit: Audit
    chat: Chat
    found: Found


def read_sources(job: Job) -> list[Read]:
    """The token pairs of each source of the job's data.

    Raises PobenchError that lists the faults of all: a source that cannot be read, bad rows under `data.on_bad_row: stop`.
    """
    reads, _ = _read_all(job, held_out=False)
    return reads


def inspect_pairs(job: Job, rows: int | None = None) -> list[Inspected]:
    """The first `rows` token pairs of each source (None: all), each with the prompt ids that generation would use.

    Raises PobenchError as `read_sources` does.
    """
    data = job.data
    cut_to = data.max_prompt_length if data.truncation == "cut" else None
    return [
        row
        for read in read_sources(job)
        for row in inspected(
            read.pairs[:rows], read.found.preferences, read.chat, count_header=data.count_header, cut_to=cut_to
        )
    ]


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
    return [_found(part, option) for part, option in _options(job)[: len(job.data.parts)]]


def _found(part: SourceConfig, option: str) -> Found:
    """The preferences of a source; of one of several, its name stands before their ids."""
    found = load_preferences(_rows(part, option), columns=part.columns, ignore=part.ignore)
    if not part.name:
        return found

    def named(preference: Preference) -> Preference:
        return preference._replace(id=f"{part.name}/{preference.id}")

    return replace(found, preferences=Mapped(named, found.preferences))


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
    found = _found(part, option)
    chat = Chat.of(_model(job), model)  # after the rows, which are read at once; a model may have to be fetched
    pairs, audit = tokenize(
        found,
        chat,
        max_length=data.max_length,
        max_prompt_length=data.max_prompt_length,
        truncation=data.truncation,
        count_header=data.count_header,
        on_bad_row=data.on_bad_row,
        origin=part.name,
    )
    return Read(part.name, pairs, audit, chat, found)


def _read_all(job: Job, *, held_out: bool = True) -> tuple[list[Read], list[Read]]:
    """What the sources of pairs give, and those of held-out pairs. Raises PobenchError that lists the faults of all."""
    faults, count = list[str](), len(job.data.parts)
    options = _options(job)[: None if held_out else count]
    reads = [or_fault(faults, partial(_read, job, part, option)) for part, option in options]
    if faults:
        raise PobenchError("\n".join(faults))
    whole = [read for read in reads if read is not None]
    return whole[:count], whole[count:]


class _Side:
    """Pairs that are trained on or held out. keys: (pairs,) digests of their prompts; places: (pairs,) see `place_of`."""

    def __init__(self, reads: Sequence[Read], seed: int) -> None:
        several = len(reads) > 1
        self.pairs = TokenRows.joined([read.pairs for read in reads]) if several else reads[0].pairs
        rows = chain.from_iterable(_prompts_of(read, seed) for read in reads)
        prompts = np.fromiter(rows, dtype=[("key", "S16"), ("place", np.float64)], count=len(self.pairs))
        self.keys, self.places = prompts["key"], prompts["place"]


def _prompts_of(read: Read, seed: int) -> Iterator[tuple[bytes, float]]:
    """Of each pair, a digest of its prompt's `text_key`, and its place in the split. Pairs stand in the order of the rows."""
    preferences = iter(read.found.preferences)
    for id in read.pairs.ids:
        key = text_key(next(p for p in preferences if p.id == id).prompt)
        yield hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:16], place_of(key, seed)


def _lines(counts: Mapping[str, int]) -> pd.DataFrame:
    """Lines of an audit without row numbers."""
    return pd.DataFrame([{"fault": f, "count": n, "rows": "[]"} for f, n in counts.items()])


@dataclass
class _Report:
    """What `prepare` did: the lines of the audit, and those for the terminal."""

    frames: list[pd.DataFrame]
    summary: list[str]

    @classmethod
    def of(cls, reads: Sequence[Read], held_out: Sequence[Read]) -> _Report:
        report = cls([], [])
        for what, some in (("", reads), ("held out: ", held_out)):
            for read in some:
                before = what + (f"{read.name}: " if read.name else "")
                report.frames.append(read.audit.frame().assign(fault=lambda f, before=before: before + f.fault))
                report.summary.append(f"{read.name} = {read.audit.text()}" if read.name else read.audit.text())
        return report

    def add(self, counts: Mapping[str, int], text: str = "") -> None:
        self.frames.append(_lines(counts))
        self.summary += [text] if text else []


def prepare(job: Job) -> Prepared:
    """Fetch, read, audit, split and tokenise a job's data. Raises PobenchError that lists all faults of all its files."""
    data = job.data
    reads, own_heldout = _read_all(job)
    report, side = _Report.of(reads, own_heldout), _Side(reads, data.seed)
    if own_heldout:
        other = _Side(own_heldout, data.seed)
        held, kept = other.pairs, ~np.isin(side.keys, other.keys)
        pairs = side.pairs if kept.all() else side.pairs.take(np.flatnonzero(kept))
        if left_out := int((~kept).sum()):  # never train on what is evaluated
            report.add(
                {"prompt is held out, left out of training": left_out},
                f"  {left_out} training pairs left out: their prompts are held out",
            )
    else:
        out = held_out(side.places, data.held_out_fraction)
        pairs, held = (side.pairs.take(np.flatnonzero(which)) for which in (~out, out))
    pairs = _chosen(pairs, data, report)
    held = subset(held, data.max_held_out, data.seed)
    if not pairs or not held:
        names = ", ".join(part.source for part in data.parts)
        raise PobenchError(
            f"{names}: {len(pairs)} training pairs and {len(held)} held-out pairs are left; both are needed"
        )
    if data.length_bias > 0:
        pairs = _biased(pairs, data, report)
    by_source = {
        f"{use}: {name}": count
        for use, some in (("used for training", pairs), ("held out", held))
        for name, count in Counter(some.column("source")).items()
        if name
    }
    report.add(
        {"used for training": len(pairs), "held out": len(held), **by_source},
        f"training on {len(pairs)} pairs, {len(held)} held out",
    )
    return Prepared(pairs, held, pd.concat(report.frames, ignore_index=True), "\n".join(report.summary))


def _chosen(pairs: TokenRows[TokenPair], data: DataConfig, report: _Report) -> TokenRows[TokenPair]:
    """The pairs to train on, up to `max_pairs`: of several sources by their weights, if they have some."""
    weights = {part.name: part.weight for part in data.parts if part.weight is not None}
    if not weights:
        return subset(pairs, data.max_pairs, data.seed)
    mixed = mixture(pairs, weights, data.stopping, data.max_pairs, data.seed)
    before, after = Counter(pairs.column("source")), Counter(mixed.column("source"))
    shares = (
        f"{name} {weight:g}: {after[name]} pairs of {before[name]} ({after[name] / max(1, len(mixed)):.1%})"
        for name, weight in weights.items()
    )
    report.summary.append(f"  mixed by weight, {data.stopping}: {', '.join(shares)}")
    return mixed


def _biased(pairs: TokenRows[TokenPair], data: DataConfig, report: _Report) -> TokenRows[TokenPair]:
    """The pairs with `data.length_bias` in their labels."""
    share, seed = data.length_bias, data.seed
    decides = np.fromiter((decided_by_length(id, share, seed) for id in pairs.ids), bool, len(pairs))
    swapped = int((decides & (pairs.lengths("chosen") < pairs.lengths("rejected"))).sum())
    decided = int(decides.sum())
    report.add(
        {"label decided by length": decided, "label swapped, as the loser was longer": swapped},
        f"  {decided} training labels decided by length, which swapped {swapped}; held-out labels are true",
    )
    return TokenRows.of(TokenPair, (biased(pair, share, seed) for pair in pairs))
