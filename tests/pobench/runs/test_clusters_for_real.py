"""Real executors: submitit's own processes, Ray and SLURM on this machine. A worker is killed, nothing is lost, and nothing is
done twice."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pobench.registry import load_plugin, losses
from pobench.runs.execute import execute
from pobench.runs.executor import make_executor
from pobench.runs.jobs import JobFolder, jobs_below, states_of
from pobench.runs.pool import lives

pytestmark = pytest.mark.slow
POLL = 0.05  # seconds between two looks for an event
STEPS = 6  # 7 pairs in batches of 4, three epochs
PLUGIN = '''
import os, time
from pathlib import Path
from pobench import LossOutput, Pair, register_loss

HERE = Path(__file__).parent


def step(name, policy):
    """Write down the process, and from the second step on wait while the file `hold` is there."""
    calls = HERE / f"{name}.calls"
    with calls.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    while (HERE / "hold").exists() and len(calls.read_text().split()) > 1:
        time.sleep(0.02)
    difference = policy.chosen.mean - policy.rejected.mean
    return LossOutput(-difference, policy.chosen.mean.detach(), policy.rejected.mean.detach())


@register_loss("first", source="a test")
def first(policy: Pair) -> LossOutput:
    return step("first", policy)


@register_loss("second", source="a test")
def second(policy: Pair) -> LossOutput:
    return step("second", policy)
'''


def until(true: Callable[[], Any], what: str) -> Any:
    """Wait for an event; ten minutes end a hang."""
    began = time.monotonic()
    while not (value := true()):
        assert time.monotonic() - began < 600, f"waited for ever until {what}"
        time.sleep(POLL)
    return value


class World:
    """A plan of two trainings whose losses wait in their second step until they are let go."""

    def __init__(self, plan_here: Any, folder: Path, stages: tuple[str, ...] = ("train",)) -> None:
        self.folder, self.plan_here, self.stages = folder, plan_here, stages
        (folder / "plugin.py").write_text(PLUGIN)
        load_plugin(folder / "plugin.py")

    def plan(self) -> Any:
        how: dict[str, Any] = {"train__epochs": 3, "train__checkpoint_seconds": 0}
        plan = self.plan_here("first,second", self.stages, plugins=[str(self.folder / "plugin.py")], **how)
        for name in ("first", "second"):
            (self.folder / f"{name}.calls").unlink(missing_ok=True) if not self.steps(name) else None
        return plan

    def hold(self) -> None:
        (self.folder / "hold").touch()

    def let_go(self) -> None:
        (self.folder / "hold").unlink()

    def calls(self, name: str) -> list[int]:
        file = self.folder / f"{name}.calls"
        return [int(pid) for pid in file.read_text().split() if int(pid) != os.getpid()] if file.exists() else []

    def steps(self, name: str) -> list[int]:
        return [
            json.loads(line)["step"]
            for file in self.folder.glob(f"runs/small/{name}-*/steps.jsonl")
            for line in file.read_text().splitlines()
        ]

    def job(self, name: str, what: str = "train") -> JobFolder:
        return next(
            job for job in jobs_below(self.folder / "runs") if str(job).startswith(f"{name}-") and what in str(job)
        )

    def wait_in_step_two(self, *names: str) -> None:
        for name in names:
            until(lambda name=name: len(self.calls(name)) == 2, f"{name} is in its second step")

    def process(self, name: str) -> int:
        return int(self.job(name).read("started")["pid"])

    def state(self, name: str) -> str:
        job = self.job(name)
        return states_of([job])[job].word


@pytest.fixture
def world(plan_here, tmp_path, monkeypatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret")
    yield World(plan_here, tmp_path)
    for name in ("first", "second"):  # the next test's plug-in registers its own
        losses._items.pop(name), losses._aliases.pop(name)


def assert_all_is_done_once(world: World, killed: str, other: str, beside: int = 0) -> None:
    """The killed one did the step in which it was killed again, and that alone. beside: calls of a loss that are no step."""
    assert world.steps(killed) == world.steps(other) == list(range(1, STEPS + 1))
    assert len(world.calls(killed)) == STEPS + 1 + beside and len(world.calls(other)) == STEPS + beside
    assert len(list(world.folder.glob("runs/small/*/trained.json"))) == 2
    files = [path for path in (world.folder / "runs").rglob("*") if path.is_file()]
    assert not [path for path in files if b"sk-a-secret" in path.read_bytes()]


def test_submitits_own_processes(world, monkeypatch) -> None:
    pytest.importorskip("submitit")
    settings = {"cluster": "local"}
    monkeypatch.setattr("pobench.runs.executors.slurm.Slurm.seconds", POLL)
    plan = world.plan()
    world.hold()
    execute(plan, executor=make_executor("slurm", settings), detach=True)
    world.wait_in_step_two("first", "second")
    os.kill(world.process("first"), signal.SIGKILL)
    os.kill(world.process("second"), signal.SIGUSR2)  # its time is over: it finishes its step, and is queued again
    until(lambda: world.state("first") == "lost", "the killed job is gone")
    world.let_go()
    until(lambda: world.state("second") == "finished", "the warned job has gone on")
    assert world.job("second").read("started")["times"] == 2
    texts: list[str] = []
    outcomes = execute(world.plan(), executor=make_executor("slurm", settings), announce=texts.append)
    assert {outcome.title.partition(",")[0]: outcome.status for outcome in outcomes if outcome.status != "skipped"} == {
        "first": "finished"
    }
    assert len(texts) == 2 and world.job("first").path.name == "2", "the second attempt alone is submitted"
    assert_all_is_done_once(world, "first", "second")


def test_ray_with_two_workers(world, monkeypatch) -> None:
    ray = pytest.importorskip("ray")
    plan = world.plan()
    world.hold()
    executor = make_executor("ray", {})
    assert any("no Ray cluster runs here" in fault for fault in executor.faults(detach=True))
    try:
        execute(plan, executor=executor, detach=True)  # here the cluster lives as long as this process
        world.wait_in_step_two("first", "second")
        worker = int(Path(f"/proc/{world.process('first')}/stat").read_text().rsplit(")", 1)[1].split()[1])
        os.kill(worker, signal.SIGKILL)
        until(lambda: world.job("first").read("started")["times"] == 2, "Ray has begun it again")
        world.let_go()
        texts: list[str] = []
        outcomes = execute(plan, executor=make_executor("ray", {}), announce=texts.append)
        assert {outcome.status for outcome in outcomes} <= {"finished", "skipped"}
        assert sum("under way" in text for text in texts) + sum(world.state(n) == "finished" for n in ("first",)) >= 1
        assert {world.state(name) for name in ("first", "second")} == {"finished"}
    finally:
        ray.shutdown()
    assert_all_is_done_once(world, "first", "second")


@contextlib.contextmanager
def standing_ray() -> Iterator[str]:
    """The address of a Ray cluster that no command has started."""
    (port,) = free_ports(1)
    ray = str(Path(sys.executable).with_name("ray"))
    options = ["--num-cpus=2", "--object-store-memory=80000000", "--include-dashboard=false", "--disable-usage-stats"]
    with tempfile.TemporaryDirectory(prefix="ray") as folder:  # sockets have short names
        command = [ray, "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}", *options]
        with Path(folder, "head.out").open("wb") as out:
            head = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            until(lambda: b"Ray runtime started" in Path(folder, "head.out").read_bytes(), "the head has started")
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait()


def test_jobs_on_a_ray_cluster_that_stands_go_on_when_their_command_has_ended(
    plan_here, tmp_path, monkeypatch, pobench_cli
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    command = [
        "run",
        "--setting",
        "small.yaml",
        "--losses",
        "simpo",
        "--stages",
        "train",
        "--executor",
        "ray",
        "--detach",
    ]
    with standing_ray() as address:
        given = [sys.executable, "-m", "pobench.cli", *command, "--executor-set", f"address={address}"]
        ended = subprocess.run(given, capture_output=True, text=True)
        assert ended.returncode == 0 and "1 runs are under way" in ended.stdout, ended.stderr
        try:
            until(lambda: "1 finished" in pobench_cli("status")[1], "the job has finished")
        finally:
            ray.shutdown()
    assert len(list(Path("runs").glob("small/simpo-*/trained.json"))) == 1


# ---------------------------------------------------------------- SLURM
def one_node(folder: Path) -> str:
    """The configuration of a SLURM whose one node is this machine."""
    user, host = subprocess.check_output(["id", "-un"], text=True).strip(), socket.gethostname()
    ports = free_ports(2)
    return f"""ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A SLURM of one node, this machine; yields the variables by which its commands find it. Skips where it cannot start."""
    programs = {
        name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("munged", "slurmctld", "slurmd")
    }
    if absent := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"no {', '.join(absent)} (Debian: slurm-wlm, munge)")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True, mode=0o700)
    (folder / "munge/key").write_bytes(os.urandom(1024))
    (folder / "munge/key").chmod(0o400)
    (folder / "slurm.conf").write_text(one_node(folder))
    environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
    munge = [f"--{name}={folder}/munge/{name[:-5]}" for name in ("key-file", "pid-file", "log-file", "seed-file")]
    commands = [
        [programs["munged"], "--foreground", "--force", f"--socket={folder}/munge/socket", *munge],
        [programs["slurmctld"], "-D"],
        [programs["slurmd"], "-D"],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{Path(str(command[0])).name}.out").open("wb") as out:
                started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))  # type: ignore[arg-type]
            if command is commands[0]:
                until(lambda: (folder / "munge/socket").exists() or started[0].poll() is not None, "munged listens")

        def ready() -> bool:
            states = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
            return "idle" in states.stdout or any(process.poll() is not None for process in started)

        until(ready, "the node is idle")
        if ended := [process.args for process in started if process.poll() is not None]:
            pytest.skip(f"this machine starts no SLURM: {ended} ended, see {folder}")
        yield {"SLURM_CONF": environment["SLURM_CONF"]}
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_slurm_on_one_node(plan_here, tmp_path, monkeypatch, pobench_cli) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret")
    monkeypatch.setattr("pobench.runs.executors.slurm.Slurm.seconds", 0.5)
    world = World(plan_here, tmp_path, ("train", "heldout"))
    settings = {"partition": "main", "signal_delay_s": 60, "time": 60}
    with cluster(tmp_path / "slurm") as environment:
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        plan = world.plan()
        world.hold()
        outcomes = execute(plan, executor=make_executor("slurm", settings), detach=True)
        assert {outcome.status for outcome in outcomes} == {"submitted"}
        world.wait_in_step_two("first", "second")
        status, out, _ = pobench_cli("status", "--runs", str(tmp_path / "runs"))
        assert status == 0 and "2 running" in out and "2 waiting" in out, out
        assert re.search(r"step [01] of 6", out), out  # it is written down once a second
        os.kill(world.process("first"), signal.SIGKILL)
        subprocess.run(["scancel", "--signal=USR2", world.job("second").id], check=True)
        until(lambda: world.state("first") == "lost", "SLURM knows that the killed job has ended")
        world.let_go()
        texts: list[str] = []
        outcomes = execute(world.plan(), executor=make_executor("slurm", settings), announce=texts.append)
        assert {outcome.status for outcome in outcomes} <= {"finished", "skipped"}, [o.reason for o in outcomes]
        assert world.job("second").read("started")["times"] == 2, "it was queued again after the warning"
        assert_all_is_done_once(world, "first", "second", beside=1)  # on the held-out pairs
        assert len(list(tmp_path.glob("runs/small/*/heldout-*/node.json"))) == 3
        with pytest.raises(Exception, match="partition"):
            wrong = make_executor("slurm", {"partition": "nowhere"})
            execute(plan_here("simpo", ("train",)), executor=wrong)


# ---------------------------------------------------------------- several machines, and this one
WORLD_SIZE = """
import os, sys
import torch.distributed as dist

def main():
    dist.init_process_group("gloo")
    open(f"{sys.argv[1]}.{dist.get_rank()}", "w").write(str(dist.get_world_size()))
    dist.destroy_process_group()
"""


def test_two_launchers_that_name_each_other_make_one_job(tmp_path) -> None:
    (tmp_path / "sized.py").write_text(WORLD_SIZE)
    (port,) = free_ports(1)
    code = "from pathlib import Path; from pobench.runs.execute import launch; raise SystemExit(launch('sized', Path('size')))"
    launchers = []
    for rank in range(2):
        machines = json.dumps({"count": 2, "rank": rank, "main": "127.0.0.1", "port": port})
        paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
        own = {"POBENCH_MACHINES": machines, "POBENCH_PROCESSES": "1", "PYTHONPATH": paths}
        launchers.append(subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, **own}))
    assert [launcher.wait() for launcher in launchers] == [0, 0]
    assert [(tmp_path / f"size.{rank}").read_text() for rank in range(2)] == ["2", "2"]


def test_a_detached_command_goes_on_without_its_terminal_and_is_cancelled(plan_here, pobench_cli, monkeypatch) -> None:
    """It would train for minutes, and saves no checkpoint of its own accord in that time."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    values = ["--set", "train.epochs=1000", "--set", "train.batch_size=1", "--set", "train.checkpoint_seconds=3600"]
    command = ["run", "--setting", "small.yaml", "--losses", "simpo", "--stages", "train", *values]
    status, out, err = pobench_cli(*command, "--detach")
    assert status == 0 and "1 jobs go on as process" in out, err
    status, _, err = pobench_cli(*command, "--detach")
    assert status == 2 and "a command is at work in" in err
    (job,) = jobs_below(Path("runs"))
    steps = until(lambda: list(Path("runs").glob("small/simpo-*/steps.jsonl")), "training has begun")[0]
    until(lambda: steps.read_text().count("\n") > 1, "it has done a step")
    assert pobench_cli("status")[1].startswith("2 running"), "the command, and its job"
    assert "cancelled: pobench run" in pobench_cli("cancel")[1]
    until(lambda: not lives(int(job.id.rpartition(":")[2])), "the command has ended")
    last = json.loads(steps.read_text().splitlines()[-1])["step"]
    assert [path.name for path in steps.parent.glob("checkpoint-*")] == [f"checkpoint-{last}"]
    assert pobench_cli("status")[1].startswith("1 cancelled")
