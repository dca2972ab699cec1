"""The audit of a data set: how many rows and pairs it has, how long they are, and which rows were left out and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
import pandas as pd

from pobench.data.rows import Fault, Found, Preference, RowNumber
from pobench.data.spool import Mapped
from pobench.data.token_rows import TokenRows
from pobench.errors import PobenchError
from pobench.types import TokenPair

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


# ---------------------------------------------------------------- audit
COLUMNS = ["fault", "count", "rows"]
PARTS = ("prompt", "chosen", "rejected")


def _lengths(item: TokenPair | Preference) -> tuple[int, int, int]:
    """Of the parts: characters of a preference, tokens of a pair."""
    prompt = sum(len(m.content) for m in item.prompt) if isinstance(item, Preference) else len(item.prompt)
    return prompt, len(item.chosen), len(item.rejected)


@dataclass(frozen=True)
class Audit:
    """Counts, lengths and left-out rows of a data set.

    rows: read from the file. pairs: ready for training. faults: why rows were left out. notes: other rows left out or
    changed: reason -> row numbers. lengths: (pairs,) each of "prompt", "chosen", "rejected", in `unit`. unknown: the same
    parts -> the share of unknown tokens; {} for text, and where the tokenizer knows everything.
    unread: column that was not read -> rows in which it holds something.
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

    @classmethod
    def of(
        cls,
        items: Sequence[TokenPair] | Sequence[Preference],
        loaded: Found,
        faults: list[Fault],
        notes: dict[str, list[int]],
        unknown: int | None = None,
    ) -> Audit:
        """The audit of token pairs (lengths in tokens) or of preferences (lengths in characters). unknown: the id of the
        tokenizer's unknown token, if it has one."""
        as_text = bool(items) and isinstance(items[0], Preference)
        if isinstance(items, TokenRows):
            lengths = {name: items.lengths(name) for name in PARTS}
        else:
            counts = np.fromiter(map(_lengths, items), dtype=(np.int64, 3), count=len(items))
            lengths = dict(zip(PARTS, counts.T, strict=True))
        unit = "characters" if as_text else "tokens"
        parts = {name: Mapped(attrgetter(name), items) for name in PARTS} if not as_text else {}
        shares = unknown_shares(parts, unknown)
        about = (loaded.source, loaded.shape, shares, loaded.unread)
        return cls(loaded.rows, len(items), faults, notes, lengths, unit, *about)

    @classmethod
    def of_file(cls, loaded: Found) -> Audit:
        """The audit of a file before tokenisation, with lengths in characters."""
        return cls.of(loaded.preferences, loaded, loaded.faults, loaded.notes)

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
        """Quantiles of the lengths in `unit`, one line each for prompt, chosen, rejected; nan if there are no pairs."""
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
