"""What `run` and `study` say about jobs that go on without them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pobench.cli.terminal import err, escape, out
from pobench.printing import say_json

LATER = "pobench status shows them, pobench cancel ends them; the same command, once they have ended, writes the report"


def announce(text: str) -> None:
    """A sentence for a job that begins."""
    err.print(escape(text), style="bold", highlight=False)


@contextlib.contextmanager
def continuing(executor: Any) -> Iterator[None]:
    """Says what becomes of the jobs where the command is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        if executor.name == "local":
            err.print("\ninterrupted; the same command continues where this one stopped")
        else:
            err.print(f"\ninterrupted; the jobs go on at {executor.name}: pobench status, pobench cancel")
        raise


def detached_here(executor: Any, left: Sequence[Any], folder: Path) -> bool:
    """Where the executor is this machine and something is left to do, start this very command again beside this one, and say
    so. folder: of the setting's runs."""
    if executor.name != "local" or not left:
        return False
    from pobench.runs.detached import detach

    job = detach(folder, [word for word in sys.argv[1:] if word != "--detach"])
    out.print(
        escape(f"{len(left)} jobs go on as process {job.id}; log: {job.path / 'command_log.err'}"), highlight=False
    )
    out.print(LATER, highlight=False)
    return True


def print_submitted(outcomes: Sequence[Any], as_json: bool) -> bool:
    """Whether runs are under way that the command does not wait for; then it says so."""
    submitted = [outcome for outcome in outcomes if outcome.status == "submitted"]
    if submitted and as_json:
        say_json({"outcomes": [outcome.__dict__ for outcome in outcomes]})
    elif submitted:
        out.print(f"{len(submitted)} runs are under way; {LATER}", highlight=False)
    return bool(submitted)
