"""pobench push: a trained model to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Runs
from pobench.cli.terminal import escape, out

app = typer.Typer(**STYLE)


@app.command()
def push(
    run_: Annotated[str, typer.Argument(metavar="RUN", help="A trained run: a unique beginning of SETTING/LOSS-HEX.")],
    repo: Annotated[
        str, typer.Option(metavar="USER/NAME", help="The repository on the hub; made where it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="A branch other than main; made where it does not exist.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Such as apache-2.0; default: none is stated. The start model's counts."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and the files; send nothing.")] = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Send a trained model or adapter to the Hugging Face hub, with a card that has its scores and their intervals.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    from pobench.results.run_folder import find_run
    from pobench.workflows.push import checked
    from pobench.workflows.push import push as send

    name = find_run(runs, run_)
    if dry_run:
        card, files = checked(runs, name, repo, licence)
        out.print(escape(card), highlight=False)
        out.print(escape(f"{repo}: README.md, {', '.join(files)}; nothing was sent"), highlight=False)
        return
    out.print(
        escape(f"pushed: {send(runs, name, repo, private=private, revision=revision, licence=licence)}"),
        highlight=False,
    )
