"""Token pairs, lists and answers in Arrow: written row by row, read through a memory map, so that a million of them take no
memory of this process but the pages at hand.

A file is an Arrow IPC file without compression: one column a field of the row's type, token ids as int32.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa

from pobench.types import Item, TokenAnswer, TokenList, TokenPair

T = TypeVar("T", bound=Item)
BATCH = 1024  # rows that are written at once
AT_HAND = 64  # batches of a loop whose pages stay in this process's memory

_IDS, _NUMBERS = pa.list_(pa.int32()), pa.list_(pa.float64())
SCHEMAS: dict[type[Any], pa.Schema] = {
    TokenPair: pa.schema(
        [*zip(TokenPair._fields, (pa.string(), _IDS, _IDS, _IDS, _NUMBERS, pa.string()), strict=True)]
    ),
    TokenList: pa.schema([*zip(TokenList._fields, (pa.string(), _IDS, pa.list_(_IDS), _IDS, _NUMBERS), strict=True)]),
    TokenAnswer: pa.schema(
        [*zip(TokenAnswer._fields, (pa.string(), _IDS, _IDS, pa.bool_(), pa.float64()), strict=True)]
    ),
}


class TokenRows(Sequence[T]):
    """Rows of one type in Arrow files. An index makes one row of it; a slice or `take` gives another view of the same files.

    batches: of the files, in order. places: of this view's rows among all rows of the batches; None: all.
    """

    def __init__(self, kind: type[T], batches: Sequence[_Batch] = (), places: np.ndarray | None = None) -> None:
        self.kind, self._batches = kind, list(batches)
        self._stops = np.cumsum([len(batch) for batch in self._batches], dtype=np.int64)
        self._places = places

    @classmethod
    def read(cls, kind: type[T], file: Path) -> TokenRows[T]:
        """The rows of a file. They stay readable where the file is deleted."""
        with file.open("rb") as stream:
            return cls(kind, _batches(stream))

    @classmethod
    def of(cls, kind: type[T], rows: Iterable[T]) -> TokenRows[T]:
        """The rows in a temporary file."""
        writer = TokenWriter(kind)
        for row in rows:
            writer.add(row)
        return writer.rows()

    @classmethod
    def joined(cls, parts: Sequence[TokenRows[T]]) -> TokenRows[T]:
        """One behind the other."""
        starts = np.cumsum([0, *(part._size for part in parts)])
        places = [start + part._all_places for start, part in zip(starts, parts, strict=False)]
        return cls(parts[0].kind, [batch for part in parts for batch in part._batches], np.concatenate(places))

    def take(self, places: Sequence[int] | np.ndarray) -> TokenRows[T]:
        """The rows at these places, in this order."""
        return TokenRows(self.kind, self._batches, self._all_places[np.asarray(places, dtype=np.int64)])

    def write(self, file: Path) -> None:
        """Write the rows to a file."""
        with file.open("wb") as stream:
            writer = TokenWriter(self.kind, stream)
            for row in self:
                writer.add(row)
            writer.close()

    @property
    def ids(self) -> Iterator[str]:
        """The rows' ids, without their tokens."""
        return self.column("id")

    def column(self, name: str) -> Iterator[str]:
        """One column of text."""
        for batch, within in self._by_batch():
            yield from batch.column(name).take(pa.array(within)).to_pylist()

    def lengths(self, name: str) -> np.ndarray:
        """(rows,) the number of tokens of a column of ids."""
        parts = [np.diff(batch.column(name).offsets.to_numpy()) for batch in self._batches]
        return np.concatenate([np.zeros(0, np.int32), *parts])[self._all_places].astype(np.int64)

    def __len__(self) -> int:
        return self._size if self._places is None else len(self._places)

    def __iter__(self) -> Iterator[T]:
        for batch, within in self._by_batch():
            for i in within.tolist():
                yield self.kind(*batch.row(i))

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> TokenRows[T]: ...
    def __getitem__(self, place: int | slice) -> T | TokenRows[T]:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        i = range(len(self))[place]
        i = i if self._places is None else int(self._places[i])
        number = int(np.searchsorted(self._stops, i, side="right"))
        batch = self._batches[number]
        return self.kind(*batch.row(i - int(self._stops[number]) + len(batch)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    @property
    def _size(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    @property
    def _all_places(self) -> np.ndarray:
        return np.arange(self._size) if self._places is None else self._places

    def _by_batch(self) -> Iterator[tuple[_Batch, np.ndarray]]:
        """The batches, each with the places in it of rows that follow one another in this view."""
        places = self._all_places
        numbers = np.searchsorted(self._stops, places, side="right")
        cuts = np.flatnonzero(np.diff(numbers)) + 1
        for count, (run, of_run) in enumerate(
            zip(np.split(places, cuts), np.split(numbers, cuts), strict=True), start=1
        ):
            if len(run):
                batch = self._batches[of_run[0]]
                yield batch, run - int(self._stops[of_run[0]]) + len(batch)
                if count % AT_HAND == 0:
                    batch.let_go()


class TokenWriter(Generic[T]):
    """Writes rows of one type to an Arrow file, `BATCH` of them at once. stream: None: a temporary file without a name, which
    goes with its rows."""

    def __init__(self, kind: type[T], stream: BinaryIO | None = None) -> None:
        self.kind, self._schema = kind, SCHEMAS[kind]
        self._stream: Any = stream or tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the rows)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._stream, mode="w"), self._schema)
        self._waiting: list[T] = []

    def add(self, row: T) -> None:
        self._waiting.append(row)
        if len(self._waiting) == BATCH:
            self._write()

    def close(self) -> None:
        """Write what is left. The stream stays open."""
        self._write()
        self._writer.close()
        self._stream.flush()

    def rows(self) -> TokenRows[T]:
        """Close, and read what was written."""
        self.close()
        return TokenRows(self.kind, _batches(self._stream))

    def _write(self) -> None:
        if self._waiting:
            columns = zip(*self._waiting, strict=True)
            arrays = [pa.array(list(column), field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
            self._waiting = []


class _Batch:
    """A record batch in a memory map of a file. row: the fields of its row i."""

    def __init__(self, batch: pa.RecordBatch, mapped: mmap.mmap) -> None:
        self._batch, self._mapped = batch, mapped

    def let_go(self) -> None:
        """Leave the map's pages to the system, which has them in its own memory while there is room."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def __len__(self) -> int:
        return int(self._batch.num_rows)

    def column(self, name: str) -> Any:
        return self._batch.column(name)

    def row(self, i: int) -> Iterator[Any]:
        return (read(i) for read in self._readers)

    @cached_property
    def _readers(self) -> list[Callable[[int], Any]]:
        return [_reader(column) for column in self._batch.columns]


def _reader(column: Any) -> Callable[[int], Any]:
    """Place → value of an Arrow column; a list becomes a tuple, of lists a tuple of tuples."""
    if not pa.types.is_list(column.type):
        return lambda i: column[i].as_py()
    offsets = column.offsets.to_numpy()
    if pa.types.is_list(column.type.value_type):
        inner = _reader(column.values)
        return lambda i: tuple(inner(j) for j in range(offsets[i], offsets[i + 1]))
    values = column.values.to_numpy(zero_copy_only=True)

    def read(i: int) -> tuple[Any, ...]:
        return tuple(values[offsets[i] : offsets[i + 1]].tolist())

    return read if column.null_count == 0 else lambda i: read(i) if column[i].is_valid else None


def _batches(stream: BinaryIO) -> list[_Batch]:
    """The batches of an Arrow file, in a memory map of it."""
    mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
    return [_Batch(reader.get_batch(i), mapped) for i in range(reader.num_record_batches)]
