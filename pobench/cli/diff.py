"""pobench diff: what differs between two reports."""

from __future__ import annotations

from typing import Annotated

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Json
from pobench.cli.terminal import escape, make_table, out
from pobench.printing import say_json

app = typer.Typer(**STYLE)
SOURCE = "A folder of runs, or of frames that `pobench analyze --format parquet` wrote, or an address of either."


@app.command()
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help=SOURCE)],
    after: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    setting: Annotated[str | None, typer.Option(help="Only the runs of this setting.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what differs between two reports: losses, numbers with their intervals, verdicts on claims, versions and machines."""
    from pobench.workflows import diff as workflow

    found = workflow.differences(before, after, setting)
    if as_json:
        say_json([one.plain() for one in found])
        return
    for one in found:
        out.print(f"[bold]{escape(one.setting)}[/bold]", highlight=False)
        for sentence in workflow.sentences(one):
            out.print(f"  {escape(sentence)}", highlight=False)
        if one.moved:
            table = make_table("loss", "metric", "first", "second", "")
            for number in one.moved:
                table.add_row(*map(escape, workflow.shown(number)))
            out.print(table)
        if one.made_with:
            table = make_table("made with", "first", "second")
            for row in one.made_with:
                table.add_row(*map(escape, row))
            out.print(table)
