"""Iterative training: each round's pairs are answers of the last round's model, and it trains from that model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import yaml

from pobench.data.round_prompts import round_rows
from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError
from pobench.registry import ExecutorType, executors, losses, register_loss
from pobench.results.run_folder import RunFolder
from pobench.runs import execute
from pobench.runs import job as job_of_a_node
from pobench.runs.execute import plan_and_execute
from pobench.runs.executor import make_executor
from pobench.runs.plan import describe, make_plan
from pobench.runs.remote import Remote
from pobench.runs.rounds import in_rounds
from pobench.runs.task import Task
from pobench.runs.worker import run as work
from pobench.settings.resolve import resolve
from pobench.sources import weights_digest
from pobench.types import LossOutput

STAGES = ("onpolicy", "train", "heldout")


class World:
    """A small setting, and the runs of two losses over two rounds."""

    def __init__(self, folder):
        self.folder, self.runs = folder, folder / "runs"

    def jobs(self, losses="dpo,simpo", **overrides):
        values = {key.replace("__", "."): value for key, value in overrides.items()}
        return resolve(str(self.folder / "small.yaml"), losses, overrides=values)

    def plan(self, *args, rounds=2, stages=STAGES, dry=False, **overrides):
        return make_plan(self.jobs(*args, **overrides), self.runs, stages, rounds=rounds, dry=dry)

    def run(self, *args, **overrides):
        jobs, plans = self.jobs(*args, **overrides), []

        def make():
            plans.append(make_plan(jobs, self.runs, STAGES, rounds=2))
            return plans[-1]

        return plan_and_execute(make)[1], plans

    def folders(self, loss):
        """Round → the run's folder."""
        found = [RunFolder(self.runs, f"small/{path.name}") for path in (self.runs / "small").glob(f"{loss}-*")]
        return {f.config.get("round", 1): f for f in found if f.config.get("rounds_reference") != "start"}

    def pairs(self, run):
        """The pairs that a stored run was trained on, as text."""
        return load_preferences(run.config["data"]["source"]).preferences


@pytest.fixture(scope="module")
def world(tmp_path_factory, stored_model):
    folder = tmp_path_factory.mktemp("rounds")
    shutil.copytree(stored_model, folder / "model", copy_function=shutil.copy)
    for name, count in (("ask", 30), ("prompts", 3)):
        rows = [{"id": f"{name}{i}", "prompt": f"say w{i}"} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"prompts": str(folder / "ask.jsonl"), "samples": 6, "temperature": 2.0, "max_new_tokens": 40}
    values = {
        "name": "small",
        "model": {"source": str(folder / "model")},
        "data": {"source": "not-read.jsonl"},
        "train": {"lr": 1e-3, "batch_size": 4, "precision": "fp32", "micro_tokens": 200},
        "answers": {"source": str(folder / "prompts.jsonl"), "max_new_tokens": 4, "precision": "fp32"},
        "onpolicy": {**own, "precision": "fp32", "ranker": {"name": "rehearsed"}, "held_out_fraction": 0.3},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POBENCH_CACHE", str(folder / "cache"))
        patch.setattr(execute, "_fork", lambda *tasks: max(map(work, tasks)))
        made = World(folder)
        made.outcomes, made.plans = made.run()
        yield made


def test_one_command_goes_through_all_rounds_of_every_loss(world):
    assert {o.status for o in world.outcomes} == {"finished"}, [o.reason for o in world.outcomes]
    # pairs of the start model; round 1 and the pairs of its answers can not be named before; so can round 2
    assert [plan.waits for plan in world.plans] == [True, True, True, False]
    titles = [o.title for o in world.outcomes]
    for loss in ("dpo", "simpo"):
        assert f"{loss}, seed 42" in titles and f"{loss}, seed 42, round 2" in titles
        assert f"pairs of {loss}, seed 42, round 2: answers of round 1" in titles


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_a_round_is_named_by_the_last_rounds_weights_and_by_its_own_pairs(world, loss):
    first, second = (world.folders(loss)[number] for number in (1, 2))
    assert second.config["begins"] == first.run and "begins" not in first.config
    causes = [folder.trained["causes"] for folder in (first, second)]
    assert causes[1]["weights"] == first.weights != causes[0]["weights"]
    assert causes[1]["pairs"] != causes[0]["pairs"]
    data = {
        json.loads(path.read_text())["digests"]["train"] for path in (world.runs / "small").glob("data-*/data.json")
    }
    assert {c["pairs"] for c in causes} <= data
    assert "reference" not in causes[1]  # it is the model that training begins from
    recipe = json.loads((first.path.parent / second.config["data"]["source"]).with_suffix(".recipe.json").read_text())
    assert recipe["model"] == {
        "source": first.run,
        "digest": weights_digest(first.path / "model"),
        "rendering": recipe["model"]["rendering"],
    }


def test_the_models_of_two_rounds_differ_and_render_prompts_alike(world):
    from pobench.data.chat import Chat

    folders = world.folders("dpo")
    models = [world.folder / "model", *(folders[number].path / "model" for number in (1, 2))]
    assert len({weights_digest(model) for model in models}) == 3
    (job,) = world.jobs("dpo")
    assert len({Chat.of(model, job.model).digest for model in models}) == 1


def test_all_rounds_are_measured_on_the_same_held_out_pairs_against_the_start_model(world):
    every = [folder for loss in ("dpo", "simpo") for folder in world.folders(loss).values()]
    held = [folder.node(folder.shown["heldout"]).about["causes"] for folder in every]
    assert len(held) == 4 and all(causes == held[0] for causes in held)
    frames = [folder.node(folder.shown["heldout"]).read_frame("heldout") for folder in every]
    assert len({tuple(frame["pair"]) for frame in frames}) == 1
    assert all((frame["reference_chosen_logp"] == frames[0]["reference_chosen_logp"]).all() for frame in frames)
    held_out = {p.prompt for p in load_preferences(every[0].config["data"]["held_out"]).preferences}
    for folder in every:
        trained = {pair.prompt for pair in world.pairs(folder)}
        assert trained and trained.isdisjoint(held_out)


def test_each_round_asks_its_part_of_the_prompts_or_all_of_them(world):
    (job,) = in_rounds(world.jobs("dpo"), 3)
    rounds = [replace(job, round=replace(job.round, number=number)) for number in (1, 2, 3)]
    asked = [[row["id"] for row in round_rows(each)] for each in rounds]
    assert asked[0][:2] == ["ask0", "ask3"] and sorted(id for ids in asked for id in ids) == sorted(
        f"ask{i}" for i in range(30)
    )
    (job,) = in_rounds(world.jobs("dpo", rounds__prompts="all"), 3)
    assert len(round_rows(job)) == 30
    held_out = world.folders("dpo")[1].config["data"]["held_out"]
    left = round_rows(replace(job, round=replace(job.round, number=2, held_out=held_out)))
    gone = {p.prompt[-1].content for p in load_preferences(held_out).preferences} | {"say w0", "say w1", "say w2"}
    assert {row["prompt"] for row in left} == {f"say w{i}" for i in range(30)} - gone
    with pytest.raises(PobenchError, match="none is left for round 31 of 31"):
        round_rows(
            replace(
                job,
                round=replace(job.round, number=31, of=31),
                rounds=job.rounds.model_copy(update={"prompts": "split"}),
            )
        )


def test_prompts_that_every_round_asks_get_other_random_numbers(world):
    from pobench.runs.onpolicy import decoding_of

    (job,) = in_rounds(world.jobs("dpo"), 2)
    assert decoding_of(job).seed == 0 and decoding_of(replace(job, round=replace(job.round, number=2))).seed == 1


def test_the_first_round_with_all_prompts_is_the_run_that_the_stage_alone_makes(world):
    alone = world.plan(rounds=1, rounds__prompts="all")
    rounds = world.plan(rounds=2, rounds__prompts="all")
    assert [task.run for task in alone.tasks] == [task.run for task in rounds.tasks]


def test_a_repeated_command_does_nothing_in_one_plan(world):
    outcomes, plans = world.run()
    assert {o.status for o in outcomes} == {"skipped"} and len(plans) == 1


def test_a_command_that_was_cut_off_goes_on_in_its_round(world):
    second = world.folders("simpo")[2]
    before = second.weights
    (second.path / "trained.json").rename(second.path / "kept.json")
    plan = world.plan()
    assert [(task.run, task.stages) for task in plan.left] == [(second.run, ("train",)), (second.run, ("heldout",))]
    shutil.rmtree(second.path)
    outcomes, plans = world.run()
    assert [o.run for o in outcomes if o.status == "finished"] == [second.run] and len(plans) == 1
    assert RunFolder(world.runs, second.run).weights == before


def test_a_model_that_was_removed_is_missed_only_where_a_round_begins_from_it(world):
    first, second = (world.folders("simpo")[number] for number in (1, 2))
    (first.path / "model").rename(first.path / "elsewhere")
    (second.path / "trained.json").rename(second.path / "kept.json")
    with pytest.raises(PobenchError, match=f"round 2 begins from the model of {first.run}, which is gone"):
        world.plan()
    (second.path / "kept.json").rename(second.path / "trained.json")
    assert not world.plan().left
    (first.path / "elsewhere").rename(first.path / "model")


def test_pairs_of_a_round_that_are_gone_are_made_anew_by_the_model_of_the_round_before(world):
    second = world.folders("dpo")[2]
    pairs = second.path.parent / second.config["data"]["source"]
    whole = pairs.read_bytes()
    pairs.write_bytes(whole[:-9])
    plan = world.plan()
    assert plan.waits and [task.title for task in plan.left] == ["pairs of dpo, seed 42, round 2: answers of round 1"]
    outcomes, _ = world.run()
    assert pairs.read_bytes() == whole and {o.status for o in outcomes} == {"finished", "skipped"}
    assert [o.kind for o in world.plan().left] == []


def test_a_loss_with_a_reference_may_be_compared_with_the_start_model_in_every_round(world):
    last, start = world.plan(), world.plan(rounds__reference="start")
    ways = {}
    for name, plan in (("last", last), ("start", start)):
        ways[name] = {
            t.job.loss: t for t in plan.tasks if t.kind == "loss" and t.job.round.number == 2 and "heldout" in t.nodes
        }
    assert ways["start"]["simpo"].run == ways["last"]["simpo"].run and ways["start"]["simpo"].done
    one, other = ways["last"]["dpo"], ways["start"]["dpo"]
    assert one.run != other.run and other.causes["weights"] == one.causes["weights"]
    assert other.causes["reference"] == world.folders("dpo")[1].trained["causes"]["weights"]
    reference = {name: way["dpo"].nodes["reference:pairs"].causes["weights"] for name, way in ways.items()}
    assert reference == {"last": one.causes["weights"], "start": other.causes["reference"]}
    assert one.nodes["reference:heldout"] == other.nodes["reference:heldout"]
    passes = [task for task in start.left if task.kind == "reference"]
    assert [(t.job.round.number, t.title) for t in passes] == [(1, "reference pass of the start model")]


def test_with_the_start_as_reference_the_first_step_of_a_round_has_a_margin_already(world):
    outcomes, _ = world.run("dpo", rounds__reference="start")
    assert {o.status for o in outcomes} <= {"finished", "skipped"}, [o.reason for o in outcomes]
    runs = [RunFolder(world.runs, f"small/{path.name}") for path in (world.runs / "small").glob("dpo-*")]
    second = {run.config["rounds_reference"]: run.steps() for run in runs if run.config.get("round") == 2}
    assert second["last"][0]["rewards/margins"] == 0.0 and second["last"][0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert second["start"][0]["rewards/margins"] != 0.0


def test_a_loss_that_fails_ends_its_own_rounds_and_no_others(world, monkeypatch):
    trained = []

    @register_loss("fails_later", source="a test")
    def fails_later(policy):
        if trained:
            raise PobenchError("this loss fails")
        return LossOutput(-policy.chosen.mean, policy.chosen.mean, policy.rejected.mean)

    def run(task):
        trained.append(task)
        return work(task)

    monkeypatch.setattr(execute, "_fork", run)
    try:
        outcomes, plans = world.run("simpo,fails_later")
    finally:
        losses._items.pop("fails_later")
    by_title = {o.title: (o.status, o.reason) for o in outcomes}
    assert by_title["fails_later, seed 42"] == ("failed", "this loss fails")
    assert by_title["simpo, seed 42, round 2"][0] == "skipped"
    assert not [title for title in by_title if title.startswith("fails_later") and "round 2" in title]
    assert len(plans) == 2  # it is tried once


@pytest.mark.parametrize(
    "stages, changes, message",
    [
        (("train", "heldout"), {}, "each round makes pairs of the last one's answers and trains on them; add onpolicy"),
        (("onpolicy", "heldout"), {}, "add train"),
        (STAGES, {"onpolicy__held_out_fraction": 0}, "held_out_fraction is 0"),
        (STAGES, {"train__adapter__r": 2}, "add --set train.adapter.merge=true"),
        ((*STAGES, "trainpairs"), {}, "rounds.reference=start"),
        (STAGES, {"onpolicy__ranker__name": None, "judge__name": None}, "names no judge to rank by"),
    ],
)
def test_rounds_that_cannot_be_are_refused_in_a_sentence(world, stages, changes, message):
    with pytest.raises(PobenchError, match=message):
        world.plan(stages=stages, **changes)


def test_values_of_the_section_are_checked_where_they_are_read(world):
    with pytest.raises(PobenchError, match=r"rounds\.reference.*last.*start"):
        world.jobs("dpo", rounds__reference="first")


def test_a_dry_run_has_every_round_and_writes_nothing(world, tmp_path):
    plan = make_plan(world.jobs("dpo"), tmp_path / "runs", STAGES, rounds=3, dry=True)
    described = describe(plan)
    titles = [job["title"] for job in described["jobs"]]
    assert titles == [
        "pairs of the start model's own answers",
        "start model",
        "dpo, seed 42",
        "pairs of dpo, seed 42, round 2: answers of round 1",
        "dpo, seed 42, round 2",
        "pairs of dpo, seed 42, round 3: answers of round 2",
        "dpo, seed 42, round 3",
    ]
    assert not plan.waits and not (tmp_path / "runs").exists()
    assert {job["state"] for job in described["jobs"]} == {"to do"}
    once = make_plan(world.jobs("dpo"), tmp_path / "runs", STAGES, dry=True)
    assert described["cost"]["disk"] > describe(once)["cost"]["disk"]


def test_losses_meet_head_to_head_with_their_last_rounds(world):
    stages = (*STAGES, "answers", "judge", "compare")
    plan = make_plan(world.jobs(judge__name="rehearsed"), world.runs, stages, opponents="all", rounds=2)
    (pair,) = (task for task in plan.tasks if task.kind == "pair")
    assert pair.sides == tuple(world.folders(loss)[2].run for loss in ("dpo", "simpo"))
    first = make_plan(world.jobs(judge__name="rehearsed"), world.runs, stages, opponents="all", rounds=3)
    assert first.waits and not [task for task in first.tasks if task.kind == "pair"]


def test_a_job_carries_its_round_to_other_processes(world, tmp_path):
    task = next(t for t in world.plan().tasks if t.kind == "loss" and t.job.round.number == 2)
    task.dump(tmp_path / "task.json")
    read = Task.load(tmp_path / "task.json")
    assert read.job.round == task.job.round and read.job.rounds == task.job.rounds and read.title == task.title


def test_the_command_adds_the_stage_that_makes_the_pairs(world, pobench_cli):
    command = (
        "run",
        "--setting",
        str(world.folder / "small.yaml"),
        "--losses",
        "dpo",
        "--rounds",
        "2",
        "--dry-run",
        "--json",
    )
    status, out, err = pobench_cli(*command)
    assert status == 0, err
    assert [job["left"] for job in json.loads(out)["jobs"] if job["kind"] == "onpolicy"] == [["onpolicy"], ["onpolicy"]]
    status, _, err = pobench_cli(*command, "--stages", "train")
    assert status == 2 and "add onpolicy" in " ".join(err.split())


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["tiny", "tiny-spin"])
def test_a_rehearsal_plays_two_rounds_to_the_report(pobench_cli, tmp_path, monkeypatch, setting):
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(execute, "_fork", lambda *tasks: max(map(work, tasks)))
    command = ("run", "--losses", "dpo,simpo", "--setting", setting, "--rounds", "2", "--rehearse", "--seeds", "1,2")
    status, out, err = pobench_cli(*command, "--json")
    assert status == 0, err
    said = json.loads(out)
    assert sum(o["title"].endswith(", round 2") for o in said["outcomes"]) == 4
    tables = tmp_path / f"runs/rehearsal/report/{setting}-rehearsal/tables"
    table = (tables / "rounds-table.csv").read_text()
    assert table.count("\nDPO,") == table.count("\nSimPO,") == 2
    assert "DPO (round 2)" in (tables / "main-table.csv").read_text()


class AtOnce(Remote):
    """A cluster that does a job while it is submitted."""

    name = "atonce"
    seconds = 0.0

    def submit(self, job, after, uses):
        job_of_a_node.work(job)
        return "1"

    def states(self, ids):
        return {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "atonce"])
def test_rounds_are_the_same_runs_whatever_executor_walks_them(world, tmp_path, monkeypatch, kind):
    executors.names()
    monkeypatch.setitem(executors._items, "atonce", ExecutorType("atonce", AtOnce))
    monkeypatch.setitem(executors._aliases, "atonce", "atonce")
    jobs, where = world.jobs("dpo"), make_executor(kind, {}, parallel=2 if kind == "local" else 1)
    plan, outcomes = plan_and_execute(
        lambda: make_plan(jobs, tmp_path / "runs", STAGES, rounds=2), lambda plan: execute.execute(plan, executor=where)
    )
    assert not plan.waits and {o.status for o in outcomes} == {"finished"}, [o.reason for o in outcomes]
    assert {o.run for o in outcomes if "/dpo-" in o.run} == {folder.run for folder in world.folders("dpo").values()}


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["last", "start"])
@pytest.mark.parametrize(
    "loss, values",
    [
        ("kto", {}),
        ("dpo", {"train__reference": "every_step"}),
        ("dpo", {"train__adapter__r": 2, "train__adapter__merge": True}),
        ("dpo + 0.2*sft", {"train__evaluate_every": 1}),
    ],
)
def test_every_way_to_a_reference_goes_through_rounds(world, loss, values, reference):
    outcomes, plans = world.run(loss, **values, rounds__reference=reference)
    assert {o.status for o in outcomes} <= {"finished", "skipped"}, [o.reason for o in outcomes]
    (second,) = {task.run for task in plans[-1].tasks if task.kind == "loss" and task.job.round.number == 2}
    steps = RunFolder(world.runs, second).steps()
    assert (steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)) == (reference == "last")
