"""`pobench plan`: designs that detect a difference, what they cost, and a plain word where none does."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from typer.testing import CliRunner

from pobench.cli.plan import app
from pobench.errors import PobenchError
from pobench.results.contrast import all_pairs
from pobench.settings.resolve import resolve
from pobench.workflows import sample_size as module
from pobench.workflows.sample_size import SampleSize, comparable_runs, sample_size


@pytest.fixture(scope="module", autouse=True)
def known_costs():
    """A hundredth of a second an answer, and 40 prompts in the setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "answering_seconds", lambda job, prompts, samples: 0.01 * prompts * samples)
        patch.setattr(module, "asked_prompts", lambda job: 40.0)
        patch.setattr(module, "SEEDS", (3, 5, 12))
        yield


@pytest.fixture(scope="module")
def stored(synthetic):
    three = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo", "ipo")}
    return synthetic.make_frames(three, seeds=(1, 2, 3), prompts=40, samples=4, pairs=2, steps=1)


@pytest.fixture(scope="module")
def job():
    return resolve("tiny", "dpo")[0]


@pytest.fixture(scope="module")
def found(stored, job) -> SampleSize:
    return sample_size(comparable_runs(stored), job, 10.0, ["simpo", "dpo"])


def test_a_design_detects_what_the_comparison_of_the_stored_runs_would(stored, found) -> None:
    # the stored design is one of the grid: its number is that of the interval, up to seeds' luck below their noise
    same = next(d for d in found.designs if (d.seeds, d.prompts, d.samples) == (3, 40, 4))
    pairs = all_pairs(stored["runs"], stored["verdicts"], None, found.losses)
    crossed = pairs[0].gap.crossed
    assert crossed is not None and same.detects == pytest.approx(crossed.detectable(), rel=0.15)


def test_the_cheapest_design_comes_first_and_all_are_enough(found) -> None:
    assert found.enough and all(d.detects <= 10.0 for d in found.enough)
    assert [d.left for d in found.enough] == sorted(d.left for d in found.enough)
    assert len(found.designs) == 3 * 3 * 3 and found.best.seeds == 12


def test_stored_seeds_are_not_paid_for_again(found) -> None:
    designs = {(d.seeds, d.prompts, d.samples): d for d in found.designs}
    training = found.runs[found.runs["loss"].isin(["simpo", "dpo"])]["seconds"].median()
    assert designs[3, 40, 4].left == 0.0  # these runs are all there
    assert designs[3, 40, 16].left == pytest.approx(7 * 0.01 * 40 * 16)  # six models and the start model answer anew
    assert designs[5, 40, 4].left == pytest.approx(4 * (training + 0.01 * 40 * 4))  # two more seeds of two losses
    assert designs[5, 40, 4].seconds == pytest.approx(10 * training + 11 * 0.01 * 40 * 4)


def test_the_command_makes_the_design(found, job) -> None:
    design = next(d for d in found.designs if (d.seeds, d.prompts, d.samples) == (5, 20, 4))
    command = found.command(design)
    assert command.startswith("pobench run --losses dpo,simpo --setting tiny --seeds 1,2,3,4,5")
    assert command.endswith("--set answers.samples=4 --set answers.max_prompts=20")
    assert "--setting mine.yaml" in found.command(design, "mine.yaml")


def test_more_samples_are_planned_only_where_it_is_known_what_they_add(synthetic, stored, job) -> None:
    greedy = resolve("tiny", "dpo", overrides={"answers.temperature": 0.0})[0]
    assert {d.samples for d in sample_size(comparable_runs(stored), greedy, 10.0).designs} == {1}
    once = synthetic.make_frames(seeds=(1, 2), prompts=10, samples=1, pairs=2, steps=1)
    assert {d.samples for d in sample_size(comparable_runs(once), job, 10.0).designs} == {1}


def test_one_seed_says_nothing_of_seeds(synthetic, stored, job) -> None:
    once = comparable_runs(synthetic.make_frames(prompts=10, pairs=2, steps=1))
    with pytest.raises(
        PobenchError, match=r"no two losses were judged with two seeds or more on tiny.*--seeds 42,43,44"
    ):
        sample_size(once, job, 3.0)
    with pytest.raises(PobenchError, match=r"orpo: not judged .* with as many: dpo"):
        sample_size(comparable_runs(stored), job, 3.0, ["dpo", "orpo"])


def test_only_runs_that_may_be_compared_are_read(stored) -> None:
    older = {name: f.assign(run=f["run"] + "-1") if "run" in f else f for name, f in stored.items()}
    older["runs"] = older["runs"].assign(protocol=0)
    both = {name: pd.concat([older[name], stored[name]]) for name in stored}
    both["runs"].loc[both["runs"]["loss"] == "ipo", "status"] = "failed"
    runs = comparable_runs(both)["runs"]
    assert set(runs["protocol"]) == {1} and "ipo" not in set(runs["loss"]) and len(runs) == 6


def run_plan(monkeypatch, stored, *arguments: str):
    monkeypatch.setattr("pobench.results.load.load_frames", lambda runs, setting: stored)
    return CliRunner().invoke(app, [*arguments, "--setting", "tiny"])


def test_the_command_prints_designs_and_what_makes_them(monkeypatch, stored) -> None:
    printed = run_plan(monkeypatch, stored, "--difference", "10").output
    assert "the median of 3 pairs" in printed and "pobench run --losses dpo,ipo,simpo" in printed
    described = json.loads(run_plan(monkeypatch, stored, "--difference", "10", "--json").output)
    assert described["command"] in printed and described["pairs"] == 3 and described["components"]["judge"] is None
    assert sum(design["enough"] for design in described["designs"]) > 0


def test_what_cannot_be_reached_is_said(monkeypatch, stored) -> None:
    printed = run_plan(monkeypatch, stored, "--difference", "0.01").output
    assert "0.01 points cannot be reached with 12 seeds or fewer: 40 prompts with 16 samples each detect" in printed
    assert "What would help most is more seeds (" in printed and "pobench run" not in printed
    described = json.loads(run_plan(monkeypatch, stored, "--difference", "0.01", "--json").output)
    assert described["command"] is None and not any(design["enough"] for design in described["designs"])


def test_unknown_times_are_a_dash_and_not_the_cheapest(monkeypatch, stored) -> None:
    monkeypatch.setattr(module, "answering_seconds", lambda job, prompts, samples: math.nan)
    printed = run_plan(monkeypatch, stored, "--difference", "10").output
    assert "–" in printed and "nan" not in printed


def test_faults_of_the_command_come_together(monkeypatch, stored) -> None:
    result = run_plan(monkeypatch, stored, "--difference", "-1", "--losses", "dpo")
    assert "more than 0 points" in str(result.exception) and "two or more" in str(result.exception)
