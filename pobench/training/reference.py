"""The content-addressed cache of reference sums.

A reference log-probability depends on the weights, the arithmetic and the tokens, and on nothing else: not on the loss,
its settings, the learning rate, the seed or the output folder. One pass serves them all. Each (prompt, response) is one
row keyed by a digest of its token ids, in one SQLite file per (weights, arithmetic); a pass that is killed keeps what it
had, and the next computes only what is missing.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from pobench.types import Group


def sequence_key(prompt: Sequence[int], response: Sequence[int]) -> bytes:
    """sha256 over both token sequences, their lengths included (so that the border between them counts)."""
    return hashlib.sha256(
        struct.pack(f"<2q{len(prompt) + len(response)}q", len(prompt), len(response), *prompt, *response)
    ).digest()


class ReferenceCache:
    """Reference sums in nats by token ids. `computed` counts the responses that had to be computed by this object.

    folder: where the cache lives. weights: the digest of the reference's weights. arithmetic: whatever else changes its
    sums (precision, layout, attention).
    """

    def __init__(self, folder: Path, weights: str, arithmetic: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(f"{weights} {arithmetic}".encode()).hexdigest()[:16]
        self.path = folder / f"{name}.sqlite"
        self.computed = 0
        with self._open() as db:
            db.execute("CREATE TABLE IF NOT EXISTS sums (key BLOB PRIMARY KEY, total REAL NOT NULL) WITHOUT ROWID")
            db.execute("CREATE TABLE IF NOT EXISTS about (what TEXT PRIMARY KEY, value TEXT)")
            db.executemany(
                "INSERT OR IGNORE INTO about VALUES (?, ?)", [("weights", weights), ("arithmetic", arithmetic)]
            )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)

    def missing(self, groups: Iterable[Group]) -> list[Group]:
        """Each group with those responses alone that are not cached; groups without any are left out."""
        lacking = []
        with self._open() as db:
            for group in groups:
                absent = tuple(
                    r
                    for r in dict.fromkeys(group.responses)
                    if db.execute("SELECT 1 FROM sums WHERE key = ?", (sequence_key(group.prompt, r),)).fetchone()
                    is None
                )
                if absent:
                    lacking.append(Group(group.prompt, absent))
        return lacking

    def put(self, groups: Sequence[Group], totals: Sequence[float]) -> None:
        """Store the sums of all responses of `groups`, in order. A non-finite sum is never stored: ValueError."""
        keys = [sequence_key(g.prompt, r) for g in groups for r in g.responses]
        bad = [t for t in totals if not torch.isfinite(torch.tensor(t))]
        if bad:
            raise ValueError(
                f"the reference model gives {len(bad)} log-probabilities that are not finite, such as {bad[0]}"
            )
        with self._open() as db:
            db.executemany("INSERT OR IGNORE INTO sums VALUES (?, ?)", list(zip(keys, totals, strict=True)))
        self.computed += len(keys)

    def fill(
        self, groups: Sequence[Group], compute: Callable[[Sequence[Group]], Iterable[tuple[list[int], list[float]]]]
    ) -> int:
        """Make sure that every response of `groups` is cached. Returns how many had to be computed.

        compute: groups → micro-batches as (indices of the groups, their sums); each is stored as it arrives.
        """
        lacking = self.missing(groups)
        before = self.computed
        if lacking:
            for indices, totals in compute(lacking):
                self.put([lacking[i] for i in indices], totals)
        return self.computed - before

    def get(self, groups: Sequence[Group]) -> torch.Tensor:
        """(responses,) fp64 nats, group by group. Raises KeyError if one was never filled."""
        totals = []
        with self._open() as db:
            for group in groups:
                for response in group.responses:
                    row = db.execute(
                        "SELECT total FROM sums WHERE key = ?", (sequence_key(group.prompt, response),)
                    ).fetchone()
                    if row is None:
                        raise KeyError("a reference log-probability was asked for before its pass")
                    totals.append(row[0])
        return torch.tensor(totals, dtype=torch.float64)
