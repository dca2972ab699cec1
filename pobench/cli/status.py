"""pobench status: the jobs that go on without their command, and what became of those that ended."""

from __future__ import annotations

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
    """Show the jobs that were submitted or detached: which wait, run, have finished or failed, and where their logs are.

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
    if any(row["state"] in ("failed", "lost") for row in rows):
        raise typer.Exit(1)


def _print(rows: list[dict[str, Any]], every: bool) -> None:
    states = [row["state"] for row in rows]
    out.print(" · ".join(f"{states.count(word)} {word}" for word in dict.fromkeys(states)), highlight=False)
    shown = [row for row in rows if every or row["state"] not in ("finished", "cancelled", "failed", "lost")]
    if shown:
        table = make_table("", "state", "where", "since", "progress")
        for row in shown:
            since = "" if row["began"] is None else _clock(time.time() - row["began"])
            if row["ended"] is not None:
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


def _clock(seconds: float) -> str:
    minutes = int(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"
