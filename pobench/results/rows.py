"""The rows of a frame that are read run by run: of thousands of runs, a report holds those that it asks for.

A figure or table whose parameter is annotated `Rows` gets its frame like this; `pobench.results.arms.of_arm` gives the rows of
one arm. All others get the whole frame.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Any, Self, TypeAlias

import numpy as np
import pandas as pd

from pobench.columns import FRAMES

Read = Callable[[str, Sequence[str] | None], pd.DataFrame]  # a run's rows, of these columns or of all


class Rows:
    """A frame's rows. runs: those that have some, in order. read: of one run."""

    def __init__(self, frame: str, runs: Iterable[str], read: Read) -> None:
        self.frame, self._read, self._sorted = frame, read, False
        self._places = {run: place for place, run in enumerate(dict.fromkeys(runs))}

    @classmethod
    def of_several(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of several sets of runs, one behind the other."""
        part_of = {run: part for part in parts for run in part.runs}
        return cls(parts[0].frame, part_of, lambda run, columns: part_of[run].of([run], columns))

    @property
    def runs(self) -> list[str]:
        """Those that have rows, in order."""
        return list(self._places)

    def __len__(self) -> int:
        """The number of runs that have rows."""
        return len(self._places)

    def of(self, runs: Iterable[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The rows of these runs, in the order of all rows. columns: only these, and `run`."""
        return self._joined(sorted({run for run in runs if run in self._places}, key=self._places.__getitem__), columns)

    def whole(self) -> pd.DataFrame:
        """Every row."""
        return self._joined(self.runs, None)

    def only(self, runs: Collection[str]) -> Self:
        """The rows of these runs, without reading any."""
        kept = set(runs)
        return self._with([run for run in self._places if run in kept], self._sorted)

    def in_order(self) -> Self:
        """The same, by run and within a run by the columns that the frame is ordered by."""
        return self._with(sorted(self._places), True)

    def distinct(self, *columns: str) -> pd.DataFrame:
        """The distinct values of these columns, each where it stands first. Of runs whose values are known to be the same, the
        first is read."""
        seen: set[str | None] = set()
        parts: list[pd.DataFrame] = []
        for run in self._places:
            digest = self._digest(run, columns)
            if digest is None or digest not in seen:
                parts.append(self._joined([run], columns)[list(columns)].drop_duplicates())
                seen.add(digest)
        rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))
        return rows.drop_duplicates(ignore_index=True)

    def blank(self, column: str) -> tuple[int, int]:
        """(rows in which a column has no value, rows)."""
        counts = [self._blank(run, column) for run in self._places]
        return sum(blank for blank, _ in counts), sum(rows for _, rows in counts)

    def of_metric(self, names: Iterable[str], metric: str) -> list[dict[Any, Any]]:
        """Of `scores`: the rows of one metric of these runs and arms."""
        rows = self.of(names)
        return rows[rows["metric"] == metric].to_dict("records")

    def _digest(self, run: str, columns: Sequence[str]) -> str | None:
        """A digest of a run's distinct values of these columns, where it is known."""
        return None

    def _blank(self, run: str, column: str) -> tuple[int, int]:
        values = self._joined([run], [column])[column]
        return int(values.isna().sum()), len(values)

    def _with(self, runs: Iterable[str], in_order: bool) -> Self:
        other = copy.copy(self)
        other._places, other._sorted = {run: place for place, run in enumerate(runs)}, in_order
        return other

    def _joined(self, runs: Iterable[str], columns: Sequence[str] | None) -> pd.DataFrame:
        described = FRAMES[self.frame]
        parts = [part for run in runs if len(part := self._read(run, columns))]
        rows = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        if columns is not None:
            rows = described.typed(rows.reindex(columns=list(dict.fromkeys(["run", *columns]))))
        else:
            rows = described.of(rows)
        keys = [name for name in described.sort if name in rows]
        return rows.sort_values(keys, kind="stable", ignore_index=True) if self._sorted else rows


class InMemory(Rows):
    """Rows that were read already."""

    def __init__(self, frame: str, rows: pd.DataFrame) -> None:
        super().__init__(frame, rows["run"].astype(str) if "run" in rows else (), self._of_run)
        self._rows = rows

    @cached_property
    def _rows_of(self) -> dict[Any, Any]:
        """run → the places of its rows."""
        return dict(self._rows.groupby("run", sort=False).indices)

    def of(self, runs: Iterable[str], columns: Sequence[str] | None = None) -> pd.DataFrame:
        places = [self._rows_of[run] for run in dict.fromkeys(runs) if run in self._rows_of]
        return self._rows.iloc[np.sort(np.concatenate(places)) if places else slice(0)]

    def whole(self) -> pd.DataFrame:
        return self._rows

    def only(self, runs: Collection[str]) -> InMemory:  # type: ignore[override]
        return InMemory(self.frame, self.of(runs))

    def distinct(self, *columns: str) -> pd.DataFrame:
        return self._rows.reindex(columns=list(columns)).drop_duplicates(ignore_index=True)

    def blank(self, column: str) -> tuple[int, int]:
        return int(self._rows[column].isna().sum()), len(self._rows)

    def _of_run(self, run: str, columns: Sequence[str] | None) -> pd.DataFrame:
        return self.of([run])


Frame: TypeAlias = pd.DataFrame | Rows
