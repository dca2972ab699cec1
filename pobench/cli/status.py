"""pobench status: the jobs of commands that are at work or were submitted, how those that ended did, and the time left."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Json, Runs
from pobench.cli.terminal import escape, make_table, out
from pobench.printing import say_json

app = typer.Typer(**STYLE)


@app.command()
def status(
    runs: Runs = Path("runs"),
    every: Annotated[bool, typer.Option("--all", help="Show finished jobs as well, not only their number.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the jobs that were submitted or detached, and those of the command at work here: which wait, run, have finished or
    failed, how long all will take, and where their logs are. `pobench watch` shows the same as a page.

    Exit status 1 if a job has failed or was lost; the command that submitted it submits it again.
    """
    from pobench.runs.job_rows import job_rows

    rows = job_rows(runs)
    if as_json:
        say_json(rows)
    elif not rows:
        out.print(escape(f"no jobs were submitted below {str(runs)!r}"), highlight=False)
    else:
        _print(rows, every)
        _print_left(runs)
    if any(row["state"] in ("failed", "lost") for row in rows):
        raise typer.Exit(1)


def _print(rows: list[dict[str, Any]], every: bool) -> None:
    states = [row["state"] for row in rows]
    out.print(" · ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states)), highlight=False)
    shown = [
        row for row in rows if every or row["state"] not in ("finished", "cancelled", "interrupted", "failed", "lost")
    ]
    if shown:
        table = make_table("", "state", "where", "since", "progress")
        for row in shown:
            since = "" if row["began"] is None else _clock(time.time() - row["began"])
            if row["ended"] is not None or row["state"] == "interrupted":
                since = ""
            where = f"{row['executor']} {row['id']}" + (f" on {row['host']}" if row["host"] else "")
            again = f", attempt {row['attempt']}" if row["attempt"] > 1 else ""
            again += f", begun {row['times']} times" if row["times"] > 1 else ""
            cells = (f"{row['title']}{': ' * bool(row['stages'])}{', '.join(row['stages'])}", row["state"] + again)
            table.add_row(*map(escape, (*cells, where, since, row["progress"])))
        out.print(table, highlight=False)
    for row in rows:
        if row["state"] in ("failed", "lost", "cancelled") or (row["state"] == "unknown" and row["reason"]):
            colour = "red" if row["state"] in ("failed", "lost") else "yellow"
            reason = f": {row['reason']}" if row["reason"] else ""
            log = f"; log: {row['log']}" if row["log"] else ""
            out.print(
                escape(f"{row['state']}: {row['title']} ({row['job']}){reason}{log}"), style=colour, highlight=False
            )


def _print_left(runs: Path) -> None:
    """A line on the time left of each command that is under way."""
    from pobench.runs.command import commands_below

    for command in commands_below(runs):
        seconds, n = command.left(time.time())
        if command.under_way and not math.isnan(seconds):
            over = sum(not job.under_way for job in command.jobs)
            basis = f"corrected by {n} finished" if n else "no job has finished yet"
            where = escape(command.path.parent.name)
            text = f"{where}: {over} of {len(command.jobs)} jobs have ended; about {_clock(seconds)} left ({basis})"
            out.print(text, highlight=False)


def _clock(seconds: float) -> str:
    minutes = int(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"
