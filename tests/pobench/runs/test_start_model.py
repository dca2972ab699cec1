"""The start model of a setting with an SFT stage: made once, resumed, shared by every loss, missed where it is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pobench import identity
from pobench.data import demonstrations
from pobench.errors import PobenchError
from pobench.results.load import load_frames
from pobench.runs import start_model as start_model_module
from pobench.runs.execute import execute
from pobench.runs.plan import make_plan
from pobench.runs.rehearsal import rehearse
from pobench.runs.start_model import make_start_model, prepare_stage, stage_folder, start_model
from pobench.runs.task import Task
from pobench.runs.verify import verify
from pobench.runs.worker import run
from pobench.settings.resolve import resolve
from pobench.training import checkpoint
from tests.faults.damage import another_digit

SFT = {"lr": 1e-3, "batch_size": 4, "precision": "fp32", "checkpoint_seconds": 0.0}


@pytest.fixture
def with_sft(setting, tmp_path, monkeypatch):
    """The small setting, whose model is now the base of an SFT stage on twelve conversations; gives its jobs."""
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pobench.runs.execute._fork", run)
    turns = [("user", "say w{}"), ("assistant", "w{} w1"), ("user", "say w1"), ("assistant", "w1 w1")]
    rows = [{"messages": [{"role": r, "content": c.format(i)} for r, c in turns]} for i in range(12)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sft.yaml").write_text(
        yaml.safe_dump(
            {"extends": "small.yaml", "name": "sft", "sft": {"source": str(tmp_path / "chats.jsonl"), **SFT}}
        )
    )

    def jobs(losses: str = "simpo", **overrides):
        return resolve(
            str(tmp_path / "sft.yaml"), losses, overrides={k.replace("__", "."): v for k, v in overrides.items()}
        )

    return jobs


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_every_loss_starts_from_the_model_that_the_stage_made(with_sft, tmp_path) -> None:
    jobs = with_sft("simpo,dpo")
    plan = make_plan(jobs, tmp_path / "runs")
    assert [t.kind for t in plan.tasks] == ["sft", "reference", "start", *["loss"] * 4]
    assert plan.text().startswith("SFT on 12 conversations, 24 assistant turns, 72 tokens of them")
    for outcome in execute(plan):
        assert outcome.status == "finished", outcome.reason
    made = start_model(jobs[0])
    assert not same(weights(made), weights(tmp_path / "model"))
    steps = [json.loads(line) for line in (made.parent / "steps.jsonl").read_text().splitlines()]
    assert len(steps) == 3 and {"loss", "lr", "grad_norm", "tokens"} <= set(steps[0])
    assert sum(step["tokens"] for step in steps) == 72
    # DPO's loss is ln 2 at its first step only where policy and reference are one model: the stage's.
    dpo = next((tmp_path / "runs" / "sft").glob("dpo-*"))
    first = json.loads((dpo / "steps.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert set(load_frames(tmp_path / "runs")["runs"].kind) == {"start", "loss"}
    again = make_plan(jobs, tmp_path / "runs")
    assert not again.left and again.tasks[0].run == plan.tasks[0].run


def test_an_interrupted_stage_resumes_bit_for_bit(with_sft, tmp_path, monkeypatch) -> None:
    (job,) = with_sft()
    folder, _ = prepare_stage(job)
    make_start_model(job, folder)
    undisturbed = weights(start_model(job))

    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "other"))
    folder, _ = prepare_stage(job)

    class Killed(BaseException):
        pass

    logged = []

    def killed_after_the_second(row):
        logged.append(row["step"])
        if len(logged) == 2:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(folder, "log_step", killed_after_the_second)
        make_start_model(job, folder)
    assert [p.name for p in folder.path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert checkpoint.about(folder.path / "checkpoint-1")["content"] == folder.path.name
    with pytest.raises(PobenchError, match="not made yet"):
        start_model(job)
    make_start_model(job, folder)
    assert same(weights(start_model(job)), undisturbed)
    assert not list(folder.path.glob("checkpoint-*"))


def test_a_damaged_start_model_is_made_again_and_damaged_conversations_are_read_again(with_sft, tmp_path) -> None:
    jobs = with_sft()
    folder, _ = prepare_stage(jobs[0])
    make_start_model(jobs[0], folder)
    made = (*folder.path.glob("demonstrations.*"), folder.path / "model/model.safetensors")
    before = {path: path.read_bytes() for path in made}
    for name in ("trained.json", "model/model.safetensors", "demonstrations.parquet", "read.json"):
        another_digit(folder.path / name)
        assert any(Path(name).name in fault for fault in verify(tmp_path / "runs").faults), name
        plan = make_plan(jobs, tmp_path / "runs", ("sft",))
        trained = name in ("trained.json", "model/model.safetensors")
        assert bool(plan.left) is trained is any(name in note for note in plan.notes)
        assert {outcome.status for outcome in execute(plan)} <= {"finished", "skipped"}
        assert all(path.read_bytes() == content for path, content in before.items())
        assert verify(tmp_path / "runs").faults == []
    another_digit(start_model(jobs[0]) / "model.safetensors")
    with pytest.raises(PobenchError, match=r"model\.safetensors.* is damaged.*\n.*add the stage"):
        make_plan(jobs, tmp_path / "runs", ("train",))


def test_what_decides_the_start_model_names_its_folder_and_nothing_else_does(with_sft, tmp_path) -> None:
    (job,) = with_sft()
    folder = prepare_stage(job)[0].path
    harmless = with_sft("dpo", train__lr=1e-5, sft__checkpoint_seconds=9, dpo__beta=0.3)[0]
    assert prepare_stage(harmless)[0].path == folder
    assert prepare_stage(with_sft(sft__lr=1e-2)[0])[0].path != folder
    (tmp_path / "renamed.jsonl").write_bytes((tmp_path / "chats.jsonl").read_bytes())
    assert prepare_stage(with_sft(sft__source=str(tmp_path / "renamed.jsonl"))[0])[0].path == folder
    (tmp_path / "chats.jsonl").write_text((tmp_path / "renamed.jsonl").read_text().replace("w1", "w2"))
    assert prepare_stage(job)[0].path != folder


def test_the_code_that_reads_conversations_names_the_start_model(with_sft, monkeypatch) -> None:
    (job,) = with_sft()
    before = stage_folder(job)
    assert stage_folder(job).path == before.path
    monkeypatch.setattr(start_model_module, "reader_digest", lambda: "of another release")
    assert stage_folder(job).path != before.path
    read = {path.stem for path in identity._files(Path(demonstrations.__file__))}
    assert {"demonstrations", "chat", "rows", "audit"} <= read


def test_without_the_stage_and_without_its_model_there_is_one_plain_message(with_sft, pobench_cli, tmp_path) -> None:
    status, _, err = pobench_cli("run", "--setting", "sft.yaml", "--losses", "simpo", "--stages", "train")
    assert status == 2 and "is not made yet: add the stage (--stages sft,train,…)" in err and err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    status, _, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo", "--stages", "sft")
    assert status == 2 and "has no `sft` section" in err


def test_a_model_that_is_named_is_a_finished_start_model(with_sft, tmp_path) -> None:
    (job,) = resolve(str(tmp_path / "sft.yaml"), "simpo", model=str(tmp_path / "model"))
    assert job.sft is None and start_model(job) == tmp_path / "model"


def test_a_setting_without_the_stage_keeps_the_folders_of_its_runs(setting, tmp_path) -> None:
    (job,) = resolve(str(tmp_path / "small.yaml"), "simpo")
    assert "sft" not in job.values()


def test_a_task_with_a_stage_survives_the_trip_through_a_file(with_sft, tmp_path) -> None:
    (job,) = with_sft()
    task = Task(job, "sft", tmp_path / "sft", "start-1", ("sft",), tmp_path / "sft" / "start-1")
    task.dump(tmp_path / "task.json")
    assert Task.load(tmp_path / "task.json") == task and task.run == "start-1"


def test_a_dry_run_tells_of_the_stage_and_writes_nothing(with_sft, pobench_cli, tmp_path) -> None:
    status, out, err = pobench_cli("run", "--setting", "sft.yaml", "--losses", "simpo", "--dry-run")
    assert status == 0, err
    assert "SFT of" in out and "sft.lr = 0.001" in out
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["mistral-base-sft", "llama3-base-sft"])
def test_the_papers_base_settings_rehearse_their_stage(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    (job,) = rehearse(resolve(name, "simpo"))
    folder, demonstrations = prepare_stage(job)
    assert demonstrations.turns > len(demonstrations.groups)  # conversations have several turns
    make_start_model(job, folder)
    assert start_model(job).is_dir()


def test_a_rehearsal_catches_a_column_that_the_stage_cannot_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    wrong = {"sft.source": "princeton-nlp/llama3-ultrafeedback", "sft.split": "train", "sft.on_bad_row": "stop"}
    jobs = rehearse(resolve("mistral-base-sft", "simpo", overrides=wrong))
    with pytest.raises(
        PobenchError, match="row 1: expected `messages`, or `prompt` and `response`; got prompt_id, prompt"
    ):
        make_plan(jobs, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_command_makes_the_start_model_alone_and_then_uses_it(with_sft, pobench_cli, tmp_path) -> None:
    status, out, err = pobench_cli("run", "--setting", "sft.yaml", "--losses", "simpo", "--stages", "sft")
    assert status == 0 and "start model: " in out, err
    assert [path.name for path in (tmp_path / "runs").glob("*/*")] == ["command.json"], (
        "no run, but what the command did"
    )
    outcomes = execute(make_plan(with_sft(), tmp_path / "runs"))
    assert [o.status for o in outcomes] == ["skipped", "finished", "finished"]


@pytest.mark.slow
def test_two_processes_make_the_start_model_that_one_does(with_sft, pobench_cli, tmp_path, monkeypatch) -> None:
    logged, names = [], set()
    monkeypatch.setenv("POBENCH_PROCESSES", "1")  # as --devices sets it; taken back at the end
    for way, options in {"one": ("1",), "two": ("2",), "split": ("2", "--set", "sft.sharding=fsdp2")}.items():
        monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / way))
        command = ("run", "--setting", "sft.yaml", "--losses", "simpo", "--stages", "sft", "--devices", *options)
        status, _, err = pobench_cli(*command)
        assert status == 0, err
        (steps,) = (tmp_path / way).glob("sft/*/steps.jsonl")
        assert (steps.parent / "model" / "model.safetensors").is_file()
        logged.append([json.loads(line) for line in steps.read_text().splitlines()])
        names.add(steps.parent.name)
    assert len(names) == 1
    one, two, split = logged
    assert len(one) == len(two) == len(split) == 3
    for a, b, c in zip(one, two, split, strict=True):
        assert a["tokens"] == b["tokens"] == c["tokens"]
        for name in ("loss", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4) == pytest.approx(c[name], rel=1e-4), name
