"""pobench merge: the results of one folder of runs into another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Json
from pobench.cli.terminal import escape, out
from pobench.printing import say_json

app = typer.Typer(**STYLE)


@app.command()
def merge_(
    into: Annotated[Path, typer.Argument(metavar="A", help="The folder of runs that is added to.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="The folder of runs whose results are copied; it stays.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Copy into A what B has and A lacks, by content names. Refused, with nothing written, where results of one name differ."""
    from pobench.workflows.merge import merge

    merged = merge(into, other)
    if as_json:
        say_json(merged._asdict())
        return
    lines = [f"{merged.copied} results copied ({len(merged.runs)} runs are new), {merged.there} were there"]
    if merged.trials:
        lines.append(f"{merged.trials} trials added; `pobench tune` chooses among all of them")
    if merged.unfinished:
        lines.append(f"not trained yet, so left in {other}: {', '.join(merged.unfinished)}")
    if merged.shown:
        lines.append(f"shown as {into} has it, with the other results of {other} beside it: {', '.join(merged.shown)}")
    lines.append(f"report: pobench analyze --runs {into}")
    out.print(escape("\n".join(lines)), highlight=False)
