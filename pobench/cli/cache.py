"""pobench cache: what lies in the cache folder, and removing what nobody needs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pobench.cli.group import STYLE, Group
from pobench.cli.options import Debug, Json
from pobench.cli.terminal import escape, out
from pobench.errors import PobenchError
from pobench.printing import say_json, size

app = typer.Typer(cls=Group, **STYLE)

LARGE = 1_000_000  # bytes of an entry that is listed by itself

Named = Annotated[
    list[Path] | None,
    typer.Option("--runs", metavar="DIR", help="Runs that keep what they name; repeatable. Default: runs."),
]


@app.callback()
def cache() -> None:
    """See what lies in the cache folder (POBENCH_CACHE), and remove what no run names."""


@app.command("list")
def list_(runs: Named = None, as_json: Json = False, debug: Debug = False) -> None:
    """List what lies in the cache folder: size, last use, how it comes back, and what keeps it."""
    from pobench.sources import cache_folder
    from pobench.workflows.cache import DAY, KINDS, cached

    folders = runs or [path for path in [Path("runs")] if path.is_dir()]
    entries = cached(folders)
    if as_json:
        say_json([_row(entry) for entry in entries])
        return
    for kind, about in KINDS.items():
        own = [entry for entry in entries if entry.kind == kind]
        if not own:
            continue
        of_kind = f"{size(sum(entry.bytes for entry in own), decimal=True):>9}  {kind}: {about.meaning}"
        out.print(escape(f"{of_kind} ({len(own)}){f'; {about.again}' if about.again else ''}"), highlight=False)
        for entry in own:
            if entry.bytes >= LARGE:
                days = (time.time() - entry.used) / DAY
                keeps = f"; {entry.keeps}" if entry.keeps else ""
                out.print(
                    escape(f"{size(entry.bytes, decimal=True):>9}    {entry.name}, used {days:.0f} days ago{keeps}"),
                    highlight=False,
                )
    total = size(sum(entry.bytes for entry in entries), decimal=True)
    out.print(escape(f"{total:>9}  in all, in {cache_folder()}"), highlight=False)


@app.command()
def prune(
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="What was not used for so long goes.")
    ] = None,
    most: Annotated[
        float | None,
        typer.Option("--max-size", metavar="GB", min=0, help="The longest unused goes until so much is left."),
    ] = None,
    runs: Named = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Remove nothing; say what would go.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove from the cache folder what was not used for long. What a stored run below --runs names stays, and so do replies
    that were paid for, files placed by hand, and what was used within a day."""
    from pobench.workflows.cache import prune as remove

    if older_than is None and most is None:
        raise PobenchError("pobench cache prune: say what goes: --older-than DAYS, --max-size GB, or both")
    done = remove(runs or [Path("runs")], older_than=older_than, most=None if most is None else most * 1e9, dry=dry_run)
    if as_json:
        say_json({"removed": [_row(entry) for entry in done.removed], "freed": done.freed, "dry_run": dry_run})
        return
    small = [entry for entry in done.removed if entry.bytes < LARGE]
    for entry in done.removed:
        if entry.bytes >= LARGE:
            out.print(escape(f"{size(entry.bytes, decimal=True):>9}  {entry.kind}/{entry.name}"), highlight=False)
    if small:
        out.print(
            f"{size(sum(entry.bytes for entry in small), decimal=True):>9}  {len(small)} small entries", highlight=False
        )
    would = "would be removed" if dry_run else "removed"
    left = size(sum(entry.bytes for entry in done.left), decimal=True)
    out.print(f"{size(done.freed, decimal=True)} {would}; {left} stay", highlight=False)


def _row(entry: Any) -> dict[str, Any]:
    return {**entry._asdict(), "path": str(entry.path)}
