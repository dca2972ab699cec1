"""Losses judged against each other: each pair once, by name of its content, and what is left when something changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from openai_server import OpenAIServer, says

from pobench.data.rows import Message
from pobench.errors import PobenchError
from pobench.judging.pairwise import Comparison
from pobench.judging.rehearsed import Rehearsed
from pobench.registry import load_plugin
from pobench.results.load import load_frames
from pobench.results.run_folder import RunFolder
from pobench.runs import execute as execution
from pobench.runs import stages
from pobench.runs.execute import execute
from pobench.runs.opponents import with_opponents
from pobench.runs.plan import Plan, describe, estimate, make_plan
from pobench.runs.rehearsal import rehearse
from pobench.runs.worker import run
from pobench.settings.resolve import resolve

JUDGE = """
import os
from pobench.registry import register_judge

class LastWord:
    name = "last-word"
    def judge(self, prompt, a, b):
        with open(os.environ["ASKED"], "a") as file:
            file.write("asked\\n")
        return 0.5 + 0.5 * ((b > a) - (b < a))

@register_judge("last-word", compares=True, free=False)
def last_word(*, edition: int = 1):
    return LastWord()
"""
LOSSES = ("dpo", "ipo", "simpo")


@pytest.fixture(scope="module")
def last_word(tmp_path_factory) -> None:
    """A judge that compares by the alphabet, and writes down that it was asked."""
    file = tmp_path_factory.mktemp("plugin") / "judge.py"
    file.write_text(JUDGE)
    load_plugin(file)


@pytest.fixture
def plan_pairs(setting, last_word, tmp_path: Path, monkeypatch) -> Callable[..., Plan]:
    """A plan of several losses with a judge that compares, whose tasks `execute` will do in this process."""
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(execution, "_fork", run)
    loud = {**setting["train"], "lr": 0.05, "epochs": 3}  # so that answers change
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**setting, "train": loud}))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked.txt"))

    def plan(losses: str, opponents: str = "all", names: Any = stages.DEFAULT, **overrides: Any) -> Plan:
        values = {"judge.name": "last-word", **{key.replace("__", "."): value for key, value in overrides.items()}}
        named, opponents = with_opponents(losses, opponents)
        jobs = resolve(str(tmp_path / "small.yaml"), named, seeds=[1], overrides=values)
        return make_plan(jobs, tmp_path / "runs", names, opponents=opponents)

    return plan


@pytest.fixture
def trained(plan_pairs, tmp_path: Path, tmp_path_factory) -> None:
    """The three losses, judged beside the start model alone: made once, and found by content wherever they are copied."""
    made = tmp_path_factory.getbasetemp() / "three-losses"
    if not made.exists():
        done(plan_pairs(",".join(LOSSES), "start"))
        shutil.copytree(tmp_path / "runs", made)
        (tmp_path / "asked.txt").unlink()
    else:
        shutil.copytree(made, tmp_path / "runs")
    assert not plan_pairs(",".join(LOSSES), "start").left


def test_a_rehearsal_compares_losses_with_each_other_too(plan_pairs, tmp_path) -> None:
    values = {"judge.name": "last-word", "data.max_length": 64, "data.max_prompt_length": 50}
    rehearsed = rehearse(resolve(str(tmp_path / "small.yaml"), "dpo,simpo", seeds=[1], overrides=values))
    assert {job.judge.name for job in rehearsed} == {"rehearsed"}, (
        "no judge that asks anybody, and still one that compares"
    )
    plan = make_plan(rehearsed, tmp_path / "rehearsal", opponents="all")
    assert pairs_left(plan) == ["dpo against simpo, seed 1"]


def test_the_rehearsed_judge_flips_and_fails_now_and_then() -> None:
    shown = [Comparison((Message("user", f"q{k}"),), "a", f"b{k}") for k in range(200)]
    verdicts = Rehearsed().judge_many(shown)
    assert str(verdicts) == str(Rehearsed().judge_many(shown)), "the same each time; as text, since nan is no nan"
    read = [v for v in verdicts if v.probability == v.probability]
    assert 120 < len(read) < 200 and {v.flipped for v in read} == {0.0, 1.0}
    assert Rehearsed().judge_many([Comparison((), "same", "same")])[0].probability == 0.5


def judged(tmp_path: Path) -> int:
    file = tmp_path / "asked.txt"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def pairs_left(plan: Plan) -> list[str]:
    return [task.title for task in plan.left if task.kind == "pair"]


def done(plan: Plan) -> None:
    failed = [outcome.reason for outcome in execute(plan) if outcome.status == "failed"]
    assert not failed, failed


def test_every_pair_is_judged_once_and_a_later_loss_meets_those_that_are_there(plan_pairs, trained, tmp_path) -> None:
    first = plan_pairs("simpo,dpo")
    assert pairs_left(first) == ["dpo against simpo, seed 1"], "in one order, whatever the order of the losses"
    done(first)
    once = judged(tmp_path)
    assert not plan_pairs("dpo,simpo").left, "nothing is left, in either order"

    later = plan_pairs("simpo,dpo,ipo")
    assert pairs_left(later) == ["dpo against ipo, seed 1", "ipo against simpo, seed 1"]
    done(later)
    frames = load_frames(tmp_path / "runs")
    loss_of = frames["runs"].set_index("run")["loss"]
    met = frames["comparisons"]
    pairs = set(zip(met["run"].map(loss_of), met["opponent"].map(loss_of), strict=True))
    assert pairs == set(combinations(LOSSES, 2)) and not met.duplicated(["run", "opponent", "prompt", "sample"]).any()
    assert judged(tmp_path) > once

    answers = frames["answers"].set_index(["run", "prompt"])
    for row in met.itertuples():
        ours, theirs = answers.loc[(row.run, row.prompt)], answers.loc[(row.opponent, row.prompt)]
        expected = 0.5 + 0.5 * ((ours["text"] > theirs["text"]) - (ours["text"] < theirs["text"]))
        assert (row.score, row.tokens, row.opponent_tokens) == (expected, ours["tokens"], theirs["tokens"])
    assert met["score"].isin([0, 1]).any(), "the answers of two losses differ somewhere"


def test_verdicts_against_the_start_model_are_what_they_are_without_opponents(plan_pairs, trained, tmp_path) -> None:
    alone = load_frames(tmp_path / "runs")
    done(plan_pairs("simpo,dpo", "all"))
    both = load_frames(tmp_path / "runs")
    assert len(alone["comparisons"]) == 0 < len(both["comparisons"])
    for frame in ("verdicts", "scores"):
        pd.testing.assert_frame_equal(alone[frame], both[frame])
    assert set(both["verdicts"]["against"]) == {"start"} and set(both["runs"]["status"]) == {"finished"}


def test_a_named_opponent_joins_the_command_and_meets_every_other_loss(plan_pairs) -> None:
    plan = plan_pairs("simpo,ipo", "DPO")
    assert pairs_left(plan) == ["dpo against ipo, seed 1", "dpo against simpo, seed 1"]
    assert {task.job.loss for task in plan.tasks if task.kind == "loss"} == set(LOSSES)
    with pytest.raises(PobenchError, match="--opponents: unknown loss 'dpoo'; did you mean 'dpo'"):
        plan_pairs("simpo", "dpoo")
    with pytest.raises(PobenchError, match=r"--stages compare: .*name them by --opponents"):
        plan_pairs("simpo,dpo", "start", ("compare",))


def test_another_judge_judges_the_pairs_anew_beside_the_old_verdicts(plan_pairs, trained, tmp_path) -> None:
    done(plan_pairs("simpo,dpo"))
    other = plan_pairs("simpo,dpo", judge__settings__edition=2)
    assert {stage for task in other.left for stage in task.stages} == {"judge", "compare"}
    assert any("dpo against simpo, seed 1: compare is made anew" in note for note in other.notes)
    done(other)
    (pair,) = (tmp_path / "runs/small").glob("pair-*")
    assert len(list(pair.glob("compare-*/comparisons.parquet"))) == 2
    assert len(load_frames(tmp_path / "runs")["comparisons"]) == 3, "of one judge: the one that was named last"


def test_a_pair_whose_side_failed_is_left_and_the_others_go_on(plan_pairs, trained, tmp_path, monkeypatch) -> None:
    (ipo,) = (tmp_path / "runs/small").glob("ipo-*")
    shutil.rmtree(ipo)
    plan = plan_pairs("simpo,dpo,ipo")

    def broken(task: Any) -> int:
        if task.kind == "loss" and task.job.loss == "ipo" and "train" in task.stages:
            RunFolder(task.runs, task.run).fail("out of memory")
            return 1
        return run(task)

    monkeypatch.setattr(execution, "_fork", broken)
    outcomes = {outcome.title: outcome for outcome in execute(plan)}
    assert outcomes["dpo against simpo, seed 1"].status == "finished"
    for title in ("dpo against ipo, seed 1", "ipo against simpo, seed 1"):
        assert outcomes[title].reason == "ipo, seed 1: out of memory"
    frames = load_frames(tmp_path / "runs")
    status = frames["runs"].set_index("loss")["status"]
    assert (status["dpo"], status["simpo"], status["ipo"]) == ("finished", "finished", "failed")
    monkeypatch.setattr(execution, "_fork", run)
    assert pairs_left(plan_pairs("simpo,dpo,ipo")) == ["dpo against ipo, seed 1", "ipo against simpo, seed 1"]


def test_interrupted_between_two_pairs_it_judges_only_the_rest(plan_pairs, trained, tmp_path, monkeypatch) -> None:
    pairs = iter([run])

    def interrupted(task: Any) -> int:
        return next(pairs, lambda task: execution.INTERRUPTED)(task)

    monkeypatch.setattr(execution, "_fork", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(plan_pairs("simpo,dpo,ipo"))
    one = judged(tmp_path)
    monkeypatch.setattr(execution, "_fork", run)
    rest = plan_pairs("simpo,dpo,ipo")
    assert len(pairs_left(rest)) == 2
    done(rest)
    assert judged(tmp_path) > one > 0
    frames = load_frames(tmp_path / "runs")
    assert len(frames["comparisons"]) == 3 * 3, "three pairs of three prompts each"
    answers = frames["answers"].set_index(["run", "prompt"])["text"]
    met = frames["comparisons"]
    differ = [answers[r.run, r.prompt] != answers[r.opponent, r.prompt] for r in met.itertuples()]
    assert judged(tmp_path) == len(differ), "each once"


def test_a_pair_that_no_server_judged_fails_alone_and_the_next_command_pays_for_the_rest(
    plan_pairs, trained, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    where = {"judge__name": "endpoint", "judge__settings__model": "big", "judge__settings__retries": 0}
    where["judge__settings__concurrency"] = 1  # so that one refusal stops one pair

    def plan(server: OpenAIServer) -> Plan:
        return plan_pairs(",".join(LOSSES), "all", ("compare",), **where, judge__settings__base_url=server.url)

    with OpenAIServer(lambda body: says("A"), failures=[401]) as server:
        outcomes = [outcome.status for outcome in execute(plan(server)) if " against " in outcome.title]
        assert sorted(outcomes) == ["failed", "finished", "finished"]
        assert "failed" not in set(load_frames(tmp_path / "runs")["runs"]["status"]), "no run fails with its pair"
        rest = plan(server)
        assert len(pairs_left(rest)) == 1
        done(rest)
        frames, paid = load_frames(tmp_path / "runs"), server.paid
        assert not plan(server).left and server.paid == paid
    answers, met = frames["answers"].set_index(["run", "prompt"])["text"], frames["comparisons"]
    shown = {(row.prompt, answers[row.run, row.prompt], answers[row.opponent, row.prompt]) for row in met.itertuples()}
    assert paid == 2 * len({(prompt, frozenset(both)) for prompt, *both in shown if both[0] != both[1]}) > 0
    assert set(met["score"]) == {0.5}
    assert (met["flipped"] == 1).any(), "a judge of places"


def test_other_answers_of_one_side_are_judged_anew_and_no_old_verdict_stands(plan_pairs, trained, tmp_path) -> None:
    done(plan_pairs("simpo,dpo"))
    (answers,) = (tmp_path / "runs/small").glob("simpo-*/answers-*/answers.parquet")
    answers.write_bytes(answers.read_bytes()[:-1] + b"x")
    damaged = plan_pairs("simpo,dpo")
    assert pairs_left(damaged) == ["dpo against simpo, seed 1"]
    before = judged(tmp_path)
    done(damaged)
    assert judged(tmp_path) == before, "the answers come out the same, so what was paid for stands"


def test_a_dry_run_counts_pairs_times_prompts_times_two_orders(plan_pairs) -> None:
    alone, both = estimate(plan_pairs("simpo,dpo,ipo", "start")), estimate(plan_pairs("simpo,dpo,ipo", "all"))
    assert alone.judge_calls == 3 * 3 * 2, "three losses beside the start model, three prompts, two orders"
    assert both.judge_calls == alone.judge_calls + 3 * 3 * 2, "and three pairs"
    kinds = [job["kind"] for job in describe(plan_pairs("simpo,dpo,ipo"))["jobs"]]
    assert kinds == ["reference", "start", *["loss"] * 3, *["pair"] * 3]


def test_a_judge_that_scores_single_answers_makes_no_pairs_and_says_so(plan_pairs) -> None:
    plan = plan_pairs("simpo,dpo", judge__name="verifiable")
    assert not pairs_left(plan)
    (note,) = [note for note in plan.notes if "--opponents" in note]
    assert "the judge verifiable scores every answer by itself" in note
    (note,) = [note for note in plan_pairs("simpo").notes if "--opponents" in note]
    assert "no two losses" in note


def test_the_command_prints_how_many_pairs_it_would_judge(plan_pairs, pobench_cli) -> None:
    changes = ("--set", "judge.name=last-word", "--seeds", "1", "--opponents", "all", "--dry-run")
    status, out, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo,dpo,ipo", *changes)
    assert status == 0, err
    assert "3 pairs of losses, 3 to judge" in out and "36 calls" in out
