"""pobench study: run a study's grid, print its plan and the verdicts on its claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pobench.cli.analyze import drawn
from pobench.cli.complete import complete_studies
from pobench.cli.cost import print_cost
from pobench.cli.detach import announce, continuing, detached_here, print_submitted
from pobench.cli.group import COMPARED, STYLE, Command
from pobench.cli.options import (
    Debug,
    Detach,
    DryRun,
    ExecutorName,
    ExecutorSets,
    Json,
    Parallel,
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
pobench study kl-vs-beta --setting tiny --dry-run
pobench study length-normalisation --setting tiny-long --seeds 1,2,3
"""


@app.command(cls=Command, epilog=EXAMPLES)
def study_(
    name: Annotated[
        str,
        typer.Argument(
            help="A shipped study (`pobench list studies`) or a YAML path.", autocompletion=complete_studies
        ),
    ],
    setting: SettingName = "smollm2",
    losses: Annotated[
        str | None, typer.Option(help="Only these losses; default: all that the study names.", rich_help_panel=COMPARED)
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Comma-separated; default: the study's, or the setting's.", rich_help_panel=COMPARED),
    ] = None,
    sets: Sets = None,
    runs: Runs = Path("runs"),
    plugin: Plugins = None,
    executor: ExecutorName = "local",
    executor_set: ExecutorSets = None,
    parallel: Parallel = 1,
    detach: Detach = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a study's grid, draw its figures, and give a verdict on each of its claims. Finished jobs are reused."""
    from pobench.settings.resolve import parse_overrides, resolve
    from pobench.workflows.study import describe_study, execute_all, expand, make_plans
    from pobench.workflows.study_file import read_study

    plugins = load_plugins(plugin)
    faults: list[str] = []
    study: Any = or_fault(faults, lambda: read_study(name))
    values = parse_each(faults, sets, parse_overrides)
    seed_list = or_fault(faults, lambda: parse_seeds(seeds))
    if study is None:  # without its grid; the other faults are listed nevertheless
        or_fault(faults, lambda: resolve(setting, losses or "paper", seeds=seed_list, overrides=values))
    jobs: Any = study and or_fault(
        faults, lambda: expand(study, setting, losses=losses, seeds=seed_list, overrides=values)
    )
    where = parse_executor(faults, executor, executor_set, parallel, detach)
    raise_faults(faults)
    if not (dry_run or detach):
        where.expect(jobs)
    plans = make_plans(jobs, runs, study.every_stage, plugins, dry=dry_run)
    if dry_run:
        described = describe_study(study, plans)
        say_json(described) if as_json else _print_study(described)
        return
    _print_summaries(plans)
    if detach and detached_here(where, [task for plan in plans for task in plan.left], runs / jobs[0].setting):
        return
    with continuing(where):
        outcomes = execute_all(plans, executor=where, detach=detach, announce=announce)
    if not print_submitted(outcomes, as_json):
        _report(study, plans, outcomes, runs, jobs[0].setting, as_json)


def _print_summaries(plans: Sequence[Any]) -> None:
    """What is left to do, each line once: plans of several data sets share some."""
    summaries = [plan.text().splitlines() for plan in plans if plan.left or plan.notes]
    for line in dict.fromkeys(line for text in summaries for line in text):
        err.print(escape(line))


def _report(study: Any, plans: Sequence[Any], outcomes: Sequence[Any], runs: Path, setting: str, as_json: bool) -> None:
    """Draw the study's page, print the verdicts on its claims, and end with status 1 if something is missing."""
    from pobench.results.arms import arms_of
    from pobench.results.earlier_looks import looks_at, warning
    from pobench.results.load import load_frames
    from pobench.workflows.study import report_study, scorecard, study_frames

    stored = load_frames(runs, setting)
    frames = study_frames(plans, stored)
    report, whole = drawn(lambda: report_study(study, frames, stored, runs))
    card = scorecard(study, frames)
    if looked := warning(looks_at(frames["looks"], frames["runs"], arms_of(frames["runs"]))):
        err.print(escape(looked), highlight=False)
    failed = [o for o in outcomes if o.status == "failed"]
    if as_json:
        counts = {s: sum(o.status == s for o in outcomes) for s in ("finished", "skipped", "failed")}
        summary = {"study": study.name, "counts": counts, "outcomes": [o.__dict__ for o in outcomes], "claims": card}
        say_json({**summary, "report": str(report)})
    else:
        _print_claims(card)
        for o in failed:
            err.print(f"failed: {escape(o.title)} ({escape(o.run)}): {escape(o.reason)}", style="red")
        out.print(escape(f"report: {report}"), highlight=False)
    if failed or not whole:
        raise typer.Exit(1)


def _print_study(plan: dict[str, Any]) -> None:
    out.print(
        f"[bold]{escape(plan['title'])}[/]  [dim]{escape(plan['paper'] or 'ours')}[/]\n{escape(plan['question'])}\n"
    )
    table = make_table("", "seed", "state")
    for job in plan["jobs"]:
        arm, _, seed = job["title"].partition(", seed ")
        table.add_row(*(escape(text) for text in (arm, seed, job["state"])))
    out.print(table, highlight=False)
    count = plan["count"]
    jobs = f"{count['jobs']} jobs, {count['finished']} finished" + (
        f", {count['failed before']} failed before" if count["failed before"] else ""
    )
    print_cost(plan, f"\n{jobs}\n")


def _print_claims(card: list[dict[str, Any]]) -> None:
    for row in card:
        value, low, high = ("–" if row[k] is None else f"{row[k]:.3g}" for k in ("value", "low", "high"))
        basis = f"n = {row['n']}, {row['seeds']} seed{'' if row['seeds'] == 1 else 's'}"
        measured = f"{value} [{low}, {high}] {row['unit']}, {basis}" if row["n"] else "–"
        paper = ", ".join(filter(None, (row["paper"], row["where"])))
        out.print(f"[bold]{row['verdict']:14}[/] {escape(row['claim'])}", highlight=False)
        out.print(f"               [dim]here {escape(measured)} · paper {escape(paper)}[/]", highlight=False)
