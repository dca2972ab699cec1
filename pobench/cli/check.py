"""pobench check: is a loss fit to be compared?"""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from pobench.cli.group import STYLE
from pobench.cli.options import Debug, Json, Sets, parse_each, raise_faults
from pobench.cli.terminal import escape, out
from pobench.printing import say_json

app = typer.Typer(**STYLE)


@app.command()
def check_(
    target: Annotated[
        str,
        typer.Argument(
            metavar="FILE.py|NAMES",
            help="A file that registers losses, or names, expressions, `paper`, `all`, `rated`.",
        ),
    ],
    sets: Sets = None,
    quick: Annotated[bool, typer.Option("--quick", help="Check the function only, without training steps.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that a loss is fit to be compared: its laws, and the same training step however a batch is cut. Takes less than
    a minute; exit status 1 if a law fails."""
    from pobench.settings.faults import check_loss_settings
    from pobench.settings.resolve import parse_overrides
    from pobench.workflows.check import check, losses_of

    losses, plugins = losses_of(target)
    changes: dict[str, dict[str, Any]] = {loss.name: {} for loss in losses}
    faults: list[str] = []
    for key, value in parse_each(faults, sets, parse_overrides).items():
        name, _, setting = key.partition(".")
        owner = next((loss for loss in losses if loss.name == name), None)
        if owner is None:
            faults.append(f"--set {key}: {name!r} is not checked here; losses: {', '.join(changes)}")
        elif setting not in owner.settings:
            faults.append(f"--set {key}: {name} has no {setting!r}; settings: {', '.join(owner.settings) or 'none'}")
        else:
            changes[name][setting] = value
    faults += [f for loss in losses for f in check_loss_settings(loss, changes[loss.name], result=False)]
    raise_faults(faults)
    logging.disable(logging.WARNING)  # the launcher of two-process training warns

    rows: list[dict[str, Any]] = []
    signs = {"holds": ("green", "✓"), "fails": ("red", "✗"), "note": ("yellow", "·")}
    for loss in losses:
        if not as_json:
            out.print(f"[bold]{escape(loss.name)}[/]  {escape(loss.title)}", highlight=False)
        for finding in check(loss, changes[loss.name], plugins, steps=not quick):
            rows.append({"loss": loss.name, **finding._asdict()})
            if not as_json:
                colour, sign = signs[finding.verdict]
                out.print(f"  [{colour}]{sign}[/] {finding.law}: [dim]{escape(finding.seen)}[/]", highlight=False)
    failed = [row for row in rows if row["verdict"] == "fails"]
    if as_json:
        say_json(rows)
    else:
        held = sum(row["verdict"] == "holds" for row in rows)
        notes = len(rows) - held - len(failed)
        out.print(f"{held} hold, {len(failed)} fail, {notes} to note", highlight=False)
    if failed:
        raise typer.Exit(1)
