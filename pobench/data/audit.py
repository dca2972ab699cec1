"""The audit of a data set: how many rows and pairs it has, how long they are, and which rows were left out and why."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from pobench.data.rows import Fault, Found, Labelled, Preference, Ranking, RowNumber
from pobench.data.spool import Mapped
from pobench.data.token_rows import TokenRows
from pobench.errors import PobenchError
from pobench.settings.schema import PairsFrom
from pobench.types import TokenAnswer, TokenList, TokenPair

# ---------------------------------------------------------------- unknown tokens
UNKNOWN = "tokens that the tokenizer does not know"  # the audit's note on rows
WARN_UNKNOWN, STOP_UNKNOWN = 0.01, 0.05  # of the tokens of one part


def unknown_shares(parts: Mapping[str, Iterable[Sequence[int]]], unknown: int | None) -> dict[str, float]:
    """Part → the share in [0, 1] of its tokens that are `unknown`. {} where the tokenizer has no such token (None)."""
    shares = {}
    for name, sequences in parts.items() if unknown is not None else ():
        found = total = 0
        for ids in sequences:
            found, total = found + ids.count(unknown), total + len(ids)
        shares[name] = found / max(1, total)
    return shares


def unknown_text(shares: Mapping[str, float]) -> str:
    """A sentence on unknown tokens; "" where every part has less than 1 %."""
    if max(shares.values(), default=0.0) < WARN_UNKNOWN:
        return ""
    parts = ", ".join(f"{share:.1%} of the {name} tokens" for name, share in shares.items())
    return f"{parts} are unknown to the tokenizer: the model reads the same sign for all of them"


def unknown_fault(source: str, shares: Mapping[str, float]) -> str:
    """A sentence on unknown tokens where one part has 5 % or more of them; "" if none has."""
    if max(shares.values(), default=0.0) < STOP_UNKNOWN:
        return ""
    return (
        f"{source}: {unknown_text(shares)} (allowed: less than {STOP_UNKNOWN:.0%}); "
        "use a model whose tokenizer covers this text (--model), or the data that this one was made for"
    )


def refuse_unknown(source: str, shares: Mapping[str, float]) -> None:
    """Raises PobenchError where one part has 5 % or more."""
    if fault := unknown_fault(source, shares):
        raise PobenchError(fault)


# ---------------------------------------------------------------- lists and single answers
_MADE = {"best_worst": "the best answer against the worst", "all": "every two answers", "adjacent": "adjacent ranks"}


def told_of(items: Sequence[Any], how: PairsFrom, pairs: int | None = None) -> list[str]:
    """Sentences on lists or single answers, as text or as token ids. [] for none. pairs: how many were made of them."""
    if not items:
        return []
    if isinstance(items[0], Ranking | TokenList):
        ranks = [item.ranks for item in items]
        sizes = sorted(map(len, ranks))
        size = f"{sizes[0]}" if sizes[0] == sizes[-1] else f"{sizes[0]} to {sizes[-1]}"
        tied = sum(n * (n - 1) // 2 for of_list in ranks for n in Counter(of_list).values())
        made = "" if pairs is None else f"; {pairs} pairs made of them: {_MADE[how]} (data.pairs_from: {how})"
        ties = f", with {tied} ties of two answers, which make no pair" if tied else ""
        return [f"{len(items)} lists of {size} answers{ties}{made}"]
    labels = Counter(item.label for item in items)
    made = "" if pairs is None else f"; {pairs} pairs made of them, where a prompt has both"
    prompts = len({hashlib.sha256(repr(item.prompt).encode("utf-8", "surrogatepass")).digest() for item in items})
    return [
        f"{len(items)} single answers to {prompts} prompts, {labels[True]} desirable, {labels[False]} undesirable{made}",
        balance(labels[True], labels[False]),
    ]


def _answers(item: Any) -> Sequence[Any]:
    """Of a list or a single answer, as text or as token ids."""
    if isinstance(item, Ranking):
        return item.answers
    return (item.answer,) if isinstance(item, Labelled) else item.responses


def _lengths(name: str, rows: Sequence[Any], as_text: bool) -> np.ndarray:
    """(rows,) the length of a field of every row; of a prompt as text that of all its messages."""
    if isinstance(rows, TokenRows):
        return rows.lengths(name)
    if as_text and name == "prompt":
        return np.array([sum(len(message.content) for message in row.prompt) for row in rows], dtype=np.int64)
    return np.array([len(getattr(row, name)) for row in rows], dtype=np.int64)


def balance(desirable: int, undesirable: int) -> str:
    """A sentence on the weights that KTO's authors advise for so many answers of each kind.

    By arXiv 2402.01306 desirable_weight × desirable over undesirable_weight × undesirable lies in [1, 3/2] (Eq. 9 of its later
    versions), in [1, 4/3] in its first version, by which TRL warns (`KTOTrainer`, 1 to 1.33). Named is what both allow.
    """
    if not (desirable and undesirable):
        return "all have one label, which no weights balance"
    ratio = desirable / undesirable
    advice = "KTO's authors advise that desirable answers weigh 1 to 4/3 times as much as undesirable ones"
    if 1 <= ratio <= 4 / 3:
        return f"{advice}; here {ratio:.3g} times at weights of 1, as advised"
    if ratio < 1:
        name, low, high = "desirable_weight", 1 / ratio, 4 / 3 / ratio
    else:
        name, low, high = "undesirable_weight", ratio * 3 / 4, ratio
    return f"{advice}; here {ratio:.3g} times at weights of 1; set the loss's {name} from {low:.4g} to {high:.4g}"


# ---------------------------------------------------------------- audit
COLUMNS = ["fault", "count", "rows"]


@dataclass(frozen=True)
class Audit:
    """Counts, lengths and left-out rows of a data set.

    rows: read from the file. pairs: ready for training. faults: why rows were left out. notes: other rows left out or
    changed: reason -> row numbers. lengths: in `unit`, of "chosen" and "rejected", (pairs,) each, of the prompts, and of "every
    answer" of lists and single answers, whose prompts these are then. unknown: the same
    parts -> the share of unknown tokens; {} for text, and where the tokenizer knows everything.
    unread: column that was not read -> rows in which it holds something. beside: sentences on the lists or single answers of
    which the pairs were made.
    """

    rows: int
    pairs: int
    faults: list[Fault]
    notes: dict[str, list[int]]
    lengths: dict[str, np.ndarray] = field(repr=False)
    unit: str = "tokens"
    source: str = "rows"
    shape: str = ""
    unknown: Mapping[str, float] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        items: Sequence[TokenPair] | Sequence[Preference],
        loaded: Found,
        faults: list[Fault],
        notes: dict[str, list[int]],
        unknown: int | None = None,
        own: Sequence[TokenList | TokenAnswer | Ranking | Labelled] = (),
    ) -> Audit:
        """The audit of token pairs (lengths in tokens) or of preferences (lengths in characters). unknown: the id of the
        tokenizer's unknown token, if it has one. own: the lists or single answers of which they were made."""
        as_text = isinstance(next(chain(items, own), None), Preference | Ranking | Labelled)
        parts: dict[str, Sequence[Any]] = {"prompt": own or items, "chosen": items, "rejected": items}
        lengths = {name: _lengths(name, rows, as_text) for name, rows in parts.items()}
        sequences: dict[str, Iterable[Any]] = {n: Mapped(attrgetter(n), rows) for n, rows in parts.items()}
        if own:
            lengths["every answer"] = np.fromiter((len(one) for item in own for one in _answers(item)), np.int64)
            sequences["every answer"] = (one for item in own for one in _answers(item))
        unit = "characters" if as_text else "tokens"
        shares = {} if as_text else unknown_shares(sequences, unknown)
        beside = tuple(told_of(own, loaded.pairs_from, len(items)))
        about = (loaded.source, loaded.shape, shares, loaded.unread, beside)
        return cls(loaded.rows, len(items), faults, notes, lengths, unit, *about)

    @classmethod
    def of_file(cls, loaded: Found) -> Audit:
        """The audit of a file before tokenisation, with lengths in characters."""
        return cls.of(loaded.preferences, loaded, loaded.faults, loaded.notes, own=loaded.lists or loaded.answers)

    @property
    def chosen_longer(self) -> float:
        """The share of pairs in [0, 1] whose chosen answer is longer; equal lengths count one half."""
        chosen, rejected = self.lengths["chosen"], self.lengths["rejected"]
        return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected))) if self.pairs else float("nan")

    def frame(self) -> pd.DataFrame:
        """Columns fault, count (of rows), rows (JSON list of row numbers, of several files `FILE:ROW`). The first two lines,
        `rows read` and `pairs kept`, are totals without row numbers. Those of `left_out` follow, and one for each column that
        was not read, without row numbers too."""
        totals = [("rows read", self.rows, "[]"), ("pairs kept", self.pairs, "[]")]
        unread = [(f"column {name!a} was not read", count, "[]") for name, count in self.unread.items()]
        parts = [pd.DataFrame(lines, columns=COLUMNS) for lines in (totals, unread)]
        return pd.concat([parts[0], self.left_out(), parts[1]], ignore_index=True)

    def left_out(self) -> pd.DataFrame:
        """One line per kind of fault, then per kind of note; columns as in `frame`."""
        kinds: dict[str, list[int]] = {}
        for fault in self.faults:
            kinds.setdefault(fault.problem, []).append(fault.row)
        lines = []
        for kind, rows in [*kinds.items(), *self.notes.items()]:
            unique = sorted(set(rows))
            places = [str(row) if isinstance(row, RowNumber) else row for row in unique]
            lines.append((kind, len(unique), json.dumps(places)))
        return pd.DataFrame(lines, columns=COLUMNS)

    def quantiles(self) -> pd.DataFrame:
        """Quantiles of the lengths in `unit`, one line for each of `lengths`; nan where there are none."""
        at = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
        values = {
            name: np.quantile(lengths, list(at.values())) if len(lengths) else np.full(len(at), np.nan)
            for name, lengths in self.lengths.items()
        }
        return pd.DataFrame.from_dict(values, orient="index", columns=list(at))

    def text(self) -> str:
        """The audit as plain lines for a terminal."""
        share = f"{self.chosen_longer:.1%}" if self.pairs else "–"
        lines = [
            f"{self.source}: {self.rows} rows"
            + (f" ({self.shape})" if self.shape else "")
            + f", {self.pairs} pairs kept",
            *(f"  {line}" for line in self.beside),
            f"  chosen is the longer answer in {share} of {self.pairs} pairs",
            f"  {self.unit:<12}" + "".join(f"{name:>9}" for name in self.quantiles().columns),
        ]
        for name, row in self.quantiles().iterrows():
            lines.append(f"  {name:<12}" + "".join(f"{'–' if np.isnan(v) else f'{v:.0f}':>9}" for v in row))
        if warning := unknown_text(self.unknown):
            lines.append(f"  warning: {warning}")
        left_out = self.left_out()
        for kind, count, rows in left_out.itertuples(index=False):
            numbers = json.loads(rows)
            some = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
            lines.append(f"  {count:>6}  {kind}: row{'s' if count > 1 else ''} {some}")
        if left_out.empty:
            lines.append("  no row was left out")
        if self.unread:
            lines.append(f"  columns not read: {', '.join(map(ascii, self.unread))}")
        return "\n".join(lines)
