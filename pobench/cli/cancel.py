"""pobench cancel: end jobs that go on without their command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Json, Runs
from pobench.cli.terminal import escape, out
from pobench.printing import say_json

app = typer.Typer(**STYLE)


@app.command()
def cancel(
    names: Annotated[
        list[str] | None, typer.Argument(help="Beginnings of runs' names; default: all that are under way.")
    ] = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """End the jobs that were submitted or detached: those under way of the runs that are named, or all. A job in training saves
    a checkpoint first; the command that submitted it goes on from there."""
    from pobench.runs.job_rows import cancel_jobs

    cancelled = cancel_jobs(runs, names or [])
    if as_json:
        say_json({"cancelled": [str(job) for job in cancelled]})
        return
    for job in cancelled:
        out.print(escape(f"cancelled: {job.about['title']} ({job})"), highlight=False)
    if not cancelled:
        out.print(escape(f"nothing is under way below {str(runs)!r}"), highlight=False)
