"""What an executor is: it walks the graph of a plan. Its fields are what `--executor-set` sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pydantic
from pydantic import BaseModel, ConfigDict

from pobench.errors import PobenchError
from pobench.registry import executors
from pobench.runs.task import Task
from pobench.settings.faults import explain
from pobench.settings.job import Job

Ended = Callable[[Task, str | None], None]  # gets a task that has ended, and why it failed, or None


class Executor(BaseModel):
    """Walks the tasks of a plan that are left. A task begins when what it reads is there; one that fails stops those that read
    its result, and no others."""

    model_config = ConfigDict(extra="forbid")
    name: ClassVar[str]

    def faults(self, detach: bool) -> list[str]:
        """What this machine lacks for it. detach: whether the command is to end before the jobs."""
        return []

    def expect(self, jobs: Sequence[Job]) -> None:
        """Called before a plan is made of the jobs, which takes seconds: what is slow to begin may begin meanwhile."""

    def begin(self, tasks: Sequence[Task], announce: Callable[[str], None], ended: Ended) -> None:
        """What is done while no other command is at work in the folders of the tasks. announce: takes a sentence for each
        task that begins."""
        raise NotImplementedError

    def wait(self, ended: Ended) -> None:
        """What remains to be done or waited for after that, where the command is not detached."""

    def stop(self) -> None:
        """Called from another thread: let `wait` raise KeyboardInterrupt. Jobs that outlive their command go on."""

    def fresh(self) -> Executor:
        """Another one with the same settings, for another plan at the same time."""
        return type(self)(**self.model_dump())

    # -- jobs that outlive their command, by the ids that it gave them

    def states(self, ids: Sequence[str]) -> Mapping[str, str]:
        """Id → "waiting" or "running"; an id that is no longer known is absent. Raises PobenchError where it cannot tell."""
        raise NotImplementedError

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask the jobs to end. Raises PobenchError where that cannot be asked."""
        raise NotImplementedError

    def why_gone(self, id: str) -> str:
        """What it says about a job that ended without a word of its own; "" where it says nothing."""
        return ""


def make_executor(name: str, settings: Mapping[str, Any], parallel: int = 1) -> Executor:
    """The executor of `--executor NAME`. settings: of `--executor-set`. parallel: of `--parallel`.

    Raises PobenchError that lists the faults of name and settings.
    """
    kind: type[Executor] = executors.get(name).function
    own = {"parallel": parallel} if kind.name == "local" else {}
    if parallel > 1 and not own:
        raise PobenchError(
            f"--parallel {parallel}: it divides this machine; {kind.name} runs as many jobs at one time as it has room for"
        )
    known = [key for key in kind.model_fields if key not in own]
    if own and settings:
        raise PobenchError(
            f"--executor-set {next(iter(settings))}: the executor {kind.name} has no settings but --parallel"
        )
    try:
        return kind(**settings, **own)
    except pydantic.ValidationError as error:
        faults = explain(error, f"--executor-set ({kind.name}) ", kind)
        raise PobenchError("\n".join(faults) or f"known: {', '.join(known)}") from None
