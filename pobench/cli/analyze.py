"""pobench analyze: draw the report from stored runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pobench.cli.answer import print_answers
from pobench.cli.group import COMPARED, OUTPUT, STYLE, Command
from pobench.cli.options import Debug, Plugins, StoredRuns, load_plugins, raise_faults
from pobench.cli.terminal import err, escape, out
from pobench.errors import UndrawnError, nearest, or_fault

if TYPE_CHECKING:
    from pobench.results.derived import Frames

app = typer.Typer(**STYLE)

EXAMPLES = """
pobench analyze
pobench analyze --setting tiny --figures pass-rate --format png --out here
"""


@app.command(cls=Command, epilog=EXAMPLES)
def analyze(
    runs: StoredRuns = "runs",
    setting: Annotated[
        str | None, typer.Option(help="Only the runs of this setting.", rich_help_panel=COMPARED)
    ] = None,
    figures: Annotated[str, typer.Option(help="`all`, or names, comma-separated.", rich_help_panel=OUTPUT)] = "all",
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Where the report goes; default: RUNS/report, or ./report where RUNS is an address.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="`all`, or of html, md, tex, csv, png, svg; also parquet: the frames that the report is computed from, in a "
            "folder that --runs reads; and answers: every answer as files that the page loads where it is served.",
            rich_help_panel=OUTPUT,
        ),
    ] = "all",
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Draw every figure and table, and write report.html, summary.md and tables.tex, from stored runs alone. The same runs
    give the same bytes."""
    load_plugins(plugin)
    report = write_report(runs, setting, figures, out_dir, formats)
    print_answers(report.frames)
    out.print(escape(f"report: {report.path}"), highlight=False)
    if not report.whole:
        raise typer.Exit(1)


def drawn(build: Callable[[], Path]) -> tuple[Path, bool]:
    """The path of the report that `build` writes, and whether it is whole: the code of a figure may fail, which is printed."""
    try:
        return build(), True
    except UndrawnError as error:
        notes = error.__notes__ if os.environ.get("POBENCH_DEBUG") else ()
        err.print(escape("\n".join([*notes, str(error)])), style="red", highlight=False)
        return error.path, False


class Report(NamedTuple):
    """path: of its page. whole: whether every figure could be drawn, and no run was left out. frames: that it was made of."""

    path: Path
    whole: bool
    frames: Frames


def write_report(
    runs: str | Path, setting: str | None, figures: str, folder: Path | None, formats: str = "all"
) -> Report:
    """Draw the runs below `runs`, and store that they were looked at. Raises PobenchError that lists all unknown names."""
    from pobench import registry
    from pobench.reporting.page import ANSWERS, FORMATS, FRAMES, build_report
    from pobench.results.arms import arms_of
    from pobench.results.earlier_looks import looks_at, record_look, warning
    from pobench.results.frame_files import is_frames
    from pobench.results.load import open_frames
    from pobench.results.mirror import is_address

    names, kinds = ([n.strip() for n in text.split(",") if n.strip()] for text in (figures, formats))
    kinds = [kind for named in kinds for kind in (FORMATS if named == "all" else (named,))]
    known = (*FORMATS, FRAMES, ANSWERS)
    faults = [
        f"--format: unknown {kind!r}{nearest(kind, known)} Known: all, {', '.join(known)}"
        for kind in kinds
        if kind not in known
    ]
    shown = None if names == ["all"] else names
    for name in shown or ():
        or_fault(faults, partial(registry.figures.get, name))
    frames: Any = or_fault(faults, lambda: open_frames(runs, setting))
    raise_faults(faults)
    home = None if is_address(runs) else Path(runs)
    path, complete = drawn(
        lambda: build_report(frames, folder or (home or Path()) / "report", figures=shown, formats=kinds)
    )
    if home is not None and not is_frames(home):  # the look at these runs lies beside the runs
        record_look(home, frames["runs"], frames["runs"])
    if text := warning(looks_at(frames["looks"], frames["runs"], arms_of(frames["runs"]))):
        err.print(escape(text), highlight=False)
    return Report(path, complete and not frames.left_out, frames)
