"""Rows cut into shards come to what one process comes to, whoever computes them and however often they are interrupted."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from typing import Any

import pytest

from pobench.files import digests_of
from pobench.judging.pairwise import Comparison, Verdict
from pobench.results.run_folder import RunFolder
from pobench.runs import shards
from pobench.runs.execute import execute
from pobench.runs.plan import make_plan
from pobench.runs.shards import Share, compute, count_of, forget_claims
from pobench.runs.stages import judge as judge_stage
from pobench.settings.resolve import resolve

SIZES = [3, 3, 2, 2]


def rows_of(k: int) -> list[Any]:
    return [[k, i, 0.1 * k + i / 3] for i in range(SIZES[k])]


WHOLE = [row for k in range(len(SIZES)) for row in rows_of(k)]


def test_one_process_makes_every_shard_and_joins_them_in_order(tmp_path) -> None:
    done: list[int] = []
    assert compute(tmp_path / "s", {"w": 1}, SIZES, rows_of, advance=done.append) == WHOLE
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
        joined[rank] = compute(tmp_path / "s", {}, SIZES, lambda k: make(rank, k), Share(rank, 2))

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
        compute(folder, {"w": 1}, SIZES, killed, Share(0, 2))
    assert (folder / "2.taken").exists() and not (folder / "2.json").exists()
    forget_claims(tmp_path)
    made: list[int] = []
    again = compute(folder, {"w": 1}, SIZES, lambda k: made.append(k) or rows_of(k))
    assert again == WHOLE and made == [2, 3]
    other = compute(folder, {"w": 2}, SIZES, lambda k: made.append(k) or rows_of(k))
    assert other == WHOLE and made == [2, 3, 0, 1, 2, 3], "shards of other weights are never used"


def test_who_comes_when_all_is_joined_does_nothing(tmp_path) -> None:
    assert compute(tmp_path / "s", {}, SIZES, rows_of, Share(1, 2), joined=lambda: True) is None
    assert not (tmp_path / "s").exists()


def test_few_batches_are_one_shard_each_and_many_are_dealt(tmp_path) -> None:
    assert [count_of(n) for n in (0, 1, 7, shards.MOST, 1000)] == [1, 1, 7, shards.MOST, shards.MOST]
    assert compute(tmp_path / "s", {}, [3], rows_of) == rows_of(0) and not (tmp_path / "s").exists()


# ---------------------------------------------------------------- the stages


@pytest.mark.slow
def test_two_processes_evaluate_a_run_to_the_bytes_of_one_and_a_killed_one_goes_on(
    setting, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    small = {"answers.batch_size": 1, "train.micro_tokens": 40}
    jobs = resolve(str(tmp_path / "small.yaml"), "simpo", overrides=small)
    stages = ("train", "heldout", "answers", "judge", "trainpairs", "gradient_norms")
    assert {o.reason for o in execute(make_plan(jobs, tmp_path / "runs", stages))} == {""}
    shutil.copytree(tmp_path / "runs", tmp_path / "one")

    (run,) = (p.parent for p in (tmp_path / "runs").glob("*/simpo-*/trained.json"))
    folder = RunFolder(tmp_path / "runs", f"{run.parent.name}/{run.name}")
    expected = {n: digests_of(folder.path / n) for n in folder.shown.values() if folder.node(n).finished}
    assert {name.partition("-")[0] for name in expected} == {*stages[1:]}
    for name in expected:
        shutil.rmtree(folder.path / name)
    monkeypatch.setenv("POBENCH_PROCESSES", "2")
    assert {o.reason for o in execute(make_plan(jobs, tmp_path / "runs", stages))} == {""}
    now = {name: digests_of(folder.path / name) for name in expected}
    frames = {name: {k: v for k, v in files.items() if k.endswith(".parquet")} for name, files in now.items()}
    assert frames == {n: {k: v for k, v in f.items() if k.endswith(".parquet")} for n, f in expected.items()}
    assert not list(folder.path.glob(".*.shards")) and os.path.isdir(folder.path / "model")


class WithWeights:
    """A judge with weights: the share of the letters that the second answer has. read: the sizes of its calls."""

    name, batch_size, weights = "letters", 1, "…"

    def __init__(self) -> None:
        self.read: list[int] = []

    def judge_many(self, shown: Any, progress: Any = None) -> list[Verdict]:
        self.read.append(len(shown))
        shares = [len(c.b) / max(1, len(c.a) + len(c.b)) for c in shown]
        return [Verdict(p, p, p, "" if c.b else "empty") for p, c in zip(shares, shown, strict=True)]


def test_verdicts_of_a_judge_with_weights_are_those_of_one_process_in_their_order(tmp_path) -> None:
    shown = [Comparison("p", "a" * (i % 7), "b" * (i % 5)) for i in range(40)]
    judge = WithWeights()
    cuts: list[list[int]] = []

    class OneProcess:
        """The part of a context that is asked for."""

        task = type("Task", (), {"share": shards.ALONE})

        def progress(self, *about: Any) -> Any:
            return contextlib.nullcontext(lambda **done: None)

        def cut(self, stage: str, sizes: list[int], make: Any, advance: Any, read: Any) -> Any:
            cuts.append(sizes)
            return compute(tmp_path / "s", {}, sizes, make, shards.ALONE, advance)

    verdicts = judge_stage._verdicts(OneProcess(), "judge", judge, shown, {})
    assert verdicts == WithWeights().judge_many(shown) and cuts == [judge.read] and sum(judge.read) == 40
    assert max(judge.read) == judge_stage.SHARD_BATCHES
    alone = WithWeights()
    del cuts[:]
    assert judge_stage._verdicts(OneProcess(), "judge", alone, shown[:8], {}) == verdicts[:8]
    assert alone.read == [8] and cuts == [], "few comparisons are read as they were before"
