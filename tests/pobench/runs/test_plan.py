"""Jobs in processes of their own: two train as one does, a killed one resumes, a second call finds nothing to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.results.load import load_frames
from pobench.runs.execute import execute
from pobench.runs.plan import make_plan
from pobench.runs.stage import Node
from pobench.runs.stages import DEFAULT, reference
from pobench.runs.stages.train import _how_it_moves
from pobench.runs.task import Task
from pobench.settings.job import Job
from pobench.settings.resolve import resolve
from pobench.settings.schema import START_SEED

COMMAND = ("run", "--setting", "small.yaml", "--losses")


def steps(runs: Path) -> list[dict]:
    (path,) = runs.glob("small/*/steps.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(runs: Path) -> dict:
    (path,) = runs.glob("small/*/model/model.safetensors")
    return load_file(path)


ADAPTER = ("--set", "train.adapter.r=4", "--set", "train.micro_tokens=auto", "--set", "train.lr=0.01")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [(), ADAPTER], ids=["every weight", "an adapter, probed"])
def test_two_processes_train_as_one_does(changes, pobench_cli, setting, tmp_path, monkeypatch) -> None:
    if changes:
        pytest.importorskip("peft", reason="pip install 'pobench[peft]'")
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    for processes in ("1", "2"):
        monkeypatch.setenv("POBENCH_PROCESSES", processes)
        status, _, err = pobench_cli(*COMMAND, "kto", "--runs", processes, *changes)
        assert status == 0, err
    one, two = steps(tmp_path / "1"), steps(tmp_path / "2")
    assert len(one) == len(two) > 1 and len(one) % 2 == 0  # the last batch is short
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "kl"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5), name
    environment = json.loads(next((tmp_path / "2").glob("small/kto-*/environment.json")).read_text())
    assert environment["processes"] == 2


def kill_after(rows: int, process: subprocess.Popen, runs: Path) -> bool:
    """End a command and its children, as soon as they have logged so many steps. Returns whether it was still running."""
    while (
        process.poll() is None and sum(len(p.read_text().splitlines()) for p in runs.glob("small/*/steps.jsonl")) < rows
    ):
        time.sleep(0.01)
    running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_weights(setting, tmp_path) -> None:
    command = [sys.executable, "-m", "pobench.cli", *COMMAND, "dpo", "--set", "train.epochs=20"]  # of two steps
    command += ["--set", "train.checkpoint_seconds=0", "--stages", "train"]
    environment = {**os.environ, "POBENCH_CACHE": str(tmp_path / "cache")}
    undisturbed = subprocess.run([*command, "--runs", "a"], cwd=tmp_path, env=environment, capture_output=True)
    assert undisturbed.returncode == 0, undisturbed.stderr
    kills = 0
    for rows in (3, 11, 19):
        process = subprocess.Popen(
            [*command, "--runs", "b"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        )
        kills += kill_after(rows, process, tmp_path / "b")
    last = subprocess.run([*command, "--runs", "b"], cwd=tmp_path, env=environment, capture_output=True)
    assert last.returncode == 0, last.stderr
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert kills and a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)
    assert [s["loss"] for s in steps(tmp_path / "a")] == [s["loss"] for s in steps(tmp_path / "b")]


def test_a_task_survives_the_trip_through_a_file(setting, tmp_path) -> None:
    (job,) = resolve(str(tmp_path / "small.yaml"), "kto", overrides={"kto.beta": 0.3})
    task = Task(
        job,
        "loss",
        tmp_path / "runs",
        "small/kto-0123456789ab",
        ("train",),
        tmp_path / "data",
        nodes={"heldout": Node("heldout", {"pairs": "0a"})},
        start="small/start-0123456789ab",
        references={"pairs": tmp_path / "sums"},
        causes={"seed": 1},
        plugins=("plugin.py",),
    )
    task.dump(tmp_path / "task.json")
    assert Task.load(tmp_path / "task.json") == task


def test_a_title_names_the_values_that_tell_jobs_of_one_loss_apart(setting, tmp_path) -> None:
    def title(loss: str, **origin: str) -> str:
        overrides = {"simpo.gamma_beta_ratio": 0.6, "dpo.beta": 0.3, "train.lr": 5e-6, "train.epochs": 2}
        (job,) = resolve(str(tmp_path / "small.yaml"), loss, seeds=[1], overrides=overrides)
        told = {key: origin.get(key.replace(".", "_"), how) for key, how in job.origin.items()}
        return Task(replace(job, origin=told), "loss", tmp_path, "small/run", DEFAULT, tmp_path).title

    assert title("dpo") == "dpo (β = 0.3, lr = 5e-06), seed 1"  # all losses have two epochs
    assert title("simpo") == "simpo (γ = 1.2, lr = 5e-06), seed 1"  # a ratio is spelled out: 0.6 × 2
    assert title("dpo", train_epochs="study mine") == "dpo (β = 0.3, lr = 5e-06, epochs = 2), seed 1"
    assert title("dpo", dpo_beta="small: a comment", train_lr="") == "dpo, seed 1"


def test_sampled_answers_are_drawn_by_the_seed_of_their_run_and_greedy_ones_by_none(plan_here, tmp_path) -> None:
    path, judged = str(tmp_path / "small.yaml"), {"judge.name": "endpoint", "judge.settings.model": "m"}
    content = plan_here("simpo")

    def nodes(**answers: float) -> dict[tuple[str, int], dict[str, Node]]:
        overrides = judged | {f"answers.{key}": value for key, value in answers.items()}
        jobs = resolve(path, "simpo,dpo", seeds=[1, 2], overrides=overrides)
        tasks = make_plan(jobs, tmp_path / "runs", like=content).tasks
        return {("start" if t.kind == "start" else t.job.loss, t.job.seed): dict(t.nodes) for t in tasks if t.nodes}

    drawn = nodes(temperature=0.8)
    assert {who: of["answers"].causes["seed"] for who, of in drawn.items() if "answers" in of} == {
        ("start", START_SEED): START_SEED, ("simpo", 1): 1, ("simpo", 2): 2, ("dpo", 1): 1, ("dpo", 2): 2
    }  # fmt: skip
    assert drawn["simpo", 1]["answers"].name == drawn["dpo", 1]["answers"].name  # losses of one seed pair
    theirs = drawn["start", START_SEED]["answers"].name
    for run in ("simpo", 1), ("dpo", 2):  # a judge that compares shows the start model's one set of answers
        assert drawn[run]["start:answers"].name == theirs and drawn[run]["judge"].causes["start"].endswith(theirs)

    def names(**answers: float) -> set[str]:
        return {of["answers"].name for of in nodes(**answers).values() if "answers" in of}

    assert len(names(temperature=0.8, seed=5)) == 1
    assert len(names(temperature=0.0) | names(temperature=0.0, seed=5, top_p=0.9)) == 1


def test_a_reference_in_every_step_is_a_run_of_its_own_and_only_where_a_loss_reads_one(setting, tmp_path) -> None:
    def job(loss: str, **overrides: str) -> Job:
        return resolve(
            str(tmp_path / "small.yaml"), loss, overrides={k.replace("__", "."): v for k, v in overrides.items()}
        )[0]

    assert job("simpo", train__reference="every_step").key == job("simpo").key
    live, stored = job("kto", train__reference="every_step"), job("kto")
    assert live.key != stored.key and live.values()["train"]["reference"] == "every_step"
    assert "reference" not in stored.train.causes()  # the names of runs from before there was a choice
    assert reference.sets_of(live, "loss", ("train", "heldout")) == ["heldout"]
    assert reference.sets_of(stored, "loss", ("train", "heldout")) == ["heldout", "pairs", "mismatched"]


def test_taking_start_and_average_anew_is_no_move_of_the_reference(setting, tmp_path) -> None:
    (job,) = resolve(str(tmp_path / "small.yaml"), "bema(dpo)", overrides={"bema.after": 2, "bema.every": 100})
    assert "moves behind none of 9 steps" in _how_it_moves(get_loss(job.loss), job, 9)


def test_a_reference_that_moves_is_computed_in_every_step_whatever_the_setting_says(setting, tmp_path) -> None:
    def jobs(**overrides: Any) -> list[Job]:
        changes = {k.replace("__", "."): v for k, v in overrides.items()}
        return resolve(str(tmp_path / "small.yaml"), "dpo, tr(kto)", overrides=changes)

    for how in ("cached", "every_step"):
        _, moving = jobs(train__reference=how)
        assert moving.train.reference == "every_step" and moving.key == jobs()[1].key
        assert moving.origin["train.reference"] == "tr(kto): its reference moves"
    assert jobs()[0].train.reference == "cached" and "train.reference" not in jobs()[0].origin
    assert reference.sets_of(moving, "loss", ("train", "heldout")) == ["heldout"]  # of the start model
    assert jobs(tr__every=3)[1].key != moving.key == jobs(tr__every=512)[1].key
    told = [_how_it_moves(get_loss(job.loss), job, 9) for job in (jobs(tr__every=4)[1], jobs(tr__every=9)[1])]
    assert "moves behind 2 of 9 steps, so a second model" in told[0] and "behind none of 9 steps" in told[1]
    with pytest.raises(PobenchError, match=r"train.adapter: tr\(kto\) moves its reference weight by weight"):
        jobs(train__adapter={"r": 4})


def test_a_value_models_rate_is_the_policys_or_its_own_and_counts_for_losses_that_have_one(setting, tmp_path) -> None:
    def jobs(**overrides: Any) -> list[Job]:
        changes = {k.replace("__", "."): v for k, v in overrides.items()}
        return resolve(str(tmp_path / "small.yaml"), "dpo, dro_v", overrides=changes)

    (plain, valued), (same, own) = jobs(), jobs(train__value_learning_rate=0.5)
    assert plain.train.value_learning_rate is None and "value_learning_rate" not in plain.train.causes()
    assert plain.key == same.key and valued.key != own.key
    assert (valued.train.value_learning_rate, own.train.value_learning_rate) == (valued.train.lr, 0.5)
    assert jobs(dro_v__value_learning_rate=0.5)[1].key == own.key
    with pytest.raises(
        PobenchError, match=r"^train.adapter: dro_v trains a value model beside the policy, a copy of it"
    ):
        jobs(train__adapter={"r": 4})


def test_a_run_says_how_its_reference_came_about_and_what_it_took_beside_the_steps(work_here, tmp_path) -> None:
    for how in ("cached", "every_step"):
        work_here("dpo", ("train",), train__reference=how)
    runs = load_frames(tmp_path / "runs")["runs"].query("kind == 'loss'")
    seconds = runs.set_index("reference")["reference_seconds"].to_dict()
    assert seconds.keys() == {"cached", "every_step"} and seconds["cached"] > 0 == seconds["every_step"]


@pytest.mark.slow
def test_python_runs_what_the_command_line_runs(setting, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    jobs = resolve(str(tmp_path / "small.yaml"), "simpo")
    plan = make_plan(jobs, tmp_path / "runs")
    assert [o.status for o in execute(plan)] == ["finished", "finished"]
    again = make_plan(jobs, tmp_path / "runs")
    assert [o.status for o in execute(again)] == ["skipped", "skipped"] and not again.left
