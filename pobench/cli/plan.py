"""pobench plan: how many seeds, prompts and samples detect a difference between losses."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pobench.cli.group import STYLE
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
from pobench.errors import or_fault

if TYPE_CHECKING:
    from pobench.workflows.sample_size import Design, SampleSize

app = typer.Typer(**STYLE)

SHOWN = 5  # designs; --json has all


@app.command()
def plan(
    difference: Annotated[float, typer.Option(help="The difference of two losses to detect, in points.")],
    setting: SettingName = "smollm2",
    losses: Annotated[
        str | None, typer.Option(help="Only these; default: all that are stored with two seeds or more.")
    ] = None,
    sets: Sets = None,
    runs: StoredRuns = "runs",
    plugin: Plugins = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How many seeds, prompts and samples detect a difference four times in five, in how many minutes, by the noise of stored
    runs."""
    from pobench.results.load import load_frames
    from pobench.settings.resolve import parse_overrides, resolve, resolve_names
    from pobench.workflows.sample_size import comparable_runs, sample_size

    load_plugins(plugin)
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
        print(json.dumps(found.describe(setting), indent=1))
        return
    _print(found, setting)


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
