"""pobench run: resolve the jobs, plan and execute them, print plan and summary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from pobench.cli.analyze import write_report
from pobench.cli.answer import print_answers
from pobench.cli.complete import complete_stages
from pobench.cli.cost import print_cost
from pobench.cli.detach import announce, continuing, detached_here, print_submitted
from pobench.cli.group import COMPARED, FIRST, STYLE, WORK, Command
from pobench.cli.options import (
    Debug,
    Detach,
    Devices,
    DryRun,
    ExecutorName,
    ExecutorSets,
    Json,
    Losses,
    Parallel,
    Plugins,
    Runs,
    Sets,
    SettingName,
    load_plugins,
    parse_each,
    parse_executor,
    parse_seeds,
    parse_stages,
    raise_faults,
)
from pobench.cli.terminal import err, escape, out
from pobench.errors import or_fault
from pobench.printing import say_json

app = typer.Typer(**STYLE)

EXAMPLES = """
pobench run --losses simpo,dpo --setting smollm2 --dry-run
pobench run --losses simpo,dpo --setting smollm2 --seeds 42,43,44
pobench run --losses simpo,dpo,kto --data my_pairs.jsonl --model my/model
pobench run --losses "dpo, dpo + 0.2*sft" --setting tiny --set dpo.beta=0.05
pobench run --losses paper --setting mistral-base --rehearse
"""


@app.command(cls=Command, epilog=EXAMPLES)
def run(
    losses: Losses = "simpo,dpo",
    setting: SettingName = "smollm2",
    seeds: Annotated[
        str | None, typer.Option(help="Comma-separated; default: the setting's.", rich_help_panel=COMPARED)
    ] = None,
    sets: Sets = None,
    data: Annotated[
        str | None, typer.Option(help="Other preference pairs: a file or a hub name.", rich_help_panel=COMPARED)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Another start model: a folder or a hub name.", rich_help_panel=COMPARED)
    ] = None,
    runs: Runs = Path("runs"),
    stages: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated; default: all but the optional ones of `pobench list stages`.",
            autocompletion=complete_stages,
            rich_help_panel=WORK,
        ),
    ] = None,
    benchmarks: Annotated[
        str | None,
        typer.Option(help="Comma-separated, or `none`; default: those that the setting names.", rich_help_panel=WORK),
    ] = None,
    opponents: Annotated[
        str,
        typer.Option(
            help="Whom the losses' answers are judged against, by a judge that compares: `start`, the start model; also "
            "the answers of a loss that you name, or of `all`, every loss against every other.",
            rich_help_panel=WORK,
        ),
    ] = "start",
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            help="Iterative training: each round makes pairs of the last one's answers, as the setting's `onpolicy` section "
            "says, and trains from its model.",
        ),
    ] = 1,
    plugin: Plugins = None,
    executor: ExecutorName = "local",
    executor_set: ExecutorSets = None,
    parallel: Parallel = 1,
    detach: Detach = False,
    devices: Devices = None,
    dry_run: DryRun = False,
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="Run everything in minutes, offline, with a tiny random model of the same family.",
            rich_help_panel=FIRST,
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train, score held-out pairs, answer, judge, and write the report: the main job, end to end."""
    from pobench.model.device import use_devices
    from pobench.runs.opponents import with_opponents
    from pobench.settings.resolve import parse_overrides, resolve

    use_devices(devices)
    plugins = load_plugins(plugin)
    faults: list[str] = []
    values = parse_each(faults, sets, parse_overrides)
    seed_list = or_fault(faults, lambda: parse_seeds(seeds))
    stage_list = or_fault(faults, lambda: parse_stages(stages)) or []
    if stages is None and rounds > 1:  # which make their pairs
        stage_list = ["onpolicy", *stage_list]
    if dry_run and rehearse:
        faults.append("--dry-run and --rehearse cannot be combined: --dry-run runs nothing")
    sources = {"data": data, "model": model, "benchmark_names": benchmarks}
    names, opponents = or_fault(faults, lambda: with_opponents(losses, opponents)) or ([losses], opponents)
    jobs = (
        or_fault(faults, lambda: resolve(setting, ",".join(names), seeds=seed_list, overrides=values, **sources)) or []
    )
    where = parse_executor(faults, executor, executor_set, parallel, detach)
    raise_faults(faults)
    work = _Work(jobs, runs, stage_list, plugins, opponents, rounds)
    if dry_run:
        plan = work.plan(dry=True)
        _show_plan(plan, as_json)
        _end(_lacks(plan, benchmarks))
        return
    if rehearse:
        work = work.rehearsed()
    plan, outcomes = _run_jobs(work, where, detach)
    if not print_submitted(outcomes, as_json):
        _report(work, plan, outcomes, _lacks(plan, benchmarks), as_json)


class _Work(NamedTuple):
    """What the command's words come to: all that a plan is made of."""

    jobs: list[Any]
    runs: Path
    stages: list[str]
    plugins: list[str]
    opponents: str
    rounds: int

    def plan(self, *, dry: bool = False) -> Any:
        from pobench.runs.plan import make_plan

        return make_plan(
            self.jobs, self.runs, self.stages, self.plugins, opponents=self.opponents, rounds=self.rounds, dry=dry
        )

    def rehearsed(self) -> _Work:
        """The same with a tiny model, in a folder of its own."""
        from pobench.runs import rehearsal

        return self._replace(jobs=rehearsal.rehearse(self.jobs, self.stages), runs=self.runs / "rehearsal")


def _show_plan(plan: Any, as_json: bool) -> None:
    from pobench.runs.plan import describe

    described = describe(plan)
    say_json(described) if as_json else _print_plan(described)


def _lacks(plan: Any, benchmarks: str | None) -> bool:
    """Whether a benchmark that the command names is left out."""
    return bool(plan.left_out) and benchmarks is not None


def _run_jobs(work: _Work, where: Any, detach: bool) -> tuple[Any, list[Any]]:
    """Run what is left to do, and what comes to stand behind it: (the last plan, how every task ended). With `--detach` on
    this machine the command ends here."""
    from pobench.runs.execute import execute, plan_and_execute

    def run_plan(plan: Any) -> list[Any]:
        if plan.left or plan.notes:
            err.print(escape(plan.text()))
        if detach and detached_here(where, plan.left, work.runs / work.jobs[0].setting):
            raise typer.Exit
        return execute(plan, executor=where, detach=detach, announce=announce)

    with continuing(where):
        if not detach:
            where.expect(work.jobs)
        return plan_and_execute(work.plan, run_plan)


def _report(work: _Work, plan: Any, outcomes: list[Any], lacking: bool, as_json: bool) -> None:
    """Draw the page if something is new, print what came out, and end with status 1 if something is missing."""
    from pobench.runs.stages import PREPARING

    failed = [o for o in outcomes if o.status == "failed"]
    if all(task.kind in PREPARING for task in plan.tasks):
        _print_prepared(plan, failed, as_json)
        return
    path, report = work.runs / "report" / "report.html", None
    if any(o.status != "skipped" for o in outcomes) or not path.is_file():
        report = write_report(work.runs, None, "all", None)
        path = report.path
    _print_results(plan, work.runs, outcomes, path, report and report.frames, as_json)
    _end(failed or (report and not report.whole) or lacking)


def _end(incomplete: object) -> None:
    """Exit status 1 if something that the command names was not done."""
    if incomplete:
        raise typer.Exit(1)


def _print_results(plan: Any, runs: Path, outcomes: list[Any], report: Path, frames: Any, as_json: bool) -> None:
    """After the jobs: each run's scores, what failed, and where the report is. frames: that it was made of; None where it was
    there."""
    if as_json:
        described = {
            "outcomes": [o.__dict__ for o in outcomes],
            "scores": _scores(runs, outcomes),
            "benchmarks": {o.run: _results(runs, o.run) for o in outcomes},
            "left_out": list(plan.left_out),
            "report": str(report),
        }
        say_json(described)
        return
    pairs = {task.run for task in plan.tasks if task.kind == "pair"}
    models = {task.run for task in plan.tasks if task.kind in ("start", "loss")}
    _print_summary(runs, [o for o in outcomes if o.run in models], frames)
    _print_pairs([o for o in outcomes if o.run in pairs])
    for o in outcomes:
        if o.status == "failed":
            err.print(f"failed: {escape(o.title)} ({escape(o.run)}): {escape(o.reason)}", style="red")
    _print_own_pairs(plan)
    out.print(escape(f"report: {report}"), highlight=False)


def _print_prepared(plan: Any, failed: list[Any], as_json: bool) -> None:
    """After stages that stand before the runs: there are none to report on yet."""
    made = [task for task in plan.tasks if task.run not in {o.run for o in failed}]
    models = [str(task.data / "model") for task in made if task.kind == "sft"]
    pairs = [_pairs_made(task) for task in made if task.kind == "onpolicy"]
    if as_json:
        say_json({"start_models": models, "pairs": pairs, "failed": [o.__dict__ for o in failed]})
    else:
        for folder in models:
            out.print(escape(f"start model: {folder}"), highlight=False)
        _print_own_pairs(plan)
        for o in failed:
            err.print(f"failed: {escape(o.title)}: {escape(o.reason)}", style="red")
    _end(failed)


def _pairs_made(task: Any) -> dict[str, Any]:
    """Of a finished task of the stage `onpolicy`: the files of its pairs, and how many they hold."""
    from pobench.runs.onpolicy import MadePairs

    pairs = MadePairs(task.data)
    train, held_out = pairs.counts
    held = None if pairs.held_out is None else str(pairs.held_out)
    return {"train": {"file": str(pairs.file), "pairs": train}, "held_out": {"file": held, "pairs": held_out}}


def _print_own_pairs(plan: Any) -> None:
    """A line on the pairs that the stage `onpolicy` made, if it did."""
    from pobench.runs.onpolicy import MadePairs

    for task in plan.tasks:
        if task.kind == "onpolicy" and MadePairs(task.data).finished:
            made = _pairs_made(task)
            held = f", {made['held_out']['pairs']} held out beside it" if made["held_out"]["file"] else ""
            file, count = made["train"]["file"], made["train"]["pairs"]
            out.print(escape(f"pairs of its own answers: {file} ({count} to train on{held})"), highlight=False)


def _print_plan(plan: dict[str, Any]) -> None:
    pairs = (
        f"{plan['pairs']} pairs, {plan['held_out']} held out"
        if plan["pairs"] is not None
        else "pairs not counted: the model is not at hand"
    )
    own = {"lists": "lists", "answers": "single answers"}
    pairs += "".join(f"; {plan[unit]} {name}" for unit, name in own.items() if unit in plan)
    out.print(
        f"[bold]{plan['setting']}[/]  {escape(plan['model']['source'])}  ←  {escape(_source(plan['data']))}  ({pairs})",
        highlight=False,
    )
    met = [job for job in plan["jobs"] if job["kind"] == "pair"]
    for job in plan["jobs"]:
        if job in met:
            continue
        colour = "green" if job["state"] == "done" else "yellow"
        state = f"[{colour}]{escape(job['state'])}[/]"
        out.print(f"\n[bold]{escape(job['title'])}[/]  {escape(job['run'])}  {state}", highlight=False)
        for key, value in job.get("values", {}).items():
            out.print(f"    {key} = {escape(str(value))}  [dim]{escape(job['sources'][key])}[/]", highlight=False)
    if met:
        left = sum(job["state"] != "done" for job in met)
        out.print(f"\n[bold]head to head[/]  {len(met)} pairs of losses, {left} to judge", highlight=False)
    for note in plan["notes"]:
        out.print(f"\n{escape(note)}", highlight=False)
    print_cost(plan, "\n")


def _source(data: dict[str, Any]) -> str:
    """The source of a plan's data; of several each with its weight and its place."""
    weights = ("" if part["weight"] is None else f" {part['weight']:g}" for part in data["sources"])
    shown = (f"{part['name']}{w}: {part['source']}" for part, w in zip(data["sources"], weights, strict=True))
    return " + ".join(shown) or str(data["source"])


def _scores(runs: Path, outcomes: list[Any]) -> dict[str, Any]:
    from pobench.results.scores import scores_of

    scores = {o.run: scores_of(runs, o.run) for o in outcomes}
    return {run: rows for run, rows in scores.items() if rows}


def _print_summary(runs: Path, outcomes: list[Any], frames: Any) -> None:
    """A line a loss and the report's card; of benchmarks, a line a run. frames: of the runs; None: they are read."""
    from pobench.results.load import open_frames

    there = [o for o in outcomes if o.status in ("finished", "skipped")]
    if there:
        if frames is None:
            frames = open_frames(runs, there[0].run.partition("/")[0])
        print_answers(frames, {o.run for o in there})
        out.print()
    for o in outcomes:
        for result in _results(runs, o.run):
            (first,) = result["rows"][:1] or [{}]
            score = f"{result['name']}: {first.get('metric', '')} {_cell(first or None)}"
            out.print(f"{escape(o.title)}  [dim]{escape(score)} (n = {first.get('n', 0)})[/]", highlight=False)
    if before := sum(o.status == "skipped" for o in outcomes):
        out.print(f"done before: {before} of {len(outcomes)} runs", highlight=False)


def _print_pairs(outcomes: list[Any]) -> None:
    """One line on the losses that were judged against each other."""
    if outcomes:
        there = sum(o.status != "failed" for o in outcomes)
        out.print(f"head to head: {there} of {len(outcomes)} pairs of losses judged", highlight=False)


def _results(runs: Path, run: str) -> list[dict[str, Any]]:
    """The stored results of a run's benchmarks."""
    from pobench.results.run_folder import RunFolder

    return RunFolder(runs, run).benchmark_results()


def _cell(row: dict[str, Any] | None) -> str:
    return "–" if row is None or row["value"] is None or row["n"] == 0 else f"{row['value']:.3g}"
