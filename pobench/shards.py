"""Rows cut into shards, which any number of processes compute, and which are joined when all are there.

    <run>/.<result>-<12 hex>.shards/made_from.json    by what, and how the rows are cut
                                    3.json            the rows of shard 3, written whole
                                    3.taken           a process is at it
                                    3.failed          why a process could not make it

A shard is some of the batches that one process would make of all rows, so each row comes to the same number, to the last
bit, whoever computes it, and a command may go on with another number of processes. The processes meet in this folder alone:
none waits for another in a collective operation, a process that is slower takes fewer shards, and what a killed command had
finished is there for the next one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pobench.errors import CorruptError, PobenchError, reason_of
from pobench.files import read_marker, sealed, write_json, write_text
from pobench.printing import say

MOST = 64  # shards of a result
ABOUT = "made_from.json"
POLL = 0.05  # seconds

Batch = TypeVar("Batch", bound=Sequence[Any])
Cut = Sequence[Sequence[Sequence[Any]]]  # shard → its batches → what each row is of, as values that JSON holds


class JoinedElsewhere(Exception):
    """Another process has the rows of all shards, and goes on with them."""


class Share(NamedTuple):
    """Which of several processes this one is: rank, from 0, of world. The first one joins the shards."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0


ALONE = Share()


def count_of(batches: int) -> int:
    """Into how many shards so many batches are cut."""
    return max(1, min(batches, MOST))


def deal(batches: Sequence[Batch]) -> list[list[Batch]]:
    """The batches of each shard: dealt in turn, so that shards of batches in the order of their length are alike."""
    return [[*batches[k :: count_of(len(batches))]] for k in range(count_of(len(batches)))]


def by_length(lengths: Sequence[int], size: int) -> list[list[list[int]]]:
    """Shards of one batch each: places of similar length, about `size` or more. All in order where there are no more."""
    count = count_of(-(-len(lengths) // size))
    places = sorted(range(len(lengths)), key=lambda i: (lengths[i], i)) if count > 1 else [*range(len(lengths))]
    each = max(1, -(-len(places) // count))
    return [[places[start : start + each]] for start in range(0, len(places), each)] or [[[]]]


def forget_claims(run: Path) -> None:
    """Give back what the processes of an ended command had taken. Called before a run's processes start."""
    for path in [*run.glob(".*.shards/*.taken"), *run.glob(".*.shards/*.failed")]:
        path.unlink(missing_ok=True)


def compute(
    folder: Path,
    made_from: Mapping[str, Any],
    cut: Cut,
    make: Callable[[int], list[Any]],
    share: Share = ALONE,
    advance: Callable[[int], None] = lambda rows: None,
    joined: Callable[[], bool] = lambda: False,
) -> list[Any] | None:
    """The rows of all shards, in their order, in the first process; None in the others, once nothing is left to take.

    folder: of the shards. made_from: plain data that decides the rows; shards of anything else, and those that were cut
    otherwise, are removed. make: k → the rows of shard k, as values that JSON holds exactly. advance: takes the number of rows
    that are done, whoever did them. joined: whether the result is stored, so that no shard is left.

    Raises what `make` raises; in the first process also PobenchError with the reason why another one could not make a shard.
    """
    sizes = [sum(map(len, batches)) for batches in cut]
    if len(cut) == 1:
        if not share.first:
            return None
        rows = make(0)
        advance(sizes[0])
        return rows
    if not _begin(folder, {**made_from, "cut": digest_of(cut)}, share, joined):
        return None
    for k in range(len(cut)):
        if share.first:
            _raise_failure(folder)
        if share.first:
            _drop_damaged(folder / f"{k}.json")
        if (folder / f"{k}.json").is_file() or not _take(folder, k, share):
            continue
        if not _write(folder, k, make, share):
            return None
        if share.first:
            advance(_done(folder, sizes))
    if not share.first:
        return None
    while (done := _done(folder, sizes)) < sum(sizes):  # what the others are at; if one of them ends, so does this one
        _raise_failure(folder)
        advance(done)
        time.sleep(POLL)
    advance(done)
    return [row for k in range(len(cut)) for row in _rows(folder / f"{k}.json")]


def digest_of(cut: Cut) -> str:
    """sha256 of how rows are cut."""
    return hashlib.sha256(json.dumps(cut).encode()).hexdigest()


def remove(folder: Path) -> None:
    """Called when the joined result is stored. The name is gone at once, so that no process takes a shard while files go."""
    gone = folder.with_suffix(".joined")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _begin(folder: Path, made_from: Mapping[str, Any], share: Share, joined: Callable[[], bool]) -> bool:
    """Ready the folder for shards of this content. Returns False where they are joined already."""
    now = json.loads(json.dumps(dict(made_from)))
    if share.first:
        try:
            same = origin(folder) == now
        except CorruptError as error:
            say(f"{error}; the shards beside it are computed again")
            same = False
        if not same:
            remove(folder)
            write_json(folder / ABOUT, sealed(now))
        return True
    while not joined():
        with contextlib.suppress(CorruptError):
            if origin(folder) == now:
                return True
        time.sleep(POLL)
    return False


def origin(folder: Path) -> dict[str, Any] | None:
    """What the shards of a folder are made from; None where it holds none. Raises CorruptError where that is gone, or not what
    was written."""
    with contextlib.suppress(FileNotFoundError):  # the folder goes while it is read, as its shards are joined
        return read_marker(folder / ABOUT) if any(folder.glob("*.json")) else None
    return None


def _take(folder: Path, k: int, share: Share) -> bool:
    """Whether this process computes shard k: no other one has taken it."""
    if share.world == 1:
        return True
    try:
        (folder / f"{k}.taken").open("x").close()
    except (FileExistsError, FileNotFoundError):  # the folder is gone once all shards are joined
        return False
    return not (folder / f"{k}.json").is_file()


def _write(folder: Path, k: int, make: Callable[[int], list[Any]], share: Share) -> bool:
    """Make and write shard k. Returns False where it failed, which the first process says for the others."""
    try:
        write_json(folder / f"{k}.json", sealed({"rows": make(k)}))
    except Exception as error:
        if share.first:
            raise
        write_text(folder / f"{k}.failed", f"{reason_of(error)}\n\n{traceback.format_exc()}")
        return False
    return True


def _rows(path: Path) -> list[Any]:
    return list(read_marker(path)["rows"])


def _drop_damaged(path: Path) -> None:
    """Remove a shard of an earlier attempt that is not what was written, so that it is computed again."""
    try:
        if path.is_file():
            _rows(path)
    except (CorruptError, KeyError) as error:
        say(f"{error}; it is computed again")
        path.unlink()


def _raise_failure(folder: Path) -> None:
    for path in sorted(folder.glob("*.failed")):
        raise PobenchError(path.read_text(encoding="utf-8").partition("\n")[0])


def _done(folder: Path, sizes: Sequence[int]) -> int:
    return sum(size for k, size in enumerate(sizes) if (folder / f"{k}.json").is_file())
