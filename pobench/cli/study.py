"""pobench study and pobench tune."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pobench.cli.options import (
    HOME_STAGES,
    Debug,
    Json,
    Losses,
    Plugins,
    Runs,
    Sets,
    SettingName,
    _each,
    _load_plugins,
    _numbers,
    _refuse,
    app,
    err,
    out,
)
from pobench.cli.run import _print_cost
from pobench.errors import or_fault


@app.command("study")
def study_(
    name: Annotated[str, typer.Argument(help="A shipped study (`pobench list studies`) or a YAML path.")],
    setting: SettingName = "smollm2",
    losses: Annotated[str | None, typer.Option(help="Only these; default: all that the study names.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma-separated; default: the study's, or the setting's.")] = None,
    sets: Sets = None,
    runs: Runs = Path("runs"),
    plugin: Plugins = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; touch nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a study's grid, draw its figures, and say what became of the paper's claims. Finished jobs are reused."""
    from pobench.settings.resolve import parse_overrides, resolve
    from pobench.workflows import study as studies

    plugins = _load_plugins(plugin)
    faults: list[str] = []
    asked: Any = or_fault(faults, lambda: studies.read_study(name))
    values = _each(faults, sets, parse_overrides)
    seed_list = or_fault(faults, lambda: _numbers(seeds))
    if asked is None:  # its grid is not known; what else is wrong is said all the same
        or_fault(faults, lambda: resolve(setting, losses or "paper", seeds=seed_list, overrides=values))
    jobs: Any = asked and or_fault(
        faults, lambda: studies.expand(asked, setting, losses=losses, seeds=seed_list, overrides=values)
    )
    _refuse(faults)
    plans = studies.make_plans(jobs, runs, HOME_STAGES, plugins, dry=dry_run)
    if dry_run:
        described = studies.describe_study(asked, plans)
        print(json.dumps(described, indent=1)) if as_json else _print_study(described)
        return
    told = [plan.prepared.text().splitlines() for plan in plans if plan.prepared is not None and plan.left]
    for line in dict.fromkeys(line for text in told for line in text):  # what several biases share is said once
        err.print(escape(line))
    try:
        outcomes = studies.execute_all(
            plans, announce=lambda text: err.print(escape(text), style="bold", highlight=False)
        )
    except KeyboardInterrupt:
        err.print("\ninterrupted; the same command continues where this one stopped")
        raise
    frames = studies.study_frames(plans, runs)
    report, card = studies.report_study(asked, frames, runs), studies.scorecard(asked, frames)
    failed = [o for o in outcomes if o.status == "failed"]
    if as_json:
        counts = {s: sum(o.status == s for o in outcomes) for s in ("finished", "skipped", "failed")}
        out_ = {"study": asked.name, "counts": counts, "outcomes": [o.__dict__ for o in outcomes], "claims": card}
        print(json.dumps({**out_, "report": str(report)}, indent=1, ensure_ascii=False))
    else:
        _print_claims(card)
        for o in failed:
            err.print(f"failed: {escape(o.title)} ({escape(o.run)}): {escape(o.reason)}", style="red")
        out.print(f"report: {report}", highlight=False)
    if failed:
        raise typer.Exit(1)


def _print_study(plan: dict[str, Any]) -> None:
    out.print(
        f"[bold]{escape(plan['title'])}[/]  [dim]{escape(plan['paper'] or 'ours')}[/]\n{escape(plan['question'])}\n"
    )
    table = Table("", "seed", "state", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for job in plan["jobs"]:
        arm, _, seed = job["title"].partition(", seed ")
        table.add_row(*(escape(text) for text in (arm, seed, job["state"])))
    out.print(table, highlight=False)
    count = plan["count"]
    jobs = f"{count['jobs']} jobs, {count['finished']} finished" + (
        f", {count['failed before']} failed before" if count["failed before"] else ""
    )
    _print_cost(plan, f"\n{jobs}\n")


def _print_claims(card: list[dict[str, Any]]) -> None:
    for row in card:
        value, low, high = ("–" if row[k] is None else f"{row[k]:.3g}" for k in ("value", "low", "high"))
        ours = f"{value} [{low}, {high}] {row['unit']}, n = {row['n']}" if row["n"] else "–"
        out.print(f"[bold]{row['verdict']:13}[/] {escape(row['claim'])}", highlight=False)
        out.print(f"              [dim]here {escape(ours)} · paper {escape(row['paper'])}[/]", highlight=False)


@app.command("tune")
def tune_(
    losses: Losses = "simpo,dpo",
    setting: SettingName = "smollm2",
    trials: Annotated[
        int | None, typer.Option(help="Of every loss; default: as many as the smallest grid has cells.")
    ] = None,
    sampler: Annotated[str, typer.Option(help="grid | random | tpe (between the grid's ends).")] = "grid",
    grid: Annotated[
        str | None, typer.Option(help="A grid of experiments/grids or a YAML; default: the setting's.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The objective; default: the setting's.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Of every trial, comma-separated; default: the setting's first.")
    ] = None,
    sets: Sets = None,
    runs: Runs = Path("runs"),
    plugin: Plugins = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the weights of every trial.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the search; touch nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search every loss's values with equal budgets, on a split neither trained on nor reported. Resumable."""
    from pobench.settings.resolve import parse_overrides
    from pobench.workflows.search import tune
    from pobench.workflows.tune import describe_tuning, plan_tuning

    plugins = _load_plugins(plugin)
    faults: list[str] = []
    values = _each(faults, sets, parse_overrides)
    seed_list = or_fault(faults, lambda: _numbers(seeds))
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
    _refuse(faults)
    if dry_run:
        described = describe_tuning(search)
        print(json.dumps(described, indent=1)) if as_json else _print_search(described)
        return
    try:
        tuned = tune(
            search,
            keep_models=keep_models,
            announce=lambda text: err.print(escape(text), style="bold", highlight=False),
        )
    except KeyboardInterrupt:
        err.print("\ninterrupted; the same command continues where this one stopped")
        raise
    report = _tuning_report(search.folder)
    if as_json:
        best = {b.loss: b.__dict__ for b in tuned.best}
        about = {"best": best, "failed": tuned.failed, "made": tuned.made, "trials": str(tuned.csv)}
        print(json.dumps({**about, "setting": str(tuned.chosen), "report": str(report)}, indent=1))
    else:
        columns = ("", "chosen", search.about.metric, "start model", "n", "trials")
        table = Table(*map(escape, columns), box=None, header_style="bold", padding=(0, 2, 0, 0))
        for b in tuned.best:
            searched = {"lr": b.lr, **{key: b.settings[key] for key in b.searched}}
            chosen = ", ".join(f"{key} = {value}" for key, value in searched.items())
            interval = "" if math.isnan(b.low) else f" [{b.low:.3g}, {b.high:.3g}]"
            start = "–" if math.isnan(b.start) else f"{b.start:.3g}"
            table.add_row(*map(escape, (b.loss, chosen, f"{b.value:.3g}{interval}", start, str(b.n), str(b.trials))))
        out.print(table, highlight=False)
        if tuned.best:
            split = search.about.prompts or search.about.pairs
            out.print(f"measured on {escape(str(split))}, where the best was picked, so it flatters", highlight=False)
        for reason in tuned.failed:
            err.print(f"failed: {escape(reason)}", style="red")
        out.print(f"every trial: {tuned.csv}\nreport: {report}", highlight=False)
        if tuned.best:
            chosen_names = ",".join(b.loss for b in tuned.best)
            same = "".join(f" --set {shlex.quote(text)}" for text in sets or () if not text.startswith("tune."))
            out.print(
                f"what the choice is worth: pobench run --setting {tuned.chosen} --losses {chosen_names}{same}",
                highlight=False,
            )
    if tuned.failed:
        raise typer.Exit(1)


def _tuning_report(folder: Path) -> Path:
    """The search's own page; the report of the setting shows the same grid once it is built."""
    from pobench.reporting.page import build_report
    from pobench.results.load import load_frames

    # Without the trials' scores: who beats whom on the prompts of the search is no finding.
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
    _print_cost(search, f"{search['jobs']} jobs · ")
