"""pobench list and pobench check."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from pobench.cli.options import Debug, Json, Plugins, Sets, _each, _load_plugins, _refuse, app, out
from pobench.errors import PobenchError


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="losses | settings | studies | figures | judges")] = "losses",
    plugin: Plugins = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Losses only: the page of all objectives.")] = False,
    debug: Debug = False,
) -> None:
    """What there is, by name."""
    from pobench import registry
    from pobench.settings import read

    _load_plugins(plugin)
    kinds = ("losses", "settings", "studies", "figures", "judges")
    if what not in kinds:
        raise PobenchError(f"list: unknown kind {what!r}{registry.nearest(what, kinds)} Known: {', '.join(kinds)}")
    if markdown:
        if what != "losses" or as_json:
            raise PobenchError("list: --markdown is for `losses`, without --json")
        from pobench.reporting.loss_page import loss_page

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
        for name in read.list_settings():
            values, _ = read.read_setting(name)
            rows.append(
                {
                    "name": name,
                    "model": values["model"]["source"],
                    "data": values["data"]["source"],
                    "description": values.get("description", ""),
                }
            )
    elif what == "studies":
        from pobench.workflows.study import studies

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
    from pobench.settings.faults import check_loss_settings
    from pobench.settings.resolve import parse_overrides
    from pobench.workflows.check import check as findings
    from pobench.workflows.check import losses_of

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
    faults += [f for loss in losses for f in check_loss_settings(loss, changes[loss.name], result=False)]
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
