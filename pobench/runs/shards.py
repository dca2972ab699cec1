"""A stage's rows cut into shards, which any number of processes compute, and which are joined when all are there.

    <run>/.<stage>-<12 hex>.shards/made_from.json    by what, and how many there are
                                   3.json            the rows of shard 3, written whole
                                   3.taken           a process is at it

A shard is some of the batches that one process would make of all rows, so each row comes to the same number, to the last
bit, whoever computes it, and a command may go on with another number of processes. The processes meet in this folder alone:
none waits for another in a collective operation, a process that is slower takes fewer shards, and what a killed command had
finished is there for the next one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pobench.files import write_json

MOST = 64  # shards of a stage
ABOUT = "made_from.json"
POLL = 0.05  # seconds


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


def forget_claims(run: Path) -> None:
    """Give back what the processes of a killed command had taken. Called before a run's processes start."""
    for path in run.glob(".*.shards/*.taken"):
        path.unlink(missing_ok=True)


def compute(
    folder: Path,
    made_from: Mapping[str, Any],
    sizes: Sequence[int],
    make: Callable[[int], list[Any]],
    share: Share = ALONE,
    advance: Callable[[int], None] = lambda rows: None,
    joined: Callable[[], bool] = lambda: False,
) -> list[Any] | None:
    """The rows of all shards, in their order, in the first process; None in the others, once nothing is left to take.

    folder: of the shards. made_from: plain data that decides them; shards of anything else are removed. sizes: the number of
    rows of each shard. make: k → the rows of shard k, as values that JSON holds exactly. advance: takes the number of rows
    that are done, whoever did them. joined: whether the stage's result is stored, so that no shard is left.
    """
    if len(sizes) == 1:
        return make(0) if share.first else None
    if not _begin(folder, {**made_from, "shards": len(sizes)}, share, joined):
        return None
    for k in range(len(sizes)):
        if (folder / f"{k}.json").is_file() or not _take(folder, k, share):
            continue
        write_json(folder / f"{k}.json", make(k))
        if share.first:
            advance(_done(folder, sizes))
    if not share.first:
        return None
    while (done := _done(folder, sizes)) < sum(sizes):  # what the others are at; if one of them ends, so does this one
        advance(done)
        time.sleep(POLL)
    advance(done)
    return [row for k in range(len(sizes)) for row in json.loads((folder / f"{k}.json").read_text(encoding="utf-8"))]


def remove(folder: Path) -> None:
    """Called when the joined result is stored."""
    shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: Path, made_from: Mapping[str, Any], share: Share, joined: Callable[[], bool]) -> bool:
    """Ready the folder for shards of this content. Returns False where they are joined already."""
    about, now = folder / ABOUT, json.loads(json.dumps(dict(made_from)))
    if share.first:
        if not about.is_file() or json.loads(about.read_text(encoding="utf-8")) != now:
            remove(folder)
            write_json(about, now)
        return True
    while not joined():
        with contextlib.suppress(FileNotFoundError):
            if json.loads(about.read_text(encoding="utf-8")) == now:
                return True
        time.sleep(POLL)
    return False


def _take(folder: Path, k: int, share: Share) -> bool:
    """Whether this process computes shard k: no other one has taken it."""
    if share.world == 1:
        return True
    try:
        (folder / f"{k}.taken").open("x").close()
    except (FileExistsError, FileNotFoundError):  # the folder is gone once all shards are joined
        return False
    return not (folder / f"{k}.json").is_file()


def _done(folder: Path, sizes: Sequence[int]) -> int:
    return sum(size for k, size in enumerate(sizes) if (folder / f"{k}.json").is_file())
