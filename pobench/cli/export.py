"""pobench export: a run's answers in the formats of published benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Runs
from pobench.cli.terminal import escape, out
from pobench.errors import PobenchError

app = typer.Typer(**STYLE)


@app.command()
def export_(
    run_: Annotated[
        str, typer.Argument(metavar="RUN", help="A stored run: a unique beginning of SETTING/LOSS-HEX, or its folder.")
    ],
    to: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("answers"),
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write a run's answers to AlpacaEval, Arena-Hard and MT-Bench in the benchmarks' own formats."""
    from pobench.judging.benchmarks.base import export
    from pobench.results.run_folder import find_run

    path = Path(run_)
    folder = path if (path / "config.yaml").is_file() else runs / find_run(runs, run_)
    written, faults = export(folder, to, f"{folder.parent.name}/{folder.name}")
    for path in written:
        out.print(escape(str(path)), highlight=False)
    if faults or not written:
        raise PobenchError(
            "\n".join(faults) or f"{run_}: no benchmark is answered; run `pobench run --benchmarks …` first"
        )
