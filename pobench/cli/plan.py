"""pobench plan: how many seeds, prompts and samples detect a difference between losses; what fits on which machines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pobench.cli.group import COMPARED, STYLE, WORK, Command
from pobench.cli.options import (
    Debug,
    Json,
    Plugins,
    Sets,
    SettingName,
    StoredRuns,
    load_plugins,
    parse_each,
    raise_faults,
)
from pobench.cli.terminal import escape, make_table, out
from pobench.errors import PobenchError, or_fault
from pobench.printing import say_json

if TYPE_CHECKING:
    from pobench.runs.hardware import Fit
    from pobench.workflows.sample_size import Design, SampleSize

app = typer.Typer(**STYLE)

EXAMPLES = """
pobench plan --difference 3 --setting tiny
pobench plan --hardware 8x80,1x24 --setting mistral-base
"""

SHOWN = 5  # designs; --json has all


@app.command(cls=Command, epilog=EXAMPLES)
def plan(
    difference: Annotated[
        float | None, typer.Option(help="The difference of two losses to detect, in points.", rich_help_panel=WORK)
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICESxGB,…",
            help="Instead: does the setting fit on such machines, e.g. 8x80,4x80,1x141,1x24, and with which changes?",
            rich_help_panel=WORK,
        ),
    ] = None,
    setting: SettingName = "smollm2",
    losses: Annotated[
        str | None,
        typer.Option(help="Only these; default: all that are stored with two seeds or more.", rich_help_panel=COMPARED),
    ] = None,
    sets: Sets = None,
    runs: StoredRuns = "runs",
    plugin: Plugins = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How many seeds, prompts and samples detect a difference four times in five, in how many minutes, by the noise of stored
    runs. Or, with --hardware, what fits on machines that are not here."""
    from pobench.results.load import load_frames
    from pobench.settings.resolve import parse_overrides, resolve, resolve_names
    from pobench.workflows.sample_size import comparable_runs, sample_size

    load_plugins(plugin)
    if hardware is not None or difference is None:
        if hardware is None or difference is not None:
            raise PobenchError("plan: one of --difference POINTS and --hardware DEVICESxGB is needed")
        _print_fits(_fits(hardware, setting, losses, sets), setting, as_json)
        return
    faults = [] if difference > 0 else [f"--difference {difference:g}: more than 0 points is needed"]
    values = parse_each(faults, sets, parse_overrides)
    names: list[str] | None = None
    if losses is not None:
        names, unknown = resolve_names(losses)
        faults += unknown or ([] if len(names) > 1 else ["--losses: two or more are compared; name another"])
    jobs: Any = or_fault(faults, lambda: resolve(setting, (names or ["dpo"])[0], overrides=values))
    frames: Any = jobs and or_fault(faults, lambda: load_frames(runs, jobs[0].setting))
    raise_faults(faults)
    found = sample_size(comparable_runs(frames), jobs[0], difference, names)
    if as_json:
        say_json(found.describe(setting))
        return
    _print(found, setting)


def _fits(hardware: str, setting: str, losses: str | None, sets: list[str] | None) -> list[Fit]:
    """How the setting fits on every machine. Raises PobenchError that lists all faults."""
    from pobench.runs.cost import model_shape
    from pobench.runs.hardware import fit, machines
    from pobench.settings.resolve import parse_overrides, resolve, resolve_names

    faults: list[str] = []
    wanted: Any = or_fault(faults, lambda: machines(hardware))
    values = parse_each(faults, sets, parse_overrides)
    names, unknown = resolve_names(losses or "dpo")
    faults += unknown
    jobs: Any = names and or_fault(faults, lambda: resolve(setting, names[0], overrides=values))
    raise_faults(faults)
    shape = model_shape(jobs[0])
    if shape is None:
        raise PobenchError(f"plan: the model {jobs[0].model.source!r} is not at hand, so its size is not known")
    return [fit(jobs[0], shape, machine) for machine in wanted]


def _print_fits(fits: list[Fit], setting: str, as_json: bool) -> None:
    if as_json:
        say_json([found.describe() for found in fits])
        return
    table = make_table("machine", "training", "GiB a device", "tokens", "answers at once")
    for found in fits:
        how = found.how if found.changes is not None else "does not fit"
        held = f"{found.memory.total / 1024**3:.1f}"
        table.add_row(str(found.machine), how, held, str(found.tokens), str(found.answers))
    out.print(table, highlight=False)
    for found in fits:
        if found.changes:
            out.print(
                escape(f"{found.machine}: {' '.join(f'--set {change}' for change in found.changes)}"), highlight=False
            )
    out.print(
        f"\n{escape(setting)}, computed, not measured: the peak of a training step, with micro-batches of so many tokens, and "
        "how many of its answers are decoded at once.",
        highlight=False,
    )


def _print(found: SampleSize, setting: str) -> None:
    noise = found.components
    parts = {"prompt": "prompt", "seed": "seed", "cell": "prompt × seed", "decoding": "decoding", "judge": "judge"}
    known = [f"{title} {v**0.5:.1f}" for name, title in parts.items() if not math.isnan(v := getattr(noise, name))]
    pairs = "1 pair" if found.pairs == 1 else f"the median of {found.pairs} pairs"
    out.print(f"[bold]{escape(found.setting)}[/]  {', '.join(arm.loss for arm in found.losses)}", highlight=False)
    out.print(f"A difference varies, in points (standard deviation, {pairs}): {', '.join(known)}.\n", highlight=False)
    if not found.enough:
        out.print(_out_of_reach(found), highlight=False)
        return
    _print_designs(found.enough[:SHOWN])
    out.print(
        f"\ndetects: the difference that is seen four times in five, alone (two-sided 5 %, for other prompts and other seeds);"
        f" among many pairs Holm’s correction needs more.\n\n{escape(found.command(found.enough[0], setting))}",
        highlight=False,
    )


def _print_designs(designs: list[Design]) -> None:
    table = make_table("seeds", "prompts", "samples", "detects", "minutes from nothing", "minutes left")
    for d in designs:
        table.add_row(
            str(d.seeds), str(d.prompts), str(d.samples), f"{d.detects:.2g}", _minutes(d.seconds), _minutes(d.left)
        )
    out.print(table, highlight=False)


def _out_of_reach(found: SampleSize) -> str:
    """Why no design is enough, and what most would help."""
    best = found.best
    crossed = found.components.crossed(best.seeds, best.prompts, best.samples)
    of_prompts = crossed.prompts.variance / crossed.variance
    most = (
        f"prompts ({of_prompts:.0%} of its variance)"
        if of_prompts > 0.5
        else f"seeds ({1 - of_prompts:.0%} of its variance)"
    )
    samples = "one sample" if best.samples == 1 else f"{best.samples} samples"
    return (
        f"{found.difference:g} points cannot be reached with {best.seeds} seeds or fewer: {best.prompts} prompts with "
        f"{samples} each detect {best.detects:.2g} points. What would help most is more {most}."
    )


def _minutes(seconds: float) -> str:
    if math.isnan(seconds):
        return "–"
    return f"{seconds / 60:.1f}" if seconds < 600 else f"{seconds / 60:.0f}"
