"""Stages that are cut into shards come to what one process comes to, whoever computes them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from pobench import shards
from pobench.files import digests_of
from pobench.judging.benchmarks.downstream import write_stand_ins
from pobench.judging.pairwise import Comparison, Verdict
from pobench.judging.weights import SHARD_BATCHES
from pobench.model.policy_sums import SumScorer
from pobench.results.run_folder import RunFolder
from pobench.runs.execute import execute
from pobench.runs.plan import make_plan
from pobench.runs.stages import judge as judge_stage
from pobench.settings.resolve import resolve


@pytest.mark.parametrize("loss", ["dpo", "tdpo2"])  # one by sums, one by tokens
def test_micro_batches_that_are_scored_one_by_one_share_one_narrow_copy_of_the_weights(
    loss, work_here, monkeypatch
) -> None:
    own = SumScorer.collate

    def collate(self: SumScorer, groups: Any) -> Any:
        assert self.policy.arithmetic._narrow_weights is not None  # in a process of its own: then its job fails
        return own(self, groups)

    monkeypatch.setattr(SumScorer, "collate", collate)
    work_here(loss, ("train", "heldout"), train__micro_tokens=10, train__precision="bf16")


@pytest.mark.slow
def test_two_processes_evaluate_a_run_to_the_bytes_of_one_and_a_killed_one_goes_on(
    setting, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    asked = [{"instruction": f"say w{i}", "output": f"w{i} w{i}", "generator": "base"} for i in range(5)]
    (tmp_path / "alpaca.json").write_text(json.dumps(asked))
    write_stand_ins(tmp_path / "items", "truthfulqa_mc2")
    small = {"answers.batch_size": 1, "train.micro_tokens": 40}
    small |= {
        "benchmarks.alpaca_eval.source": str(tmp_path / "alpaca.json"),
        "benchmarks.alpaca_eval.length_only": True,
    }
    small |= {"benchmarks.alpaca_eval.max_new_tokens": 4, "benchmarks.downstream.tasks": ["truthfulqa_mc2"]}
    small |= {"benchmarks.downstream.data": str(tmp_path / "items"), "benchmarks.downstream.batch_size": 1}
    jobs = resolve(str(tmp_path / "small.yaml"), "simpo", overrides=small)
    stages = ("train", "heldout", "answers", "judge", "trainpairs", "gradient_norms", "benchmarks")
    assert {o.reason for o in execute(make_plan(jobs, tmp_path / "runs", stages))} == {""}
    shutil.copytree(tmp_path / "runs", tmp_path / "one")

    (run,) = (p.parent for p in (tmp_path / "runs").glob("*/simpo-*/trained.json"))
    folder = RunFolder(tmp_path / "runs", f"{run.parent.name}/{run.name}")
    expected = {n: digests_of(folder.path / n) for n in folder.shown.values() if folder.node(n).finished}
    assert {name.partition("-")[0] for name in expected} == {*stages[1:-1]}
    files = [
        *folder.path.glob("benchmarks/alpaca_eval/*/answers.jsonl"),
        *folder.path.glob("benchmarks/downstream/*/t*.json"),
    ]
    answered = {path: path.read_bytes() for path in files}
    assert len(answered) == 2
    shutil.rmtree(folder.path / "benchmarks")
    for name in expected:
        shutil.rmtree(folder.path / name)
    monkeypatch.setenv("POBENCH_PROCESSES", "2")
    assert {o.reason for o in execute(make_plan(jobs, tmp_path / "runs", stages))} == {""}
    assert {path: path.read_bytes() for path in files} == answered
    now = {name: digests_of(folder.path / name) for name in expected}
    frames = {name: {k: v for k, v in files.items() if k.endswith(".parquet")} for name, files in now.items()}
    assert frames == {n: {k: v for k, v in f.items() if k.endswith(".parquet")} for n, f in expected.items()}
    assert not list(folder.path.glob(".*.shards")) and os.path.isdir(folder.path / "model")


class WithWeights:
    """A judge with weights: the share of the letters that the second answer has. read: how many answers each call has."""

    name, batch_size, weights = "letters", 1, "…"

    def __init__(self) -> None:
        self.read: list[int] = []

    def judge_many(self, shown: Any, progress: Any = None) -> list[Verdict]:
        self.read.append(len(shown))
        shares = [len(c.b) / max(1, len(c.a) + len(c.b)) for c in shown]
        return [Verdict(p, p, p, "" if c.b else "empty") for p, c in zip(shares, shown, strict=True)]

    def score(self, row: Any, text: str, finished: bool) -> float:
        return len(text) / 7 if text else math.nan

    def grade(self, row: Any, text: str, finished: bool) -> float:
        return 1 / (1 + len(text))


class OneProcess:
    """The part of a context that a judge's stage asks for. cuts: how the rows were cut."""

    job = SimpleNamespace(judge=SimpleNamespace(name="letters"))
    task = SimpleNamespace(title="a run", share=shards.ALONE)

    def __init__(self, folder: Path) -> None:
        self.folder, self.cuts = folder, list[Any]()

    def progress(self, *about: Any) -> Any:
        return contextlib.nullcontext(lambda **done: None)

    def say(self, text: str) -> None:
        pass

    def cut(self, stage: str, cut: Any, make: Any, advance: Any, read: Any) -> Any:
        self.cuts.append(cut)
        return shards.compute(self.folder / stage, {}, cut, make, self.task.share, advance)


TEXTS = pd.DataFrame([{"prompt": f"p{i}", "sample": 0, "text": "b" * (i % 5), "finished": True} for i in range(40)])
ROWS = {f"p{i}": {"messages": f"p{i}"} for i in range(40)}


def test_verdicts_of_a_judge_with_weights_are_those_of_one_process_in_their_order(tmp_path) -> None:
    judge, context = WithWeights(), OneProcess(tmp_path)
    others = TEXTS.assign(text=["a" * (i % 7) for i in range(40)])
    found = judge_stage.compared(context, "judge", judge, ROWS, TEXTS, others, "start", {})
    assert found is not None and [*found["prompt"]] == [*TEXTS["prompt"]]
    shown = [Comparison("p", a, b) for a, b in zip(others["text"], TEXTS["text"], strict=True)]
    assert [*found["score"]] == [v.probability for v in WithWeights().judge_many(shown)]
    (cut,) = context.cuts
    assert judge.read == [len(batch) for shard in cut for batch in shard] and sum(judge.read) == 40
    assert max(judge.read) == SHARD_BATCHES
    alone = WithWeights()
    few = judge_stage.compared(context, "few", alone, ROWS, TEXTS[:8], others[:8], "start", {})
    assert few is not None and alone.read == [8] and not (tmp_path / "few").exists(), "few are read at once"
    assert [*few["score"]] == [*found["score"][:8]]


def test_grades_of_a_judge_with_weights_are_those_of_one_process_in_their_order(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(judge_stage, "read", lambda task: {})
    judge, context = WithWeights(), OneProcess(tmp_path)
    found = judge_stage._graded(context, judge, ROWS, TEXTS)
    assert found is not None and [*found.columns] == ["prompt", "sample", "judge", "score", "grade"]
    expected = TEXTS[["prompt", "sample"]].assign(
        judge="letters",
        score=[judge.score(None, text, True) for text in TEXTS["text"]],
        grade=[judge.grade(None, text, True) for text in TEXTS["text"]],
    )
    pd.testing.assert_frame_equal(found, expected)
    (cut,) = context.cuts
    assert len(cut) == 5 and len({len(TEXTS["text"][i]) for i in cut[0][0]}) == 1, "texts of similar length together"
    assert len([*(tmp_path / "judge").glob("*.json")]) == 6, "each shard was stored"
