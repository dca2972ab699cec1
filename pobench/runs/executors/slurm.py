"""SLURM, by submitit: a job is an sbatch script, and what it waits for is its dependency."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from pobench.errors import PobenchError
from pobench.registry import register_executor
from pobench.runs.job import work
from pobench.runs.jobs import JobFolder
from pobench.runs.pool import lives
from pobench.runs.remote import Remote, Uses
from pobench.training import leaving

WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "REQUEUE_FED")


@register_executor("slurm")
class Slurm(Remote):
    """Fields are sbatch's options by their names. time: minutes, or as sbatch writes it; a job whose time is over saves a
    checkpoint `signal_delay_s` seconds before and is queued again, at most `max_num_timeout` times. nodes, gpus_per_node: of a
    training job; what is evaluated in shards has one node, and what one process does one GPU. setup: commands before it, such
    as `module load cuda`. cluster: `local` tries the same on this machine, by submitit's own processes."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    reservation: str | None = None
    time: int = 24 * 60
    nodes: int = 1
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    signal_delay_s: int = 120
    max_num_timeout: int = 20
    setup: list[str] = Field(default_factory=list)
    cluster: Literal["slurm", "local"] = "slurm"

    seconds: ClassVar[float] = 10.0

    @field_validator("time", mode="before")
    @classmethod
    def _minutes(cls, value: Any) -> Any:
        """`D-HH:MM:SS`, `HH:MM:SS` as whole minutes."""
        if not (isinstance(value, str) and ":" in value):
            return value
        if not (found := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", value)):
            raise ValueError("minutes, HH:MM:SS or D-HH:MM:SS is needed")
        days, first, second, third = (int(part or 0) for part in found.groups())
        if found[4] is None and not days:  # MM:SS
            return first + (second > 0)
        return (days * 24 + first) * 60 + second + (third > 0)

    @field_validator("mem", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("setup", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @property
    def edges(self) -> bool:  # type: ignore[override]
        return self.cluster == "slurm"

    def faults(self, detach: bool) -> list[str]:
        faults = []
        if importlib.util.find_spec("submitit") is None:
            faults.append("--executor slurm: submitit is not installed; pip install 'pobench[slurm]'")
        if self.cluster == "slurm" and (absent := [c for c in ("sbatch", "squeue") if shutil.which(c) is None]):
            faults.append(
                f"--executor slurm: no {' and no '.join(absent)} here; run the command where SLURM takes jobs"
            )
        if detach and self.cluster == "local":
            faults.append(
                "--detach: submitit's processes on this machine know no dependencies, so the command has to wait"
            )
        return faults

    # -- a job

    def options(self, job: JobFolder, after: Sequence[str], uses: Uses) -> dict[str, Any]:
        """Of submitit's executor, for one job."""
        own = {"partition", "account", "qos", "constraint", "gres", "nodelist", "exclude", "cpus_per_task", "mem"}
        gpus, nodes = self._gpus(uses), self.nodes if uses == Uses.NODES else 1
        options = {
            **{name: value for name in sorted(own) if (value := getattr(self, name)) is not None},
            "job_name": job.path.parent.name,
            "time": self.time,
            "nodes": nodes,
            "ntasks_per_node": 1,
            "signal_delay_s": self.signal_delay_s,
            "additional_parameters": {
                "requeue": True,
                **({"reservation": self.reservation} if self.reservation else {}),
            },
        }
        if gpus:
            options["gpus_per_node"] = gpus
        if self.setup:
            options["setup"] = self.setup
        if nodes > 1:
            options["srun_args"] = ["--kill-on-bad-exit=1"]  # nodes would wait for the one that failed
        if after:
            options["dependency"] = f"afterany:{':'.join(after)}"  # it knows itself what it lacks, and says why
        return options

    def _gpus(self, uses: Uses) -> int:
        """Of a node."""
        return min(self.gpus_per_node or 0, 1) if uses == Uses.DEVICE else self.gpus_per_node or 0

    def submit(self, job: JobFolder, after: Sequence[str], uses: Uses) -> str:
        import submitit

        try:
            with _outside_of_a_job():
                if self.cluster == "local":
                    here = submitit.LocalExecutor(job.path, max_num_timeout=self.max_num_timeout)
                    limits = {"timeout_min": self.time, "signal_delay_s": self.signal_delay_s, "setup": self.setup}
                    here.update_parameters(gpus_per_node=self._gpus(uses), **limits)
                    return str(here.submit(Work(), str(job.path)).job_id)
                cluster = submitit.SlurmExecutor(job.path, max_num_timeout=self.max_num_timeout)
                cluster.update_parameters(**self.options(job, after, uses))
                return str(cluster.submit(Work(), str(job.path)).job_id)
        except Exception as error:  # submitit's own kinds are several
            raise PobenchError(f"slurm took no job: {' '.join(str(error).split())}") from error

    # -- the queue

    def states(self, ids: Sequence[str]) -> Mapping[str, str]:
        if self.cluster == "local":
            return {id: "running" for id in ids if lives(int(id))}
        rows = (line.split("|") for line in _call("squeue", "--me", "--noheader", "--format=%A|%T").splitlines())
        known = {row[0]: "waiting" if row[1] in WAITS else "running" for row in rows if len(row) == 2}
        return {id: known[id] for id in ids if id in known}

    def cancel(self, ids: Sequence[str]) -> None:
        if self.cluster == "local":
            for id in ids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(id), signal.SIGTERM)
        elif ids:
            _call("scancel", *ids)

    def why_gone(self, id: str) -> str:
        """Its last state, by the accounting where there is one, else by the controller, which soon forgets."""
        if self.cluster == "local":
            return ""
        with contextlib.suppress(PobenchError):
            if rows := _call("sacct", "-X", "-n", "-P", "-o", "State,ExitCode", "-j", id).split():
                return f"slurm {id} {' '.join(rows).replace('|', ', exit code ')}"
        with contextlib.suppress(PobenchError):
            if found := re.search(r"JobState=(\S+)\s+Reason=(\S+)", _call("scontrol", "show", "job", id)):
                return f"slurm {id} {found[1]} ({found[2]})"
        return f"slurm no longer knows {id}"


@contextlib.contextmanager
def _outside_of_a_job() -> Any:
    """Hides the variables of a job in which the command itself runs: they would count for the jobs that it submits."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    from submitit.helpers import clean_env

    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration:
            os.environ["SLURM_CONF"] = configuration
        yield


def _call(*command: str) -> str:
    """What the command prints. Raises PobenchError where it fails."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise PobenchError(f"{command[0]}: {error.strerror}") from None
    if ended.returncode:
        raise PobenchError(f"{command[0]}: {' '.join(ended.stderr.split()) or f'exit status {ended.returncode}'}")
    return ended.stdout


# ---------------------------------------------------------------- on the node
class Work:
    """What submitit calls there, and calls again where the job was queued again."""

    def __call__(self, path: str) -> None:
        """Raises PobenchError where the job failed, so that SLURM's accounting calls it FAILED."""
        import submitit

        job, here = JobFolder(Path(path)), submitit.JobEnvironment()
        if here.num_nodes > 1:
            port = 20_000 + int(here.job_id) % 20_000
            machines = {"count": here.num_nodes, "rank": here.node, "main": here.hostnames[0], "port": port}
            os.environ["POBENCH_MACHINES"] = json.dumps(machines)
        os.environ[leaving.GRACE] = str(Slurm(**job.about["settings"]).signal_delay_s)
        with leaving.listening():
            status = work(job, main=here.global_rank == 0)
            number = leaving.asked()
        if status == leaving.INTERRUPTED and number == signal.SIGUSR2:
            try:
                signal.raise_signal(number)  # to submitit, which queues the job again and ends this process
            except Exception as error:
                job.end("failed", " ".join(str(error).split()))
                raise
        if status == leaving.INTERRUPTED:
            sys.exit(128 + (number or signal.SIGTERM))
        if status and here.global_rank == 0:
            raise PobenchError(job.read("ended").get("reason", f"exit status {status}"))

    def checkpoint(self, path: str) -> Any:
        """What is left is in the folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, path)
