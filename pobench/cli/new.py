"""pobench new: a commented file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.complete import complete
from pobench.cli.group import STYLE
from pobench.cli.options import Debug
from pobench.cli.terminal import escape, out

app = typer.Typer(**STYLE)


def complete_kinds(incomplete: str) -> list[str]:
    from pobench.workflows.new import KINDS

    return complete(KINDS, incomplete)


@app.command()
def new_(
    kind: Annotated[
        str, typer.Argument(help="loss | setting | study | judge", autocompletion=complete_kinds, metavar="KIND")
    ],
    name: Annotated[str, typer.Argument(help="What it will be called; the file is NAME.py or NAME.yaml.")],
    folder: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the file is written.")] = Path(),
    debug: Debug = False,
) -> None:
    """Write a commented file to start from: a loss, a setting, a study or a judge of your own. It works as it stands; a
    file that is there already is left alone."""
    from pobench.workflows.new import write_new

    path, commands = write_new(kind, name, folder)
    out.print(f"{escape(str(path))}; next:", highlight=False)
    for command in commands:
        out.print(f"  {escape(command)}", highlight=False)
