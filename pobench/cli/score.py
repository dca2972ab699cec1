"""pobench score: stored verdicts of AlpacaEval 2, Arena-Hard and MT-Bench."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pobench.cli.group import STYLE, Group
from pobench.cli.options import Debug, Json
from pobench.cli.terminal import escape, make_table, out
from pobench.printing import say_json

app = typer.Typer(cls=Group, **STYLE)
Verdicts = Annotated[Path, typer.Argument(metavar="FILE", help="Stored verdicts: JSON, JSONL, CSV or Parquet.")]
OneModel = Annotated[str | None, typer.Option(help="The model to score, if the file holds several.")]


@app.callback()
def score() -> None:
    """Score stored verdicts of AlpacaEval 2, Arena-Hard or MT-Bench."""


@app.command("alpaca_eval")
def score_alpaca_eval(
    file: Verdicts,
    length_control: Annotated[
        Path | None,
        typer.Option(help="Folder with df_gamed.csv and instruction_difficulty.csv; default: the hub."),
    ] = None,
    length_only: Annotated[
        bool,
        typer.Option(
            "--length-only",
            help="For other prompts or opponents: win rates, raw and by length alone; not LC.",
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """AlpacaEval 2: win rate and length-controlled win rate, by alpaca_eval's own code, from its annotations."""
    from pobench.judging.benchmarks import alpaca_eval_score

    print_scored(alpaca_eval_score.score(file, length_control=length_control, length_only=length_only), as_json)


@app.command("arena_hard")
def score_arena_hard(
    file: Verdicts,
    model: OneModel = None,
    control: Annotated[
        str | None,
        typer.Option(help="Style control by `length`, `markdown` or both, comma-separated; FILE holds several models."),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(help="For --control: a file or folder of the models' and the baseline's answers; repeatable."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Arena-Hard v0.1, or v2.0 by category: the score against the baseline, from the judgments of both games."""
    from pobench.judging.benchmarks import arena_hard_score, arena_hard_style

    if control is None:
        print_scored(arena_hard_score.score(file, model=model), as_json)
        return
    controls = [name.strip() for name in control.split(",") if name.strip()]
    print_scored(arena_hard_style.score(file, answers or [], controls, model=model), as_json)


@app.command("mt_bench")
def score_mt_bench(
    file: Verdicts,
    model: OneModel = None,
    duplicates: Annotated[
        Literal["last", "mean", "stop"],
        typer.Option(help="Of several grades of one answer, and grades of 0: stop, or count the last or all."),
    ] = "stop",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """MT-Bench: the mean of 160 grades, by turn and by category."""
    from pobench.judging.benchmarks import mt_bench_score

    print_scored(mt_bench_score.score(file, model=model, duplicates=duplicates), as_json)


def print_scored(scored: Any, as_json: bool) -> None:
    """A benchmark's numbers with their intervals, or the same as JSON."""
    if as_json:
        say_json(scored.as_json())
        return
    about = ", ".join([*([scored.model] if scored.model else []), f"judged by {scored.judge or '(not named)'}"])
    out.print(f"[bold]{escape(scored.benchmark)}[/]  {escape(about)}", highlight=False)
    table = make_table("", "value", "95 %", "n", "")
    for line in scored.lines:
        e = line.estimate
        value, low, high = ("–" if math.isnan(x) else f"{x:{line.format}}" for x in (e.value, e.low, e.high))
        interval = "–" if math.isnan(e.low) else escape(f"[{low}, {high}]")
        table.add_row(escape(line.title), value, interval, str(e.n), f"[dim]{escape(line.note)}[/]")
    out.print(table, highlight=False)
    for note in scored.notes:
        out.print(f"note: {escape(note)}", highlight=False)
