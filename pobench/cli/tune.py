"""pobench tune: search every loss's values, print the search and what it chose."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from pobench.cli.analyze import drawn
from pobench.cli.cost import print_cost
from pobench.cli.detach import announce, continuing
from pobench.cli.group import COMPARED, FIRST, OUTPUT, PLACE, STYLE, WORK, Command
from pobench.cli.options import (
    Debug,
    ExecutorName,
    ExecutorSets,
    Json,
    Losses,
    Plugins,
    Runs,
    Sets,
    SettingName,
    load_plugins,
    parse_each,
    parse_executor,
    parse_seeds,
    raise_faults,
)
from pobench.cli.terminal import err, escape, make_table, out
from pobench.errors import or_fault
from pobench.printing import say_json

app = typer.Typer(**STYLE)

EXAMPLES = """
pobench tune --losses simpo,dpo --setting tiny --trials 8 --dry-run
pobench tune --losses paper --setting mine.yaml --trials 8 --into mine.yaml
"""


@app.command(cls=Command, epilog=EXAMPLES)
def tune_(
    losses: Losses = "simpo,dpo",
    setting: SettingName = "smollm2",
    trials: Annotated[
        int | None,
        typer.Option(
            help="Trials of each loss; default: as many as the smallest grid has cells.", rich_help_panel=WORK
        ),
    ] = None,
    sampler: Annotated[
        str, typer.Option(help="grid, or random or tpe between the ends of the grid.", rich_help_panel=WORK)
    ] = "grid",
    grid: Annotated[
        str | None, typer.Option(help="A shipped grid or a YAML path; default: the setting's.", rich_help_panel=WORK)
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="The metric that chooses; default: the setting's.", rich_help_panel=WORK)
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds of each trial, comma-separated; default: the setting's first.", rich_help_panel=COMPARED
        ),
    ] = None,
    sets: Sets = None,
    runs: Runs = Path("runs"),
    plugin: Plugins = None,
    parallel: Annotated[
        int,
        typer.Option(
            min=1,
            help="Trials at one time; on this machine each has its GPUs or its share of the cores.",
            rich_help_panel=PLACE,
        ),
    ] = 1,
    executor: ExecutorName = "local",
    executor_set: ExecutorSets = None,
    into: Annotated[
        Path | None,
        typer.Option(
            help="Write the chosen values into this setting's file, if no trial is missing.", rich_help_panel=OUTPUT
        ),
    ] = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the weights of every trial.", rich_help_panel=OUTPUT)
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the search and its cost; write nothing.", rich_help_panel=FIRST)
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Tune every loss with an equal budget, on data that is neither trained on nor reported. Resumable."""
    from pobench.settings.resolve import parse_overrides
    from pobench.workflows.search import tune
    from pobench.workflows.tune import describe_tuning, plan_tuning

    plugins = load_plugins(plugin)
    faults: list[str] = []
    if into is not None and not into.is_file():
        faults.append(f"--into: no file {str(into)!r}")
    values = parse_each(faults, sets, parse_overrides)
    seed_list = or_fault(faults, lambda: parse_seeds(seeds))
    search: Any = or_fault(
        faults,
        lambda: plan_tuning(
            losses,
            setting,
            trials=trials,
            sampler=sampler,
            grid=grid,
            metric=metric,
            seeds=seed_list,
            overrides=values,
            runs=runs,
            plugins=plugins,
            dry=dry_run,
        ),
    )
    where = parse_executor(faults, executor, executor_set, parallel=1, detach=False)
    raise_faults(faults)
    if dry_run:
        described = describe_tuning(search)
        say_json(described) if as_json else _print_search(described)
        return
    with continuing(where):
        tuned = tune(search, keep_models=keep_models, parallel=parallel, executor=where, announce=announce)
    report, drawn_whole = drawn(lambda: _tuning_report(search.folder))
    _print_outcome(search, tuned, report, sets or [], as_json)
    if into is not None:
        _write_into(into, search, tuned)
    if tuned.failed or not drawn_whole:
        raise typer.Exit(1)


def _print_outcome(search: Any, tuned: Any, report: Path, sets: list[str], as_json: bool) -> None:
    """What was chosen, where every trial is, and the command that comes next."""
    if as_json:
        best = {b.loss: b.__dict__ for b in tuned.best}
        about = {"best": best, "failed": tuned.failed, "made": tuned.made, "trials": str(tuned.csv)}
        say_json({**about, "setting": str(tuned.chosen), "report": str(report)})
        return
    _print_tuned(search, tuned)
    out.print(escape(f"every trial: {tuned.csv}\nreport: {report}"), highlight=False)
    _print_next_command(tuned, sets)


def _write_into(path: Path, search: Any, tuned: Any) -> None:
    """Write the chosen values into a setting's file: of the losses that had all their trials."""
    from pobench.files import write_text
    from pobench.workflows.chosen import write_into

    whole = [best for best in tuned.best if best.tried == search.trials]
    before = path.read_text(encoding="utf-8")
    if (after := write_into(before, search.about.metric, whole, f"--into {str(path)!r}")) != before:
        write_text(path, after)
    err.print(f"{len(whole)} losses: chosen values in {escape(str(path))}", highlight=False)


def _print_tuned(search: Any, tuned: Any) -> None:
    """The chosen values of each loss, what they reached, and what failed."""
    columns = ("", "chosen", search.about.metric, "start model", "n", "trials")
    table = make_table(*map(escape, columns))
    for best in tuned.best:
        searched = {"lr": best.lr, **{key: best.settings[key] for key in best.searched}}
        chosen = ", ".join(f"{key} = {value}" for key, value in searched.items())
        interval = "" if math.isnan(best.low) else f" [{best.low:.3g}, {best.high:.3g}]"
        start = "–" if math.isnan(best.start) else f"{best.start:.3g}"
        cells = (best.loss, chosen, f"{best.value:.3g}{interval}", start, str(best.n), str(best.trials))
        table.add_row(*map(escape, cells))
    out.print(table, highlight=False)
    if tuned.best:
        split = search.about.prompts or search.about.pairs
        out.print(f"measured on {escape(str(split))}, where the best was picked, so it flatters", highlight=False)
    for reason in tuned.failed:
        err.print(f"failed: {escape(reason)}", style="red")


def _print_next_command(tuned: Any, sets: list[str]) -> None:
    """The command that measures the choice on data that the search has not seen."""
    if tuned.best:
        losses = ",".join(best.loss for best in tuned.best)
        same = "".join(f" --set {shlex.quote(text)}" for text in sets if not text.startswith("tune."))
        out.print(
            escape(
                f"what the choice is worth: pobench run --setting {shlex.quote(str(tuned.chosen))} --losses {losses}{same}"
            ),
            highlight=False,
        )


def _tuning_report(folder: Path) -> Path:
    """The search's own page; the report of the setting shows the same grid once it is built."""
    from pobench.reporting.page import build_report
    from pobench.results.load import load_frames

    # Without the trials' scores: a comparison on the prompts of the search would be biased.
    frames = {name: frame for name, frame in load_frames(folder).items() if name in ("runs", "tuning", "audit")}
    return build_report(frames, folder / "report", figures=["tuning", "tuning-table", "settings-table"])


def _print_search(search: dict[str, Any]) -> None:
    out.print(
        f"[bold]{escape(search['setting'])}[/]  {escape(search['metric'])} on {escape(search['split'])}, "
        f"{search['trials']} trials of each loss ({search['sampler']}), {len(search['seeds'])} seed(s)",
        highlight=False,
    )
    for row in search["losses"]:
        space = " × ".join(f"{key} {values}" for key, values in row["space"].items())
        out.print(
            f"  [bold]{row['loss']}[/]  {escape(space)}  [dim]{row['cells']} cells, {row['done']} trials done[/]",
            highlight=False,
        )
    print_cost(search, f"{search['jobs']} jobs · ")
