"""Rows cut into shards come to what one process comes to, whoever computes them and however often they are interrupted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pobench import shards
from pobench.errors import PobenchError
from pobench.shards import Share, compute, count_of, deal, forget_claims
from tests.faults.damage import another_digit

SIZES = [3, 3, 2, 2]
CUT = [[[f"{k}.{i}" for i in range(size)]] for k, size in enumerate(SIZES)]


def rows_of(k: int) -> list[Any]:
    return [[k, i, 0.1 * k + i / 3] for i in range(SIZES[k])]


WHOLE = [row for k in range(len(SIZES)) for row in rows_of(k)]


def test_one_process_makes_every_shard_and_joins_them_in_order(tmp_path) -> None:
    done: list[int] = []
    assert compute(tmp_path / "s", {"w": 1}, CUT, rows_of, advance=done.append) == WHOLE
    assert done[-1] == sum(SIZES) and done == sorted(done)
    shards.remove(tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_two_processes_make_each_shard_once_and_the_first_joins_them(tmp_path) -> None:
    made: list[tuple[int, int]] = []
    both = threading.Barrier(2)

    def make(rank: int, k: int) -> list[Any]:
        made.append((rank, k))
        if len(made) <= 2:
            both.wait(600)  # so that both have taken a shard
        return rows_of(k)

    joined: dict[int, Any] = {}

    def work(rank: int) -> None:
        joined[rank] = compute(tmp_path / "s", {}, CUT, lambda k: make(rank, k), Share(rank, 2))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert joined == {0: WHOLE, 1: None}
    assert sorted(k for _, k in made) == [0, 1, 2, 3] and {rank for rank, _ in made} == {0, 1}


def test_after_a_kill_only_what_is_missing_is_made_by_any_number_of_processes(tmp_path) -> None:
    def killed(k: int) -> list[Any]:
        if k == 2:
            raise KeyboardInterrupt
        return rows_of(k)

    folder = tmp_path / ".heldout-0.shards"
    with pytest.raises(KeyboardInterrupt):
        compute(folder, {"w": 1}, CUT, killed, Share(0, 2))
    assert (folder / "2.taken").exists() and not (folder / "2.json").exists()
    forget_claims(tmp_path)
    made: list[int] = []
    again = compute(folder, {"w": 1}, CUT, lambda k: made.append(k) or rows_of(k))
    assert again == WHOLE and made == [2, 3]
    other = compute(folder, {"w": 2}, CUT, lambda k: made.append(k) or rows_of(k))
    assert other == WHOLE and made == [2, 3, 0, 1, 2, 3], "shards of other weights are never used"
    del made[:]
    otherwise = [[[row] for row in batch] for (batch,) in CUT]  # as many rows in each shard, in other batches
    assert compute(folder, {"w": 2}, otherwise, lambda k: made.append(k) or rows_of(k)) == WHOLE
    assert made == [0, 1, 2, 3], "shards that were cut otherwise are never used"


@pytest.mark.parametrize("damage", [another_digit, Path.unlink], ids=["another digit", "gone"])
def test_shards_of_which_it_is_not_known_what_they_are_made_from_are_named_and_made_anew(
    damage: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / ".heldout-0.shards"
    assert compute(folder, {"w": 1}, CUT, rows_of) == WHOLE
    capsys.readouterr()
    damage(folder / shards.ABOUT)
    made: list[int] = []
    assert compute(folder, {"w": 1}, CUT, lambda k: made.append(k) or rows_of(k)) == WHOLE and made == [0, 1, 2, 3]
    assert f"{str(folder / shards.ABOUT)!r} is damaged" in capsys.readouterr().err
    assert compute(folder, {"w": 1}, CUT, lambda k: pytest.fail()) == WHOLE and not capsys.readouterr().err
    (folder / shards.ABOUT).write_text(json.dumps({"w": 1, "cut": shards.digest_of(CUT)}))  # an earlier version's
    assert compute(folder, {"w": 1}, CUT, lambda k: pytest.fail()) == WHOLE


def test_a_shard_that_another_process_cannot_make_fails_the_result_and_nobody_waits_for_it(tmp_path) -> None:
    folder, mine, theirs = tmp_path / ".heldout-0.shards", threading.Event(), threading.Event()

    def other(k: int) -> list[Any]:
        theirs.set()
        mine.wait(600)  # so that both have taken a shard
        raise RuntimeError("too long\nfor its device")

    def first(k: int) -> list[Any]:
        mine.set()
        return rows_of(k)

    shards._begin(folder, {"cut": shards.digest_of(CUT)}, shards.ALONE, lambda: False)
    thread = threading.Thread(target=lambda: compute(folder, {}, CUT, other, Share(1, 2)))
    thread.start()
    theirs.wait(600)
    with pytest.raises(PobenchError, match=r"^RuntimeError: too long for its device$"):
        compute(folder, {}, CUT, first, Share(0, 2))
    thread.join()
    (why,) = folder.glob("*.failed")
    assert "Traceback" in why.read_text()
    forget_claims(tmp_path)
    assert compute(folder, {}, CUT, rows_of) == WHOLE


def test_who_comes_when_all_is_joined_does_nothing(tmp_path) -> None:
    assert compute(tmp_path / "s", {}, CUT, rows_of, Share(1, 2), joined=lambda: True) is None
    assert not (tmp_path / "s").exists()


def test_few_batches_are_one_shard_each_and_many_are_dealt(tmp_path) -> None:
    assert [count_of(n) for n in (0, 1, 7, shards.MOST, 1000)] == [1, 1, 7, shards.MOST, shards.MOST]
    batches = [[k] for k in range(150)]
    assert sorted(batch for shard in deal(batches) for batch in shard) == batches
    assert deal(batches)[0] == [[0], [64], [128]] and deal([]) == [[]]
    assert compute(tmp_path / "s", {}, CUT[:1], rows_of) == rows_of(0) and not (tmp_path / "s").exists()
