"""pobench share: a report as a static site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.analyze import drawn
from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Plugins, load_plugins
from pobench.cli.terminal import escape, out
from pobench.printing import size

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
    """Write the report as a folder for any static host: the page, a page a run, data, methods, BibTeX and a social card. Of
    more than a thousand runs, those with their setting's own values have a page, and the others a row of a list.

    It names no path of this machine and nothing of the judge but its name.
    """
    from pobench.results.earlier_looks import record_look
    from pobench.results.load import open_frames
    from pobench.results.mirror import is_address
    from pobench.workflows.share import refuse_foreign
    from pobench.workflows.share import share as write

    load_plugins(plugin)
    refuse_foreign(to, read=False)  # before all runs are read
    frames = open_frames(runs, setting)
    index, complete = drawn(lambda: write(runs, to, setting, address=url, frames=frames))
    if not is_address(runs):  # a shared report was looked at
        record_look(Path(runs), frames["runs"], frames["runs"])
    files = [path for path in to.rglob("*") if path.is_file()]
    amount = size(sum(path.stat().st_size for path in files), decimal=True)
    out.print(escape(f"site: {index} ({len(files)} files, {amount})"), highlight=False)
    if not complete or frames.left_out:
        raise typer.Exit(1)
