"""The command line: it reads what people type, calls the instrument, and prints what came of it.

Exit status: 0 all done · 1 some job failed, the rest is complete · 2 the command, a setting or the data is wrong
(one plain message, nothing written) · 130 interrupted, resumable.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pobench.registry import PobenchError, or_fault

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which preference-optimization loss is really better, on your model and your data?",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at preference data, or make some on policy.")
app.add_typer(data_app, name="data")
score_app = typer.Typer(no_args_is_help=True, help="Score stored verdicts of AlpacaEval 2, Arena-Hard or MT-Bench.")
app.add_typer(score_app, name="score")
judge_app = typer.Typer(no_args_is_help=True, help="Find out what a judge is worth before it is believed.")
app.add_typer(judge_app, name="judge")

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

Runs = Annotated[Path, typer.Option(help="Folder of the stored runs.")]
Losses = Annotated[
    str, typer.Option(help="Names or aliases, comma-separated; `paper` = the twelve of the design card; `all`.")
]
SettingName = Annotated[str, typer.Option(help="A shipped setting or a YAML path.")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one value; repeatable.")]
Plugins = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A Python file that registers losses, judges or figures.")
]
Json = Annotated[bool, typer.Option("--json", help="The summary for machines, on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]

HOME_STAGES = ("sft", "train", "heldout", "answers", "judge")  # of a study's and a search's many jobs
STAGES = (*HOME_STAGES, "benchmarks")
KNOWN_STAGES = (*STAGES, "norms")  # what is not in STAGES runs where it is named


def _load_plugins(plugins: list[Path] | None) -> list[str]:
    from pobench.registry import load_plugin

    faults: list[str] = []
    for plugin in plugins or []:
        or_fault(faults, partial(load_plugin, plugin))
    _refuse(faults)  # alone: what else would be said of names that a plug-in brings is not true
    return [str(p.absolute()) for p in plugins or []]


def _each(faults: list[str], texts: list[str] | None, read: Callable[[list[str]], dict[str, Any]]) -> dict[str, Any]:
    """What can be read of several KEY=VALUE; what cannot is noted."""
    return {
        key: value for text in texts or () for key, value in (or_fault(faults, partial(read, [text])) or {}).items()
    }


def _refuse(faults: list[str]) -> None:
    """Everything that is wrong with a command in one message, each fault once."""
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(line for fault in faults for line in fault.splitlines())))


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise PobenchError(f"--seeds {text!r}: expected whole numbers, comma-separated, such as 1,2,3") from None


def _stages(text: str) -> list[str]:
    from pobench.registry import nearest

    stages = [s.strip() for s in text.split(",") if s.strip()]
    wrong = [
        f"--stages: unknown stage {s!r}{nearest(s, KNOWN_STAGES)} Known: {', '.join(KNOWN_STAGES)}"
        for s in stages
        if s not in KNOWN_STAGES
    ]
    if wrong or not stages:
        raise PobenchError("\n".join(wrong) or f"--stages: name at least one of {', '.join(KNOWN_STAGES)}")
    return stages


@app.command()
def run(
    losses: Losses = "simpo,dpo",
    setting: SettingName = "smollm2",
    seeds: Annotated[str | None, typer.Option(help="Comma-separated; default: the setting's.")] = None,
    sets: Sets = None,
    data: Annotated[str | None, typer.Option(help="Other preference pairs: a file or a hub name.")] = None,
    model: Annotated[str | None, typer.Option(help="Another start model: a folder or a hub name.")] = None,
    runs: Runs = Path("runs"),
    stages: Annotated[str, typer.Option(help="Which stages to run.")] = ",".join(STAGES),
    benchmarks: Annotated[
        str | None, typer.Option(help="Comma-separated, or `none`; default: those that the setting names.")
    ] = None,
    plugin: Plugins = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost; touch nothing.")] = False,
    rehearse: Annotated[
        bool,
        typer.Option("--rehearse", help="All of it in minutes, offline, on a tiny random model of the same family."),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train, evaluate on held-out pairs, answer, judge, score, report: the main job, end to end."""
    from pobench.config import parse_overrides, resolve

    plugins = _load_plugins(plugin)
    faults: list[str] = []
    values = _each(faults, sets, parse_overrides)
    seed_list = or_fault(faults, lambda: _numbers(seeds))
    stage_list = or_fault(faults, lambda: _stages(stages)) or list(STAGES)
    if dry_run and rehearse:
        faults.append("--dry-run touches nothing and --rehearse runs everything small; give one of them")
    named = {"data": data, "model": model, "benchmark_names": benchmarks}
    jobs = or_fault(faults, lambda: resolve(setting, losses, seeds=seed_list, overrides=values, **named)) or []
    _refuse(faults)

    from pobench.plan import describe, execute, make_plan

    if dry_run:
        plan = make_plan(jobs, runs, stage_list, plugins, dry=True)
        described = describe(plan)
        print(json.dumps(described, indent=1)) if as_json else _print_plan(described)
        return
    if rehearse:
        from pobench.rehearsal import rehearse as stand_in

        jobs, runs = stand_in(jobs), runs / "rehearsal"
    plan = make_plan(jobs, runs, stage_list, plugins)
    if plan.left:
        err.print(escape(plan.text()))
    try:
        outcomes = execute(plan, announce=lambda text: err.print(escape(text), style="bold", highlight=False))
    except KeyboardInterrupt:
        err.print("\ninterrupted; the same command continues where this one stopped")
        raise
    failed = [o for o in outcomes if o.status == "failed"]
    if stage_list == ["sft"]:
        _print_start_models(plan, failed, as_json)
        return
    report = runs / "report" / "report.html"
    if any(o.status != "skipped" for o in outcomes) or not report.is_file():
        report = _analyze(runs, None, "all", None)
    if as_json:
        print(
            json.dumps(
                {
                    "outcomes": [o.__dict__ for o in outcomes],
                    "scores": _scores(runs, outcomes),
                    "benchmarks": {o.run: _results(runs, o.run) for o in outcomes},
                    "report": str(report),
                },
                indent=1,
            )
        )
    else:
        _print_summary(runs, outcomes)
        for o in failed:
            err.print(f"failed: {escape(o.title)} ({escape(o.run)}): {escape(o.reason)}", style="red")
        out.print(f"report: {report}", highlight=False)
    if failed:
        raise typer.Exit(1)


def _print_start_models(plan: Any, failed: list[Any], as_json: bool) -> None:
    """After `--stages sft`: there are no runs to report on yet."""
    folders = {task.run: str(task.data / "model") for task in plan.tasks}
    made = [folder for run, folder in folders.items() if run not in {o.run for o in failed}]
    if as_json:
        print(json.dumps({"start_models": made, "failed": [o.__dict__ for o in failed]}, indent=1))
    else:
        for folder in made:
            out.print(f"start model: {folder}", highlight=False)
        for o in failed:
            err.print(f"failed: {escape(o.title)}: {escape(o.reason)}", style="red")
    if failed:
        raise typer.Exit(1)


def _analyze(runs: Path, setting: str | None, figures: str, folder: Path | None, formats: str = "all") -> Path:
    from pobench import registry
    from pobench.report import FORMATS, build_report
    from pobench.store import load_frames

    names, kinds = (
        None if said == "all" else [n.strip() for n in said.split(",") if n.strip()] for said in (figures, formats)
    )
    faults = [
        f"--format: unknown {kind!r}{registry.nearest(kind, FORMATS)} Known: {', '.join(FORMATS)}"
        for kind in kinds or ()
        if kind not in FORMATS
    ]
    for name in names or ():
        or_fault(faults, partial(registry.figures.get, name))
    frames: Any = or_fault(faults, lambda: load_frames(runs, setting))
    _refuse(faults)
    return build_report(frames, folder or runs / "report", figures=names, formats=kinds or FORMATS)


@app.command()
def analyze(
    runs: Runs = Path("runs"),
    setting: Annotated[str | None, typer.Option(help="Only the runs of this setting.")] = None,
    figures: Annotated[str, typer.Option(help="`all`, or names, comma-separated.")] = "all",
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where the report goes; default: RUNS/report.")] = None,
    formats: Annotated[str, typer.Option("--format", help="`all`, or of html, md, tex, csv, png, svg.")] = "all",
    plugin: Plugins = None,
    debug: Debug = False,
) -> None:
    """Draw every figure and table, and write report.html, summary.md (fit for a pull request) and tables.tex, from stored
    runs alone: the same bytes twice."""
    _load_plugins(plugin)
    out.print(f"report: {_analyze(runs, setting, figures, out_dir, formats)}", highlight=False)


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
    from pobench import study as studies
    from pobench.config import parse_overrides, resolve

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
    from pobench import tune as tuning
    from pobench.config import parse_overrides

    plugins = _load_plugins(plugin)
    faults: list[str] = []
    values = _each(faults, sets, parse_overrides)
    seed_list = or_fault(faults, lambda: _numbers(seeds))
    search: Any = or_fault(
        faults,
        lambda: tuning.plan_tuning(
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
        described = tuning.describe_tuning(search)
        print(json.dumps(described, indent=1)) if as_json else _print_search(described)
        return
    try:
        tuned = tuning.tune(
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
    from pobench.report import build_report
    from pobench.store import load_frames

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


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="losses | settings | studies | figures | judges")] = "losses",
    plugin: Plugins = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Losses only: the page of all objectives.")] = False,
    debug: Debug = False,
) -> None:
    """What there is, by name."""
    from pobench import config, registry

    _load_plugins(plugin)
    kinds = ("losses", "settings", "studies", "figures", "judges")
    if what not in kinds:
        raise PobenchError(f"list: unknown kind {what!r}{registry.nearest(what, kinds)} Known: {', '.join(kinds)}")
    if markdown:
        if what != "losses" or as_json:
            raise PobenchError("list: --markdown is for `losses`, without --json")
        from pobench.loss_page import loss_page

        print(loss_page(), end="")
        return
    rows: list[dict[str, Any]] = []
    if what == "losses":
        for name in registry.losses.names():
            loss = registry.get_loss(name)
            settings = {
                s: {
                    "default": d,
                    "default_from": loss.defaults.get(s, ""),
                    "unit": loss.units.get(s, ""),
                    "published_range": loss.ranges.get(s),
                }
                for s, d in loss.settings.items()
            }
            rows.append(
                {
                    "name": name,
                    "title": loss.title,
                    "formula": loss.formula,
                    "gradient": loss.gradient,
                    "settings": settings,
                    "needs": sorted(loss.needs),
                    "source": loss.source,
                    "aliases": registry.losses.aliases(name),
                    "in_paper": loss.in_paper,
                }
            )
    elif what == "settings":
        for name in config.list_settings():
            values, _ = config.read_setting(name)
            rows.append(
                {
                    "name": name,
                    "model": values["model"]["source"],
                    "data": values["data"]["source"],
                    "description": values.get("description", ""),
                }
            )
    elif what == "studies":
        from pobench.study import studies

        rows = [{k: v for k, v in row.items() if as_json or k != "claims"} for row in studies()]
    elif what == "figures":
        for name in registry.figures.names():
            figure = registry.figures.get(name)
            rows.append({"name": name, "kind": figure.kind, "title": figure.title, "paper": figure.paper})
    else:
        for name in registry.judges.names():
            judge = registry.judges.get(name)
            rows.append(
                {
                    "name": name,
                    "about": judge.doc.splitlines()[0] if judge.doc else "",
                    "settings": dict(judge.settings),
                }
            )
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif what == "losses":
        _print_losses(rows)
    else:
        table = Table(*(rows[0] if rows else ["name"]), box=None, header_style="bold")
        for row in rows:
            table.add_row(*(escape(str(v)) for v in row.values()))
        out.print(table)


@app.command()
def check(
    target: Annotated[
        str, typer.Argument(metavar="FILE.py|NAMES", help="A file that registers losses, or names, `paper`, `all`.")
    ],
    sets: Sets = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the function; no training steps.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Is a loss fit to be compared? Laws, batch invariance and traps, in under a minute; exit status 1 if a law fails."""
    from pobench.config import check_loss_settings, parse_overrides
    from pobench.conformance import check as findings
    from pobench.conformance import losses_of

    losses, plugins = losses_of(target)
    changes: dict[str, dict[str, Any]] = {loss.name: {} for loss in losses}
    faults: list[str] = []
    for key, value in _each(faults, sets, parse_overrides).items():
        name, _, setting = key.partition(".")
        owner = next((loss for loss in losses if loss.name == name), None)
        if owner is None:
            faults.append(f"--set {key}: {name!r} is not checked here; losses: {', '.join(changes)}")
        elif setting not in owner.settings:
            faults.append(f"--set {key}: {name} has no {setting!r}; settings: {', '.join(owner.settings) or 'none'}")
        else:
            changes[name][setting] = value
    faults += [f for loss in losses for f in check_loss_settings(loss, changes[loss.name])]
    _refuse(faults)
    logging.disable(logging.WARNING)  # of the processes that two-process training starts

    rows: list[dict[str, Any]] = []
    signs = {"holds": ("green", "✓"), "fails": ("red", "✗"), "note": ("yellow", "·")}
    for loss in losses:
        if not as_json:
            out.print(f"[bold]{escape(loss.name)}[/]  {escape(loss.title)}", highlight=False)
        for finding in findings(loss, changes[loss.name], plugins, steps=not quick):
            rows.append({"loss": loss.name, **finding._asdict()})
            if not as_json:
                colour, sign = signs[finding.verdict]
                out.print(f"  [{colour}]{sign}[/] {finding.law}: [dim]{escape(finding.seen)}[/]", highlight=False)
    failed = [row for row in rows if row["verdict"] == "fails"]
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        held = sum(row["verdict"] == "holds" for row in rows)
        notes = len(rows) - held - len(failed)
        out.print(f"{held} hold, {len(failed)} fail, {notes} to note", highlight=False)
    if failed:
        raise typer.Exit(1)


def _print_losses(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        needs = ", ".join(row["needs"]) or "policy alone"
        out.print(
            f"[bold]{row['name']}[/]  {escape(row['title'])}  [dim]{escape(row['source'])} · needs {needs}[/]",
            highlight=False,
        )
        for line in row["formula"].splitlines():
            out.print(f"    {escape(line)}", highlight=False)
        for line in row["gradient"].splitlines():
            by = "d loss / d " if line.startswith(("chosen =", "rejected =")) else ""
            out.print(f"    [dim]{by}{escape(line)}[/]", highlight=False)
        for name, about in row["settings"].items():
            tried = f" · published {about['published_range']}" if about["published_range"] else ""
            out.print(
                f"    [cyan]{name}[/] = {about['default']}  [dim]{escape(about['unit'])}{escape(tried)}[/]",
                highlight=False,
            )
        out.print()


def _print_plan(plan: dict[str, Any]) -> None:
    pairs = (
        f"{plan['pairs']} pairs, {plan['held_out']} held out"
        if plan["pairs"] is not None
        else "pairs not counted: the model is not at hand"
    )
    out.print(
        f"[bold]{plan['setting']}[/]  {escape(plan['model']['source'])}  ←  {escape(plan['data']['source'])}  ({pairs})",
        highlight=False,
    )
    for job in plan["jobs"]:
        colour = "green" if job["state"] == "done" else "yellow"
        state = f"[{colour}]{escape(job['state'])}[/]"
        out.print(f"\n[bold]{escape(job['title'])}[/]  {escape(job['run'])}  {state}", highlight=False)
        for key, value in job.get("values", {}).items():
            out.print(f"    {key} = {value}  [dim]{escape(job['sources'][key])}[/]", highlight=False)
    _print_cost(plan, "\n")


def _print_cost(plan: dict[str, Any], before: str) -> None:
    """Time, memory on each device, disk and judge. A study's costs have no more than their sums."""
    cost = plan["cost"]
    gib = 1024**3
    parts = []
    if cost["seconds"] is not None:
        many = f" on {cost['devices']} devices" if cost.get("devices", 1) > 1 else ""
        minutes, hours = cost["seconds"] / 60, cost["seconds"] / 3600
        parts.append(f"time: about {f'{minutes:.1f} min' if minutes < 90 else f'{hours:.1f} h'}{many}")
        if (cost.get("device_hours") or 0) >= 1:
            parts[0] += f", {cost['device_hours']:.1f} device hours in all"
        parts[0] += f" ({cost['basis']})"
    elif cost["memory"] is None:
        out.print(f"{before}cost: not known ({escape(cost['basis'])})", highlight=False)
        return
    else:
        parts.append(f"time: not known ({cost['basis']})")
    if cost["memory"] is not None:
        eight = cost["memory"] - 16 * (cost.get("parameters") or 0) * 7 / 8
        apart = f" ({eight / gib:.0f} GiB if FSDP or DeepSpeed shards it over 8)" if cost["memory"] > 80 * gib else ""
        parts.append(f"memory on each device: about {cost['memory'] / gib:.1f} GiB{apart}")
    if cost["disk"] is not None:
        parts.append(f"disk: about {cost['disk'] / gib:.1f} GiB")
    asked = cost.get("judge_calls", 0)
    free = "" if asked else ", free"
    calls = f", {asked} calls, up to {cost['judge_tokens'] / 1e6:.1f} million tokens" if asked else ""
    parts.append(f"judge: {plan['judge'] or 'none'}{free}{calls}")
    out.print(before + escape(" · ".join(parts)), highlight=False)
    for row in plan.get("benchmarks", ()):
        out.print(escape(_benchmark_cost(row)), highlight=False)


def _benchmark_cost(row: dict[str, Any]) -> str:
    part = f", {row['part']}" if row["part"] else ""
    head = f"{row['benchmark']}: {row['models']} models{part}"
    if row["spoken_tokens"]:
        head += f", up to {row['spoken_tokens'] / 1e6:.2g} million tokens spoken"
    if not row["requests"]:
        return head
    price = "price not known" if row["dollars"] is None else f"at most about ${row['dollars']:.2f}"
    read = f"{row['prompt_tokens'] / 1e6:.2g} million tokens read and {row['reply_tokens'] / 1e6:.2g} written"
    return f"{head} · {row['judge']}: {row['requests']} requests, up to {read}, {price}"


def _scores(runs: Path, outcomes: list[Any]) -> dict[str, Any]:
    from pobench.store import RunFolder

    folders = [RunFolder(runs, o.run) for o in outcomes]
    return {f.run: f.read_json("scores.json") for f in folders if f.has("scores.json")}


def _print_summary(runs: Path, outcomes: list[Any]) -> None:
    """What fits a terminal; the report has the rest. Intervals (95 %) where a decision hangs on them."""
    columns = {"pass_rate": "pass rate", "pass_rate_gain": "gain", "reward_accuracy": "accuracy", "kl_winners": "KL"}
    states = {o.status for o in outcomes}
    last = ["state"] if len(states) > 1 else []  # eighty columns hold it only where it tells something
    table = Table("", *columns.values(), "tokens", *last, box=None, header_style="bold", padding=(0, 1, 0, 0))
    scores = _scores(runs, outcomes)
    for o in outcomes:
        rows = {row["metric"]: row for row in scores.get(o.run, [])}
        cells = [_cell(rows.get(m), interval=m.startswith("pass_rate")) for m in (*columns, "length_tokens")]
        table.add_row(escape(o.title), *cells, *([o.status] if last else []))
    out.print(table, highlight=False)
    for o in outcomes:
        for result in _results(runs, o.run):
            (first,) = result["rows"][:1] or [{}]
            named = f"{result['name']}: {first.get('metric', '')} {_cell(first or None, interval=False)}"
            out.print(f"{escape(o.title)}  [dim]{escape(named)} (n = {first.get('n', 0)})[/]", highlight=False)


def _results(runs: Path, run: str) -> list[dict[str, Any]]:
    """The stored results of a run's benchmarks."""
    from pobench.store import RunFolder

    return RunFolder(runs, run).benchmark_results()


def _cell(row: dict[str, Any] | None, *, interval: bool) -> str:
    if row is None or row["value"] is None or row["n"] == 0:
        return "–"
    value = f"{row['value']:.3g}"
    if not interval or row["low"] is None:
        return value
    low, high = (f"{row[end]:.2f}".replace("0.", ".", 1) for end in ("low", "high"))
    return f"{value} [{low}, {high}]"


ModelName = Annotated[str | None, typer.Option(help="Whose tokenizer; default: the setting's.")]


def _job(setting: str, data: str | None, model: str | None, sets: list[str] | None) -> Any:
    """A setting's data and model, whatever the loss."""
    from pobench.config import parse_overrides, resolve
    from pobench.registry import list_losses

    return resolve(setting, list_losses()[0], data=data, model=model, overrides=parse_overrides(sets or []))[0]


@data_app.command()
def audit(
    file: Annotated[str, typer.Argument(help="A file, `builtin:…` or a hub name.")],
    setting: SettingName = "smollm2",
    model: ModelName = None,
    characters: Annotated[
        bool, typer.Option("--characters", help="Without a tokenizer: lengths in characters.")
    ] = False,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Count and list what is wrong with preference data: nothing is trained, nothing is written."""
    from pobench.data import Audit
    from pobench.inspection import render_audit
    from pobench.prepare import read_pairs
    from pobench.rows import load_preferences
    from pobench.sources import fetch_rows

    job = _job(setting, file, model, [*(sets or []), "data.on_bad_row=drop"])
    if characters:
        found = load_preferences(fetch_rows(file, split=job.data.split))
        out.print(render_audit(Audit.of_file(found)))
    else:
        out.print(render_audit(read_pairs(job)[1]))


@data_app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A file, `builtin:…` or a hub name.")],
    rows: Annotated[int, typer.Option(min=1, help="How many pairs.")] = 3,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    setting: SettingName = "smollm2",
    model: ModelName = None,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Show what the model will see: tokens, the cut between prompt and response, both responses in colour."""
    from pobench.inspection import render_inspection
    from pobench.prepare import read_pairs

    pairs, _, renderer = read_pairs(_job(setting, file, model, [*(sets or []), "data.on_bad_row=drop"]))
    out.print(render_inspection(pairs, renderer, rows=rows, ids=ids))


@data_app.command()
def onpolicy(
    to: Annotated[Path, typer.Option("--out", help="The pairs, JSONL; held-out pairs, samples and recipe beside it.")],
    setting: SettingName = "smollm2",
    prompts: Annotated[
        str | None, typer.Option(help="Prompt rows: a file, `builtin:…` or a hub name; default: the setting's.")
    ] = None,
    prompts_split: Annotated[str | None, typer.Option(help="Of a hub data set.")] = None,
    ranker: Annotated[str | None, typer.Option(help="A judge (`pobench list judges`); default: the setting's.")] = None,
    ranker_set: Annotated[
        list[str] | None, typer.Option("--ranker-set", metavar="KEY=VALUE", help="One of its settings; repeatable.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Of every prompt; default: the setting's, as all below.")] = None,
    temperature: Annotated[float | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    max_new_tokens: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    precision: Annotated[str | None, typer.Option(help="auto | fp32 | bf16")] = None,
    held_out: Annotated[float | None, typer.Option(help="Share of prompts for NAME.heldout.jsonl; 0: none.")] = None,
    model: Annotated[str | None, typer.Option(help="Another model than the setting's.")] = None,
    sets: Sets = None,
    plugin: Plugins = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make preference pairs from the model's own answers: sample, rank, best against worst. Resumable."""
    from pobench.config import parse_overrides, parse_settings
    from pobench.onpolicy import make_pairs_of, recipe_of

    _load_plugins(plugin)
    faults: list[str] = []
    overrides = _each(faults, sets, parse_overrides)
    chosen = _each(faults, ranker_set, lambda text: parse_settings(text, "--ranker-set"))
    given = {
        "prompts": prompts,
        "prompts_split": prompts_split,
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "precision": precision,
        "held_out_fraction": held_out,
    }
    asked = {key: value for key, value in given.items() if value is not None}
    planned: Any = or_fault(
        faults,
        lambda: recipe_of(setting, ranker=ranker, ranker_settings=chosen, model=model, overrides=overrides, **asked),
    )
    _refuse(faults)
    recipe = make_pairs_of(planned, to)
    if as_json:
        print(json.dumps(recipe, indent=1, ensure_ascii=False))
        return
    _print_made(recipe)
    out.print(f"pairs: {to}", highlight=False)


def _print_made(recipe: dict[str, Any]) -> None:
    """What became of the prompts and answers, a line each."""
    counts = recipe["counts"]
    named = {
        "prompts": "prompts",
        "repeated": "prompts left out, as they occur before",
        "answers": "answers",
        "unfinished": "answers cut off, in no pair",
        "empty": "answers without a word, in no pair",
        "identical": "answers left out, as another to the same prompt is equal",
        "unscored": "answers without a score",
        "comparisons": "comparisons of two answers",
        "unread": "comparisons without a verdict",
        "tied": "prompts without a pair, as all their answers rank equal",
        "pairs": "pairs",
    }
    for key, text in named.items():
        if counts.get(key) or key in ("prompts", "answers", "pairs"):
            out.print(f"{counts[key]:>8}  {text}", highlight=False)
    if "held_out" in recipe:
        held = recipe["held_out"]
        out.print(f"          {held['train']} to train on, {held['held_out']} held out by prompt", highlight=False)


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
    from pobench.judging import alpaca_eval

    _print_scored(alpaca_eval.score(file, length_control=length_control, length_only=length_only), as_json)


@score_app.command("arena_hard")
def score_arena_hard(file: Verdicts, model: OneModel = None, as_json: Json = False, debug: Debug = False) -> None:
    """Arena-Hard v0.1: the score against gpt-4-0314, from the judgments of both games."""
    from pobench.judging import arena_hard

    _print_scored(arena_hard.score(file, model=model), as_json)


@score_app.command("mt_bench")
def score_mt_bench(file: Verdicts, model: OneModel = None, as_json: Json = False, debug: Debug = False) -> None:
    """MT-Bench: the mean of 160 grades, by turn and by category."""
    from pobench.judging import mt_bench

    _print_scored(mt_bench.score(file, model=model), as_json)


@app.command()
def export(
    run_: Annotated[str, typer.Argument(metavar="RUN", help="A stored run: SETTING/LOSS-HEX, or its folder.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the written files.")] = Path("answers"),
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write a run's answers to AlpacaEval, Arena-Hard and MT-Bench in the benchmarks' own formats."""
    from pobench.judging.benchmark import export as write
    from pobench.registry import nearest

    folder = next((p for p in (runs / run_, Path(run_)) if (p / "config.yaml").is_file()), None)
    if folder is None:
        known = [f"{p.parent.parent.name}/{p.parent.name}" for p in sorted(runs.glob("*/*/config.yaml"))]
        raise PobenchError(f"no run {run_!r}{nearest(run_, known)} Known: {', '.join(known) or 'none'}")
    written, faults = write(folder, to, f"{folder.parent.name}/{folder.name}")
    for path in written:
        out.print(str(path), highlight=False)
    if faults or not written:
        raise PobenchError(
            "\n".join(faults) or f"{run_}: no benchmark is answered; `pobench run --benchmarks …` does it"
        )


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
    from pobench.config import judge_faults, parse_settings
    from pobench.judging import agreement
    from pobench.progress import progress
    from pobench.registry import judges

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


def _untrusted(text: str) -> str:
    """Text from a file, fit for a terminal."""
    return escape("".join(c if c.isprintable() else "�" for c in text))


@app.command()
def doctor(debug: Debug = False) -> None:
    """What this machine offers: packages, devices, arithmetic, cache, disk."""
    import shutil

    from pobench.sources import cache_folder
    from pobench.train import make_accelerator
    from pobench.worker import environment

    about = environment(make_accelerator())
    packages = about.pop("packages")
    for key, value in {**packages, **about}.items():
        out.print(f"{key:16} {value}", highlight=False)
    cache = cache_folder()
    existing = next(p for p in [cache, *cache.parents] if p.exists())
    out.print(f"{'cache':16} {cache} ({shutil.disk_usage(existing).free / 1024**3:.1f} GiB free)", highlight=False)


def main() -> None:
    """The `pobench` command."""
    debug = "--debug" in sys.argv
    if debug:
        os.environ["POBENCH_DEBUG"] = "1"
    else:
        warnings.filterwarnings("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(standalone_mode=True)
    except PobenchError as error:
        if debug:
            raise
        print(f"pobench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; repeat the command to continue", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
