"""pobench doctor: what this machine offers and what it can be used for, and whether stored files are intact."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Json
from pobench.cli.terminal import err, escape, out
from pobench.errors import PobenchError
from pobench.printing import say_json, size

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
    """Show what this machine offers, and for each use whether it is ready or what is missing; exit status 1 if the main job
    could not run. With --verify: check that every stored file holds the bytes that were written."""
    if runs is not None:
        _verify(runs, as_json)
        return
    from pobench.model.device import environment, make_accelerator
    from pobench.sources import cache_folder
    from pobench.workflows.doctor import advice, existing, judge_uses

    about, cache = environment(make_accelerator()), cache_folder()
    judged, advised = judge_uses(cache, Path("runs")), advice()
    if as_json:
        uses = [use._asdict() for use in judged]
        say_json({**about, "uses": uses, "advice": advised})
        _end(judged)
        return
    packages = about.pop("packages")
    for key, value in {**packages, **about}.items():
        out.print(escape(f"{key:16} {value}"), highlight=False)
    free = f"({size(shutil.disk_usage(existing(cache)).free)} free)"
    out.print(escape(f"{'cache':16} {cache} {free}"), highlight=False)
    out.print()
    for use in judged:
        colour = "green" if use.verdict == "ready" else "yellow"
        out.print(f"{use.use:24} [{colour}]{use.verdict}[/]", highlight=False)
        for sentence in use.missing:
            out.print(f"{'':24} {escape(sentence)}", highlight=False)
    for sentence in advised:
        out.print(escape(f"advice: {sentence}"), highlight=False)
    _end(judged)


def _end(judged: list[Any]) -> None:
    """Exit status 1 if the main job could not run."""
    from pobench.workflows.doctor import USES

    needed = {use.title for use in USES if use.always}
    if any(use.use in needed and use.missing for use in judged):
        raise typer.Exit(1)


def _verify(runs: Path, as_json: bool) -> None:
    """Exit status 1 if a file's bytes are not those that were written."""
    from pobench.runs.verify import verify

    if not runs.is_dir():
        raise PobenchError(f"--verify: no folder {str(runs)!r}")
    verified = verify(runs)
    if as_json:
        say_json(verified._asdict())
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
