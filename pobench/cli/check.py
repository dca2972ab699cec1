"""pobench check: is a loss fit to be compared?"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any

import typer

from pobench.cli.child import in_child
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
    limit: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="The time that a FILE.py may take; then it is stopped.")
    ] = 600,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that a loss is fit to be compared: its laws, and the same training step however a batch is cut. Takes less than
    a minute; exit status 1 if a law fails. A file is loaded and tried in a process of its own, which is stopped if it does not
    end."""
    rows: list[dict[str, Any]] = []
    signs = {"holds": ("green", "✓"), "fails": ("red", "✗"), "note": ("yellow", "·")}
    found = partial(findings, target, sets, quick)
    for one in in_child(found, limit, target) if target.endswith(".py") else found():
        if "law" not in one:
            if not as_json:
                out.print(f"[bold]{escape(one['loss'])}[/]  {escape(one['title'])}", highlight=False)
            continue
        rows.append(one)
        if not as_json:
            colour, sign = signs[one["verdict"]]
            out.print(f"  [{colour}]{sign}[/] {escape(one['law'])}: [dim]{escape(one['seen'])}[/]", highlight=False)
    failed = [row for row in rows if row["verdict"] == "fails"]
    if as_json:
        say_json(rows)
    else:
        held = sum(row["verdict"] == "holds" for row in rows)
        notes = len(rows) - held - len(failed)
        out.print(f"{held} hold, {len(failed)} fail, {notes} to note", highlight=False)
    if failed:
        raise typer.Exit(1)


def findings(target: str, sets: list[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """Each loss (`loss`, `title`), followed by what is found of it (`loss`, `law`, `verdict`, `seen`). Raises PobenchError that
    lists what is wrong with the target and the options."""
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
    for loss in losses:
        yield {"loss": loss.name, "title": loss.title}
        for finding in check(loss, changes[loss.name], plugins, steps=not quick):
            yield {"loss": loss.name, **finding._asdict()}
