"""Whole jobs whose weights are split over two processes: names, models and scores are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from two_processes import in_two_processes

from pobench.model import device
from pobench.model.load import load_outline
from pobench.runs import execute, worker
from pobench.runs.context import Context
from pobench.runs.task import Task

STAGES = ("train", "heldout")


def work(file: Path) -> None:
    task = Task.load(file)
    adapter = task.job.train.adapter
    if task.job.train.sharding == "fsdp2" and not (adapter and adapter.merge):
        Context.load = lambda *_: pytest.fail("one process holds the whole model")  # this process is a test's child
    assert worker.run(task) == 0


@pytest.fixture
def two_devices(monkeypatch) -> None:
    """Jobs are shared by two forked processes."""
    monkeypatch.setenv(device.PROCESSES, "2")
    monkeypatch.setattr(execute, "launch", lambda module, file: in_two_processes(work, file) or 0)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "model").glob("*.safetensors")
    return load_file(file)


def alike(one: Path, two: Path) -> None:
    weights, others = weights_of(one), weights_of(two)
    assert weights.keys() == others.keys()
    difference = torch.cat([(weights[k] - others[k]).flatten() for k in weights]).norm()
    assert difference <= 1e-5 * torch.cat([w.flatten() for w in weights.values()]).norm()
    for name in {"config.json", "generation_config.json", "adapter_config.json"}:
        assert (one / "model" / name).is_file() == (two / "model" / name).is_file()
        assert not (one / "model" / name).is_file() or json.loads((one / "model" / name).read_text()) == json.loads(
            (two / "model" / name).read_text()
        )
    frames = [pd.read_parquet(next(run.glob("heldout-*/heldout.parquet"))) for run in (one, two)]
    numbers = frames[0].select_dtypes("number").columns
    assert len(frames[0]) > 2 and (frames[0][numbers] - frames[1][numbers]).abs().max().max() < 1e-3


def test_a_job_split_over_two_processes_has_the_name_and_the_weights_of_one(
    work_here, two_devices, monkeypatch
) -> None:
    two = work_here("kto", STAGES, "two", train__sharding="fsdp2", train__checkpoint_seconds=0.0)
    monkeypatch.setenv(device.PROCESSES, "1")
    one = work_here("kto", STAGES, "one")
    assert one.name == two.name
    alike(one, two)
    assert json.loads((two / "environment.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True], ids=["beside its base", "merged"])
def test_an_adapter_over_a_split_base_is_stored_as_by_one_process(merge, work_here, two_devices, monkeypatch) -> None:
    pytest.importorskip("peft", reason="pip install 'pobench[peft]'")
    adapter = {"train__adapter": {"r": 4, "merge": merge}, "train__lr": 0.01, "train__micro_tokens": "auto"}
    two = work_here("dpo", STAGES, "two", train__sharding="fsdp2", **adapter)
    monkeypatch.setenv(device.PROCESSES, "1")
    one = work_here("dpo", STAGES, "one", **adapter)
    assert one.name == two.name
    alike(one, two)


@pytest.mark.slow
def test_weights_split_in_bf16_have_a_name_of_their_own(work_here, two_devices, monkeypatch) -> None:
    two = work_here("dpo", STAGES, "two", train__sharding="fsdp2", train__precision="bf16")
    monkeypatch.setenv(device.PROCESSES, "1")
    one = work_here("dpo", STAGES, "one", train__precision="bf16")
    assert one.name != two.name
    trained, split = (json.loads((run / "trained.json").read_text()) for run in (one, two))
    assert split["causes"]["train"] == {**trained["causes"]["train"], "gathered": "bf16"}
    assert split["step0_gap"] < 1e-2
    frame = pd.read_parquet(next(two.glob("heldout-*/heldout.parquet")))
    assert len(frame) > 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "tr(dpo)"])
def test_a_start_model_in_every_step_is_split_too_frozen_or_moved(loss, work_here, two_devices, monkeypatch) -> None:
    changes = {"tr__every": 1} if loss == "tr(dpo)" else {"train__reference": "every_step"}
    two = work_here(loss, STAGES, "two", train__sharding="fsdp2", **changes)
    monkeypatch.setenv(device.PROCESSES, "1")
    alike(work_here(loss, STAGES, "one", **changes), two)


def test_an_outline_has_no_memory_for_weights_and_is_refused_where_names_differ(setting, tmp_path) -> None:
    outline = load_outline(tmp_path / "model", dtype=torch.float32)
    assert outline is not None
    weights = list(outline.model.parameters())
    assert sum(p.untyped_storage().nbytes() for p in weights) == 4 * len(weights) < sum(p.nbytes for p in weights)
    assert outline.model.lm_head.weight is outline.model.model.embed_tokens.weight
    about = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**about, "num_hidden_layers": 3}))
    assert load_outline(tmp_path / "model", dtype=torch.float32) is None


def test_deepspeed_is_refused_before_anything_is_loaded(plan_here, monkeypatch, tmp_path) -> None:
    config = tmp_path / "accelerate.yaml"
    config.write_text(yaml.safe_dump({
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "num_processes": 8, "use_cpu": False,
        "deepspeed_config": {"zero_stage": 3},
    }))  # fmt: skip
    monkeypatch.setattr("accelerate.commands.config.default_config_file", str(config))
    monkeypatch.setattr("pobench.runs.plan.check_model", lambda *_, **__: pytest.fail("a model is read"))
    with pytest.raises(device.PobenchError, match="asks for DeepSpeed, which pobench does not use: choose FSDP"):
        plan_here("simpo", STAGES)


def test_an_accelerate_config_decides_processes_and_sharding_unless_the_command_does(monkeypatch, tmp_path) -> None:
    config = tmp_path / "accelerate.yaml"
    config.write_text(yaml.safe_dump({
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "num_processes": 4, "use_cpu": False,
        "fsdp_config": {"fsdp_version": 2},
    }))  # fmt: skip
    monkeypatch.setattr("accelerate.commands.config.default_config_file", str(config))
    monkeypatch.delenv(device.PROCESSES, raising=False)
    assert device.layout_of_devices() == (4, True)
    monkeypatch.setenv(device.PROCESSES, "1")  # as --devices sets it; taken back at the end
    device.use_devices(2)
    assert device.layout_of_devices() == (2, True)


def test_the_plan_says_how_many_devices_and_that_weights_are_split(pobench_cli, setting, monkeypatch) -> None:
    monkeypatch.setenv(device.PROCESSES, "1")
    command = ("run", "--setting", "small.yaml", "--losses", "simpo", "--dry-run", "--json", "--devices", "2")
    for sharding in ("none", "fsdp2"):
        status, out, err = pobench_cli(*command, "--set", f"train.sharding={sharding}")
        assert status == 0, err
        cost = json.loads(out)["cost"]
        assert cost["devices"] == 2 and cost["sharded"] == (sharding == "fsdp2")


@pytest.mark.slow
def test_a_rehearsal_plays_a_whole_setting_through_in_two_processes(pobench_cli, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv(device.PROCESSES, "1")
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    command = ("run", "--setting", "tiny", "--losses", "simpo,dpo", "--rehearse", "--devices", "2")
    status, _, err = pobench_cli(*command, "--set", "train.sharding=fsdp2")
    assert status == 0, err
    runs = [path.parent for path in tmp_path.glob("runs/rehearsal/*/*/trained.json")]
    assert len(runs) == 2 and (tmp_path / "runs" / "rehearsal" / "report" / "report.html").is_file()
    for run in runs:
        assert json.loads((run / "environment.json").read_text())["processes"] == 2
        assert list(run.glob("heldout-*/heldout.parquet")) and list(run.glob("judge-*"))


def processes_of(module: str) -> list[int]:
    """The processes of a job, by their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-m" in words and words[words.index(b"-m") + 1] == module.encode():
            found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_where_a_process_is_killed_the_others_end_and_the_repeated_command_continues(setting, tmp_path) -> None:
    values = {**setting, "train": {**setting["train"], "epochs": 20, "checkpoint_seconds": 0.0}}
    (tmp_path / "long.yaml").write_text(yaml.safe_dump({**values, "name": "long"}))
    command = [sys.executable, "-m", "pobench.cli", "run", "--setting", "long.yaml", "--losses", "simpo", "--stages"]
    command += ["train", "--devices", "2", "--set", "train.sharding=fsdp2"]
    environment = {**os.environ, "POBENCH_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.getcwd()}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not list(tmp_path.glob("runs/long/simpo-*/checkpoint-*")):
        time.sleep(0.02)
    mine = [pid for pid in processes_of("pobench.runs.rank") if f"{tmp_path}".encode() in cwd_of(pid)]
    assert len(mine) == 2
    os.kill(max(mine), signal.SIGKILL)
    _, err = first.communicate()
    assert first.returncode == 1 and "of 2 was killed by signal 9" in err, err
    assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    (steps,) = tmp_path.glob("runs/long/simpo-*/steps.jsonl")
    assert [json.loads(line)["step"] for line in steps.read_text().splitlines()] == list(range(1, 41))


def cwd_of(pid: int) -> bytes:
    try:
        return os.readlink(f"/proc/{pid}/cwd").encode()
    except OSError:
        return b""
