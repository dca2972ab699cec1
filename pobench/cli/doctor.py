"""pobench doctor."""

from __future__ import annotations

import shutil

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug
from pobench.cli.terminal import out

app = typer.Typer(**STYLE)


@app.command()
def doctor(debug: Debug = False) -> None:
    """What this machine offers: packages, devices, arithmetic, cache, disk."""
    from pobench.model.device import environment, make_accelerator
    from pobench.sources import cache_folder

    about = environment(make_accelerator())
    packages = about.pop("packages")
    for key, value in {**packages, **about}.items():
        out.print(f"{key:16} {value}", highlight=False)
    cache = cache_folder()
    existing = next(p for p in [cache, *cache.parents] if p.exists())
    out.print(f"{'cache':16} {cache} ({shutil.disk_usage(existing).free / 1024**3:.1f} GiB free)", highlight=False)
