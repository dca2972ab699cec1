"""pobench doctor: what this machine offers, and whether stored files are intact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Json
from pobench.cli.terminal import err, escape, out
from pobench.errors import PobenchError

app = typer.Typer(**STYLE)


@app.command()
def doctor(
    runs: Annotated[
        Path | None,
        typer.Option("--verify", metavar="RUNS", help="Hash every file below this folder and in the cache instead."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what this machine offers: packages, devices, arithmetic, cache, disk. With --verify: check that every stored file
    holds the bytes that were written."""
    if runs is not None:
        _verify(runs, as_json)
        return
    from pobench.model.device import environment, make_accelerator
    from pobench.sources import cache_folder

    about = environment(make_accelerator())
    if as_json:
        print(json.dumps(about, indent=1))
        return
    packages = about.pop("packages")
    for key, value in {**packages, **about}.items():
        out.print(escape(f"{key:16} {value}"), highlight=False)
    cache = cache_folder()
    existing = next(p for p in [cache, *cache.parents] if p.exists())
    free = f"({shutil.disk_usage(existing).free / 1024**3:.1f} GiB free)"
    out.print(escape(f"{'cache':16} {cache} {free}"), highlight=False)


def _verify(runs: Path, as_json: bool) -> None:
    """Exit status 1 if a file's bytes are not those that were written."""
    from pobench.runs.verify import verify

    if not runs.is_dir():
        raise PobenchError(f"--verify: no folder {str(runs)!r}")
    verified = verify(runs)
    if as_json:
        print(json.dumps(verified._asdict(), indent=1))
    else:
        for fault in verified.faults:
            err.print(escape(fault), style="red")
        for folder in verified.unsigned:
            out.print(f"{escape(folder)}: of protocol 1, without digests; not verified", highlight=False)
        out.print(
            f"{verified.files} files of {verified.folders} results hashed, {len(verified.faults)} damaged; "
            "`pobench run` makes a damaged result anew",
            highlight=False,
        )
    if verified.faults:
        raise typer.Exit(1)
