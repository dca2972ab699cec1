"""What SLURM, Ray and launchers are told: scripts and commands as text, and faults of `--executor-set`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from pobench.errors import PobenchError
from pobench.runs import processes
from pobench.runs.executor import make_executor
from pobench.runs.executors import slurm
from pobench.runs.jobs import JobFolder
from pobench.runs.remote import Uses


def script(
    folder: Path, settings: dict[str, object], after: tuple[str, ...] = (), uses: Uses = Uses.NODES
) -> list[str]:
    """The lines that sbatch gets."""
    text = pytest.importorskip("submitit.slurm.slurm")
    folder = folder / "simpo-0123456789ab.train" / "1"
    options = make_executor("slurm", settings).options(JobFolder(folder), after, uses)  # type: ignore[attr-defined]
    return str(text._make_sbatch_string("python -m work", folder, **options)).splitlines()


def test_a_script_says_where_how_long_behind_what_and_what_warns_it(tmp_path) -> None:
    lines = script(
        tmp_path, {"partition": "gpu", "gpus_per_node": 8, "time": "1-12:30:00", "mem": "200G"}, ("11", "12")
    )
    for line in (
        *("partition=gpu", "gpus-per-node=8", "time=2190", "mem=200G", "dependency=afterany:11:12"),
        *("signal=USR2@120", "requeue", "nodes=1", "ntasks-per-node=1", "job-name=simpo-0123456789ab.train"),
    ):
        assert f"#SBATCH --{line}" in lines, line
    assert any(line.endswith(".train/1/%j_0_log.err") for line in lines), "logs lie beside job.json"


def test_what_is_cut_into_shards_gets_all_gpus_of_one_node_and_what_one_process_does_gets_one(tmp_path) -> None:
    settings = {"gpus_per_node": 8, "nodes": 2, "setup": "module load cuda"}
    assert {"#SBATCH --gpus-per-node=8", "#SBATCH --nodes=2", "module load cuda"} <= set(script(tmp_path, settings))
    assert any("--kill-on-bad-exit=1" in line for line in script(tmp_path, settings)), (
        "no node waits for one that failed"
    )
    assert {"#SBATCH --gpus-per-node=8", "#SBATCH --nodes=1"} <= set(script(tmp_path, settings, uses=Uses.NODE))
    assert {"#SBATCH --gpus-per-node=1", "#SBATCH --nodes=1"} <= set(script(tmp_path, settings, uses=Uses.DEVICE))
    assert not any("gpus" in line for line in script(tmp_path, {}))


@pytest.mark.parametrize(("given", "minutes"), [(90, 90), ("90:00", 90), ("02:00:01", 121), ("2-00:00:00", 2880)])
def test_time_is_minutes_or_as_sbatch_writes_it(given, minutes) -> None:
    assert make_executor("slurm", {"time": given}).time == minutes  # type: ignore[attr-defined]


def test_everything_wrong_with_an_executor_is_said_at_once(pobench_cli) -> None:
    arguments = ["run", "--setting", "tiny", "--losses", "dpoo", "--executor", "slurm"]
    status, _, err = pobench_cli(*arguments, "--executor-set", "partitoin=gpu", "--executor-set", "time=soon")
    assert (
        status == 2
        and "'dpo'" in err
        and "partitoin: unknown key; did you mean 'partition'?" in err
        and "'soon'" in err
    )
    status, _, err = pobench_cli("run", "--setting", "tiny", "--executor", "slrum")
    assert status == 2 and "unknown executor 'slrum'; did you mean 'slurm'?" in err
    status, _, err = pobench_cli("run", "--setting", "tiny", "--executor-set", "partition=gpu")
    assert status == 2 and "local has no settings but --parallel" in err
    status, _, err = pobench_cli("run", "--setting", "tiny", "--executor", "ray", "--parallel", "4")
    assert status == 2 and "--parallel 4: it divides this machine" in err


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it(name, package, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == package else found(n, *rest))
    (fault, *_) = make_executor(name, {}).faults(False)
    assert fault == f"--executor {name}: {package} is not installed; pip install 'pobench[{name}]'"


def test_the_queue_tells_what_waits_and_what_runs_and_no_answer_is_not_lost(monkeypatch) -> None:
    monkeypatch.setattr(slurm, "_call", lambda *command: "7|PENDING\n8|RUNNING\n9|COMPLETING\n10|REQUEUED\n")
    cluster = make_executor("slurm", {})
    assert cluster.states(["7", "8", "10", "11"]) == {"7": "waiting", "8": "running", "10": "waiting"}
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(PobenchError, match="squeue"):
        cluster.states(["7"])


def test_each_of_several_machines_launches_its_part(monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_MACHINES", json.dumps({"count": 2, "rank": 1, "main": "node7", "port": 21234}))
    assert " ".join(processes.accelerate_options(4, any_port=True)) == (
        "--num_processes 8 --multi_gpu --num_machines 2 --machine_rank 1 --main_process_ip node7 --main_process_port 21234"
    )
    assert " ".join(processes.torch_options(4)) == (
        "--nnodes 2 --node-rank 1 --master-addr node7 --master-port 21234 --nproc-per-node 4"
    )
    monkeypatch.delenv("POBENCH_MACHINES")
    assert processes.torch_options(4) == ["--standalone", "--nproc-per-node", "4"]
