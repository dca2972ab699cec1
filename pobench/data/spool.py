"""Sequences that are not held in memory: the entries of a `Spool` lie in a temporary file, those of a `Mapped` are computed."""

from __future__ import annotations

import pickle  # nosec B403
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast, overload

T = TypeVar("T")
S = TypeVar("S")

IN_MEMORY = 16_384  # entries of a spool; with more it lies in a file
CHUNK = 1024  # entries that are written and read at once


class Spool(Sequence[T]):
    """Entries that are appended in turn and read in order, or by place. Beyond `IN_MEMORY` of them they lie in a file without a
    name, in the folder for temporary files, which goes with the spool."""

    def __init__(self) -> None:
        self._last: list[T] = []  # not in the file
        self._file: Any = None
        self._starts: list[int] = []  # of each chunk in the file, bytes
        self._chunk: tuple[int, list[T]] = (-1, [])  # the one that was read last

    @classmethod
    def of(cls, entries: Iterable[T]) -> Spool[T]:
        spool = cls()
        for entry in entries:
            spool.append(entry)
        return spool

    def append(self, entry: T) -> None:
        self._last.append(entry)
        if len(self._last) >= (IN_MEMORY if self._file is None else CHUNK):
            self._write()

    @property
    def in_memory(self) -> bool:
        return self._file is None

    def or_list(self) -> Sequence[T]:
        """The spool; a list where it lies in memory."""
        return list(self) if self.in_memory else self

    def __len__(self) -> int:
        return len(self._starts) * CHUNK + len(self._last)

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._starts)):
            yield from self._read(number)
        yield from self._last

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> list[T]: ...
    def __getitem__(self, place: int | slice) -> T | list[T]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        i = range(len(self))[place]
        before = len(self._starts) * CHUNK
        return self._read(i // CHUNK)[i % CHUNK] if i < before else self._last[i - before]

    def _write(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the spool)
        while len(self._last) >= CHUNK:
            chunk, self._last = self._last[:CHUNK], self._last[CHUNK:]
            self._starts.append(self._file.seek(0, 2))
            pickle.dump(chunk, self._file, protocol=pickle.HIGHEST_PROTOCOL)

    def _read(self, number: int) -> list[T]:
        if self._chunk[0] != number:
            self._file.seek(self._starts[number])
            # the file has no name, so nobody else writes it
            self._chunk = (number, pickle.load(self._file))  # nosec B301
        return self._chunk[1]


class Mapped(Sequence[S], Generic[T, S]):
    """`function` of every entry of another sequence, computed whenever it is read."""

    def __init__(self, function: Callable[[T], S], entries: Sequence[T]) -> None:
        self._function, self._entries = function, entries

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[S]:
        return map(self._function, self._entries)

    @overload
    def __getitem__(self, place: int) -> S: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[S]: ...
    def __getitem__(self, place: int | slice) -> S | Sequence[S]:
        if isinstance(place, slice):
            return Mapped(self._function, self._entries[place])
        return self._function(cast(T, self._entries[place]))
