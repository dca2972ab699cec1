"""pobench run, analyze, export and doctor."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pobench.cli.options import (
    STAGES,
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
    _stages,
    app,
    err,
    out,
)
from pobench.errors import PobenchError, or_fault


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
    from pobench.settings.resolve import parse_overrides, resolve

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

    from pobench.runs.execute import execute
    from pobench.runs.plan import describe, make_plan

    if dry_run:
        plan = make_plan(jobs, runs, stage_list, plugins, dry=True)
        described = describe(plan)
        print(json.dumps(described, indent=1)) if as_json else _print_plan(described)
        return
    if rehearse:
        from pobench.runs.rehearsal import rehearse as stand_in

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
    from pobench.reporting.page import FORMATS, build_report
    from pobench.results.load import load_frames

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
    from pobench.results.run_folder import RunFolder

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
    from pobench.results.run_folder import RunFolder

    return RunFolder(runs, run).benchmark_results()


def _cell(row: dict[str, Any] | None, *, interval: bool) -> str:
    if row is None or row["value"] is None or row["n"] == 0:
        return "–"
    value = f"{row['value']:.3g}"
    if not interval or row["low"] is None:
        return value
    low, high = (f"{row[end]:.2f}".replace("0.", ".", 1) for end in ("low", "high"))
    return f"{value} [{low}, {high}]"


@app.command()
def export(
    run_: Annotated[str, typer.Argument(metavar="RUN", help="A stored run: SETTING/LOSS-HEX, or its folder.")],
    to: Annotated[Path, typer.Option("--out", help="Folder of the written files.")] = Path("answers"),
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write a run's answers to AlpacaEval, Arena-Hard and MT-Bench in the benchmarks' own formats."""
    from pobench.errors import nearest
    from pobench.judging.benchmarks.base import export as write

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


@app.command()
def doctor(debug: Debug = False) -> None:
    """What this machine offers: packages, devices, arithmetic, cache, disk."""
    import shutil

    from pobench.model.device import environment, make_accelerator
    from pobench.sources import cache_folder

    about = environment(make_accelerator())
    packages = about.pop("packages")
    for key, value in {**packages, **about}.items():
        out.print(f"{key:16} {value}", highlight=False)
    cache = cache_folder()
    existing = next(p for p in [cache, *cache.parents] if p.exists())
    out.print(f"{'cache':16} {cache} ({shutil.disk_usage(existing).free / 1024**3:.1f} GiB free)", highlight=False)
