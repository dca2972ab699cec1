"""Ray: a job is a task on a cluster, and what it waits for are its arguments.

An actor of the cluster, `pobench-<user>`, holds the references, so that jobs go on when the command has ended. A task starts
`python -m pobench.runs.job` on its node; where the node or the worker dies, Ray runs it again, and it goes on from its last
checkpoint.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pobench.errors import PobenchError
from pobench.registry import register_executor
from pobench.runs.jobs import JobFolder
from pobench.runs.remote import Remote, Uses

LOCK = threading.Lock()  # of trials that begin at one time, one connects
QUIET: dict[str, Any] = {"namespace": "pobench", "log_to_driver": False, "logging_level": "error"}
OURS = ("POBENCH_", "HF_", "OPENAI_")  # of these variables the command's values count, of others the node's


@register_executor("ray")
class Ray(Remote):
    """address: of a cluster; default: `RAY_ADDRESS`, else the one on this machine, else one that ends with the command.
    num_gpus, num_cpus, memory (bytes), resources: Ray's own, of a job that several processes share; what one process does has
    one GPU. max_retries: how often a job whose node or worker died begins again."""

    address: str | None = None
    num_gpus: float = 0
    num_cpus: float = 1
    memory: int | None = None
    resources: dict[str, float] | None = None
    max_retries: int = 3

    seconds: ClassVar[float] = 2.0

    def faults(self, detach: bool) -> list[str]:
        if importlib.util.find_spec("ray") is None:
            return ["--executor ray: ray is not installed; pip install 'pobench[ray]'"]
        if detach and not self._connect():
            return [
                "--detach: no Ray cluster runs here, and one that the command starts ends with it; `ray start --head`"
            ]
        return []

    def _connect(self) -> bool:
        """Connect to the cluster. Returns False where none was named and none is here. Raises PobenchError."""
        import ray

        with LOCK:
            try:
                if not ray.is_initialized():
                    ray.init(address=self.address or "auto", **QUIET)
            except ConnectionError as error:
                if named := self.address or os.environ.get("RAY_ADDRESS"):
                    raise PobenchError(f"no Ray cluster at {named}: {error}") from None
                return False
        return True

    def _begin(self) -> None:
        """Connect to the cluster, or start one that ends with the command."""
        import ray

        if not self._connect():
            with LOCK:
                if not ray.is_initialized():
                    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports to nobody
                    ray.init(address="local", include_dashboard=False, **QUIET)

    def _keeper(self) -> Any:
        name = f"pobench-{getpass.getuser()}"
        return _actor_class().options(name=name, lifetime="detached", get_if_exists=True).remote()

    def submit(self, job: JobFolder, after: Sequence[str], uses: Uses) -> str:
        import ray

        self._begin()
        needs = {"num_gpus": min(self.num_gpus, 1) if uses == Uses.DEVICE else self.num_gpus, "num_cpus": self.num_cpus}
        more = {"memory": self.memory, "resources": self.resources}
        options = {**needs, **{k: v for k, v in more.items() if v is not None}, "max_retries": self.max_retries}
        place = (str(job.path), job.about["folder"], dict(os.environ), sys.executable)
        ray.get(self._keeper().submit.remote(str(job), place, list(after), {**options, "name": job.path.parent.name}))
        return str(job)

    def states(self, ids: Sequence[str]) -> Mapping[str, str]:
        import ray

        if not self._connect():
            return {}  # jobs end with their cluster
        return dict(ray.get(self._keeper().states.remote(list(ids))))

    def cancel(self, ids: Sequence[str]) -> None:
        import ray

        if self._connect():
            ray.get(self._keeper().cancel.remote(list(ids)))

    def why_gone(self, id: str) -> str:
        import ray

        return str(ray.get(self._keeper().why.remote(id))) if self._connect() else "its Ray cluster has ended"


def _task() -> Callable[..., int]:
    """What Ray runs on a node. It is defined within a function, as the actor is, so that both are pickled whole: a node's Ray
    need not find pobench; the process it starts does."""
    ours = OURS

    def begin(path: str, folder: str, environment: dict[str, str], python: str, *after: Any) -> int:
        """On the node. after: the results of what it waited for."""
        import os
        import subprocess
        import time

        mine = {name: value for name, value in environment.items() if name.startswith(ours)}
        names = {**environment, **os.environ, **mine}
        with open(f"{path}/ray_0_log.out", "ab") as out, open(f"{path}/ray_0_log.err", "ab") as err:
            process = subprocess.Popen(
                [python, "-u", "-m", "pobench.runs.job", path],
                cwd=folder, env=names, stdin=subprocess.PIPE, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
            try:
                while process.poll() is None:
                    time.sleep(0.1)
            except BaseException:  # cancelled
                process.terminate()
                process.wait()
                raise
        if process.returncode < 0:  # as if this worker had died: Ray runs it again
            os.kill(os.getpid(), 9)
        return process.returncode

    return begin


def _actor_class() -> Any:
    import ray

    begin = _task()

    @ray.remote(num_cpus=0)
    class Keeper:
        def __init__(self) -> None:
            self.references: dict[str, Any] = {}

        def submit(self, id: str, place: tuple[Any, ...], after: list[str], options: dict[str, Any]) -> None:
            import ray

            before = [self.references[other] for other in after if other in self.references]
            self.references[id] = ray.remote(begin).options(**options).remote(*place, *before)

        def states(self, ids: list[str]) -> dict[str, str]:
            import ray

            known = {self.references[id]: id for id in ids if id in self.references}
            _, left = ray.wait(list(known), num_returns=len(known), timeout=0) if known else ([], [])
            return {known[reference]: "running" for reference in left}

        def cancel(self, ids: list[str]) -> None:
            import ray

            for id in ids:
                if id in self.references:
                    ray.cancel(self.references[id])

        def why(self, id: str) -> str:
            import ray

            if id not in self.references:
                return ""
            try:
                ray.get(self.references[id], timeout=0)
            except Exception as error:
                return " ".join(str(error).split())[:200]
            return ""

    return Keeper
