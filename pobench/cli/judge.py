"""pobench judge check: compare a judge with people."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pobench.cli.group import STYLE, Group
from pobench.cli.options import Debug, Json, Plugins, Sets, load_plugins, parse_each, raise_faults
from pobench.cli.score import print_scored
from pobench.cli.terminal import err
from pobench.errors import or_fault

app = typer.Typer(cls=Group, **STYLE)


@app.callback()
def judge() -> None:
    """Compare a judge with people before you trust it."""


@app.command("check")
def judge_check(
    judge: Annotated[str, typer.Option(help="The judge's name (`pobench list judges`).")],
    data: Annotated[Path, typer.Option(help="File of pairs that people have compared: preference rows of any shape.")],
    sets: Sets = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most pairs to judge, picked by a hash.")] = None,
    plugin: Plugins = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how often a judge agrees with people, how often the order of the two answers changes its verdict, and how often
    the longer answer is the preferred one."""
    from pobench.judging import agreement
    from pobench.progress import progress
    from pobench.registry import judges
    from pobench.settings.faults import judge_faults
    from pobench.settings.resolve import nested, parse_settings

    load_plugins(plugin)
    faults: list[str] = []
    bare = [text.removeprefix("judge.settings.") for text in sets or []]  # as `pobench run` names them
    settings = nested(parse_each(faults, bare, lambda text: parse_settings(text, "--set")))
    faults += judge_faults(judge, settings, "--judge", "--set ")
    cases = or_fault(faults, lambda: agreement.cases(data, limit)) or []
    raise_faults(faults)
    made = judges.get(judge)(**settings)
    if hasattr(made, "estimate"):
        err.print(str(made.estimate([case.comparison for case in cases])), highlight=False)
    with progress("verdicts", len(cases), "pairs") as advance:
        scored = agreement.check(
            made,
            cases,
            data=data.name,
            progress=lambda done, total: advance(done=len(cases) * done // max(total, 1)),
        )
    print_scored(scored, as_json)
