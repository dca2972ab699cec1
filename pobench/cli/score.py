"""pobench score and pobench judge check."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pobench.cli.options import (
    Debug,
    Json,
    Plugins,
    Sets,
    _each,
    _load_plugins,
    _refuse,
    _untrusted,
    err,
    judge_app,
    out,
    score_app,
)
from pobench.errors import or_fault

Verdicts = Annotated[Path, typer.Argument(metavar="FILE", help="Stored verdicts: JSON, JSONL, CSV or Parquet.")]
OneModel = Annotated[str | None, typer.Option(help="Which model, where the file holds several.")]


@score_app.command("alpaca_eval")
def score_alpaca_eval(
    file: Verdicts,
    length_control: Annotated[
        Path | None,
        typer.Option(help="Folder with df_gamed.csv and instruction_difficulty.csv; default: the hub."),
    ] = None,
    length_only: Annotated[
        bool, typer.Option("--length-only", help="Other prompts or another opponent: win rates without LC.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """AlpacaEval 2: win rate and length-controlled win rate, by alpaca_eval's own code, from its annotations."""
    from pobench.judging.benchmarks import alpaca_eval_score as alpaca_eval

    _print_scored(alpaca_eval.score(file, length_control=length_control, length_only=length_only), as_json)


@score_app.command("arena_hard")
def score_arena_hard(file: Verdicts, model: OneModel = None, as_json: Json = False, debug: Debug = False) -> None:
    """Arena-Hard v0.1: the score against gpt-4-0314, from the judgments of both games."""
    from pobench.judging.benchmarks import arena_hard_score as arena_hard

    _print_scored(arena_hard.score(file, model=model), as_json)


@score_app.command("mt_bench")
def score_mt_bench(file: Verdicts, model: OneModel = None, as_json: Json = False, debug: Debug = False) -> None:
    """MT-Bench: the mean of 160 grades, by turn and by category."""
    from pobench.judging.benchmarks import mt_bench_score as mt_bench

    _print_scored(mt_bench.score(file, model=model), as_json)


@judge_app.command("check")
def judge_check(
    judge: Annotated[str, typer.Option(help="Its name (`pobench list judges`).")],
    data: Annotated[Path, typer.Option(help="Pairs that people have compared: preference rows of any shape.")],
    sets: Sets = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pairs, drawn by a hash.")] = None,
    plugin: Plugins = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How often a judge agrees with people, how often the order of the answers decides, and what length alone gets."""
    from pobench.judging import agreement
    from pobench.progress import progress
    from pobench.registry import judges
    from pobench.settings.faults import judge_faults
    from pobench.settings.resolve import parse_settings

    _load_plugins(plugin)
    faults: list[str] = []
    bare = [text.removeprefix("judge.settings.") for text in sets or []]  # as `pobench run` names them
    settings = _each(faults, bare, lambda text: parse_settings(text, "--set"))
    faults += judge_faults(judge, settings, "--judge", "--set ")
    asked = or_fault(faults, lambda: agreement.cases(data, limit)) or []
    _refuse(faults)
    made = judges.get(judge)(**settings)
    if hasattr(made, "estimate"):
        err.print(str(made.estimate([case.comparison for case in asked])), highlight=False)
    with progress("verdicts", len(asked), "pairs") as advance:
        scored = agreement.check(
            made,
            asked,
            data=data.name,
            progress=lambda done, total: advance(done=len(asked) * done // max(total, 1)),
        )
    _print_scored(scored, as_json)


def _print_scored(scored: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(scored.as_json(), indent=1))
        return
    named = ", ".join([*([scored.model] if scored.model else []), f"judged by {scored.judge or '(not named)'}"])
    out.print(f"[bold]{_untrusted(scored.benchmark)}[/]  {_untrusted(named)}", highlight=False)
    table = Table("", "value", "95 %", "n", "", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for line in scored.lines:
        e = line.estimate
        value, low, high = ("–" if math.isnan(x) else f"{x:{line.format}}" for x in (e.value, e.low, e.high))
        interval = "–" if math.isnan(e.low) else escape(f"[{low}, {high}]")
        table.add_row(_untrusted(line.title), value, interval, str(e.n), f"[dim]{escape(line.note)}[/]")
    out.print(table, highlight=False)
    for note in scored.notes:
        out.print(f"note: {_untrusted(note)}", highlight=False)
