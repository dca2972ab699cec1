"""pobench share: a report as a static site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.analyze import drawn
from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Plugins, load_plugins
from pobench.cli.terminal import escape, out

app = typer.Typer(**STYLE)


@app.command()
def share(
    runs: Annotated[str, typer.Argument(metavar="RUNS", help="A folder of stored runs, or its address.")] = "runs",
    to: Annotated[
        Path, typer.Option("--out", help="The site's folder; one that `share` did not write is refused.")
    ] = Path("site"),
    setting: Annotated[str | None, typer.Option(help="Only the runs of this setting.")] = None,
    url: Annotated[
        str, typer.Option(help="Where the site will stand, https://…/: social cards need whole addresses.")
    ] = "",
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Write the report as a folder for any static host: the page, a page a run, data, methods, BibTeX and a social card.

    It names no path of this machine and nothing of the judge but its name.
    """
    from pobench.results.earlier_looks import record_look
    from pobench.results.load import open_frames
    from pobench.results.mirror import is_address
    from pobench.workflows.share import share as write

    load_plugins(plugin)
    index, complete = drawn(lambda: write(runs, to, setting, address=url))
    if not is_address(runs):  # a shared report was looked at
        shown = open_frames(runs, setting)["runs"]
        record_look(Path(runs), shown, shown)
    files = [path for path in to.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 1e6
    out.print(escape(f"site: {index} ({len(files)} files, {size:.1f} MB)"), highlight=False)
    if not complete:
        raise typer.Exit(1)
