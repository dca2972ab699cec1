"""pobench list: losses, modifiers, settings, keys, studies, figures, claims, judges and stages, and the stored runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pobench.cli.complete import complete, complete_names
from pobench.cli.group import PLACE, STYLE, Command
from pobench.cli.options import Debug, Json, Plugins, StoredRuns, load_plugins
from pobench.cli.terminal import escape, make_table, out
from pobench.errors import PobenchError, _normal, nearest
from pobench.printing import say, say_json

app = typer.Typer(**STYLE)

EXAMPLES = """
pobench list losses
pobench list losses simpo
pobench list keys train
pobench list runs --setting tiny
"""


def _loss_rows() -> list[dict[str, Any]]:
    from pobench.cli.shipped_losses import declared_losses
    from pobench.registry import losses

    declared = declared_losses() or [(losses.get(name), losses.aliases(name)) for name in losses.names()]
    return [
        {
            "name": loss.name,
            "title": loss.title,
            "about": loss.doc,
            "formula": loss.formula,
            "gradient": loss.gradient,
            "settings": {
                setting: {
                    "default": default,
                    "default_from": loss.defaults.get(setting, ""),
                    "unit": loss.units.get(setting, ""),
                    "published_range": loss.ranges.get(setting),
                }
                for setting, default in loss.settings.items()
            },
            "unit": loss.unit,
            "needs": sorted(loss.needs),
            "source": loss.source,
            "aliases": aliases,
            "in_paper": loss.in_paper,
        }
        for loss, aliases in declared
    ]


def _modifier_rows() -> list[dict[str, Any]]:
    from pobench.registry import modifiers

    listed = [modifiers.get(name) for name in modifiers.names()]
    return [
        {"name": m.name, "about": m.doc.partition("\n")[0], "settings": dict(m.settings), "source": m.source}
        for m in listed
    ]


def _setting_rows() -> list[dict[str, Any]]:
    from pobench.settings.read import describe_settings

    return [dict(row) for row in describe_settings()]


def _key_rows() -> list[dict[str, Any]]:
    from pobench.settings.keys import key_sections

    return [key._asdict() for section in key_sections() for key in section.keys]


def _study_rows() -> list[dict[str, Any]]:
    from pobench.workflows.study_file import describe_studies

    return describe_studies()


def _figure_rows() -> list[dict[str, Any]]:
    from pobench.registry import figures

    shown = [figures.get(name) for name in figures.names()]
    return [{"name": f.name, "kind": f.kind, "title": f.title, "paper": f.paper} for f in shown]


def _claim_rows() -> list[dict[str, Any]]:
    from pobench.cli.claim_page import claimed, ordered

    return [
        {
            "name": c.name,
            "claim": c.says,
            "subject": c.subject,
            "claimed": f"{claimed(c)} {c.unit}",
            "smallest_effect": c.smallest,
            "paper": c.paper,
            "where": c.where,
            "statistic": c.statistic,
        }
        for c in ordered()
        if not c.identity
    ]


def _judge_rows() -> list[dict[str, Any]]:
    from pobench.registry import judges

    listed = [judges.get(name) for name in judges.names()]
    return [
        {"name": judge.name, "about": judge.doc.partition("\n")[0], "settings": dict(judge.settings)}
        for judge in listed
    ]


def _stage_rows() -> list[dict[str, Any]]:
    from pobench.runs.stages import STAGES

    return [
        {
            "name": s.name,
            "does": s.does,
            "reads": ", ".join(s.reads),
            "decided by": s.decided_by,
            "optional": s.optional,
        }
        for s in STAGES
    ]


KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "losses": _loss_rows,
    "modifiers": _modifier_rows,
    "settings": _setting_rows,
    "keys": _key_rows,
    "studies": _study_rows,
    "figures": _figure_rows,
    "claims": _claim_rows,
    "judges": _judge_rows,
    "stages": _stage_rows,
}


RUNS = "runs"  # a kind that is listed run by run, as there may be thousands


def _run_rows(runs: str | Path, setting: str | None) -> Iterator[dict[str, Any]]:
    """One row a stored run. when: of its last change, local time. pass_rate: None where it has none, or none of what is shown.

    Raises PobenchError where no run is stored, or none of the setting.
    """
    from pobench.results.index import SMALL, entries, no_runs, settings_below
    from pobench.results.mirror import local_runs
    from pobench.results.scores import headline

    root, entry = local_runs(runs), None
    for entry in entries(root, setting):
        row = entry.row
        small = [root / entry.run / name for name in SMALL]
        changed = max(file.stat().st_mtime for file in small if file.is_file())
        yield {
            "run": entry.run,
            "setting": row["setting"],
            "loss": row["loss"],
            "seed": None if row["kind"] == "start" else row["seed"],
            "state": row["status"],
            "when": datetime.fromtimestamp(changed).isoformat(" ", "minutes"),
            "pass_rate": headline(root, entry),
        }
    if entry is None:
        raise no_runs(root, setting, set(settings_below(root)))


def _print_runs(rows: Iterable[dict[str, Any]]) -> None:
    """One line a run, as soon as it is read."""
    for row in rows:
        seed = "" if row["seed"] is None else f"seed {row['seed']}"
        rate = "" if row["pass_rate"] is None else f"{100 * row['pass_rate']:.1f} %"
        say(f"{row['run']:<44} {seed:<10} {row['state']:<10} {row['when']}  {rate}".rstrip(), out=True)


def _print_json(rows: Iterable[dict[str, Any]]) -> None:
    """A JSON list, one row a line."""
    before = "[\n "
    for row in rows:
        say(before + json.dumps(row), end="", out=True)
        before = ",\n "
    say("\n]", out=True)


def _loss_page() -> str:
    from pobench.reporting.loss_page import loss_page

    return loss_page()


def _stage_page() -> str:
    from pobench.cli.stage_page import stage_page

    return stage_page()


def _claim_page() -> str:
    from pobench.cli.claim_page import claim_page

    return claim_page()


def _key_page() -> str:
    from pobench.cli.key_page import key_page

    return key_page()


LISTED = (*KINDS, RUNS)
PAGES: dict[str, Callable[[], str]] = {
    "losses": _loss_page,
    "keys": _key_page,
    "claims": _claim_page,
    "stages": _stage_page,
}


@app.command(cls=Command, epilog=EXAMPLES)
def list_(
    what: Annotated[
        str,
        typer.Argument(help=" | ".join(LISTED), autocompletion=lambda incomplete: complete(LISTED, incomplete)),
    ] = "losses",
    name: Annotated[
        str | None,
        typer.Argument(
            help="One of them, with all that is known of it; or a section of keys.", autocompletion=complete_names
        ),
    ] = None,
    runs: StoredRuns = "runs",
    setting: Annotated[
        str | None, typer.Option(help="Of `runs`: only those of this setting.", rich_help_panel=PLACE)
    ] = None,
    plugin: Plugins = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page: losses, keys, claims or stages.")] = False,
    debug: Debug = False,
) -> None:
    """List losses, modifiers, settings, the keys of a setting, studies, figures, claims, judges or stages, with their names; or
    the stored runs: state, last change, pass rate. With a NAME behind it, one of them in full, or the keys of a section."""
    load_plugins(plugin)
    if what not in LISTED:
        raise PobenchError(f"list: unknown kind {what!r}{nearest(what, LISTED)} Known: {', '.join(LISTED)}")
    if name is not None and (markdown or what == RUNS):
        raise PobenchError(f"list: {name!r}: a name goes neither with `runs` nor with --markdown")
    if markdown:
        if what not in PAGES or as_json:
            raise PobenchError(f"list: --markdown is for {', '.join(f'`{name}`' for name in PAGES)}, without --json")
        say(PAGES[what](), end="", out=True)
        return
    if what == RUNS:
        (_print_json if as_json else _print_runs)(_run_rows(runs, setting))
        return
    rows = KINDS[what]() if name is None else _named(KINDS[what](), what, name)
    if as_json:
        say_json(rows)
    elif name is not None and len(rows) == 1:
        (_print_loss if what == "losses" else _print_one)(rows[0])
    elif what == "losses":
        _print_losses(rows)
    else:
        _print_table(rows)


def _named(rows: list[dict[str, Any]], what: str, name: str) -> list[dict[str, Any]]:
    """The row of a name or alias, or those of all keys of a section. Raises PobenchError with the nearest name."""
    if section := [row for row in rows if row["name"].startswith(f"{name}.")]:
        return section
    for row in rows:
        if _normal(name) in {_normal(row["name"]), *row.get("aliases", ())}:
            return [row]
    known = [row["name"] for row in rows]
    named = ", ".join(known) if len(known) < 100 else f"the {len(known)} that `pobench list {what}` names"
    raise PobenchError(f"list {what}: unknown name {name!r}{nearest(name, known)} Known: {named}")


def _print_one(row: dict[str, Any]) -> None:
    for key, value in row.items():
        out.print(f"[bold]{escape(key)}[/]  {escape(str(value))}", highlight=False)


def _print_table(rows: list[dict[str, Any]]) -> None:
    too_long = (
        "claims",
        "claimed",
        "smallest_effect",
        "statistic",
        "where",
        "allowed",
        "decides",
    )  # for a line; --json has them
    columns = [column for column in (rows[0] if rows else ["name"]) if column not in too_long]
    table = make_table(*columns, padding=(0, 1, 0, 1))
    for row in rows:
        table.add_row(*(escape(str(row[column])) for column in columns))
    out.print(table)


def _print_losses(rows: list[dict[str, Any]]) -> None:
    """One line a loss."""
    table = make_table("", "title", "needs", "defaults", padding=(0, 1, 0, 0))
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    # Every width is given, as rich would take room from the names too. Where it is short, the defaults and the needs are cut.
    widths = [
        max(len(text) for text in texts) for texts in zip(*((row["name"], row["title"]) for row in rows), strict=True)
    ]
    widths.append(min(len("batch, reference"), max(len(", ".join(row["needs"])) for row in rows)))
    for column, width in zip(
        table.columns, [*widths, out.console.width - sum(widths) - len(table.columns)], strict=True
    ):
        column.width = max(width, len("defaults"))
    for row in rows:
        given = {name: about["default"] for name, about in row["settings"].items() if about["default"] is not None}
        defaults = ", ".join(f"{name} = {value}" for name, value in given.items())
        needs = ", ".join(row["needs"]) or "–"
        table.add_row(f"[bold]{escape(row['name'])}[/]", *map(escape, (row["title"], needs, defaults)))
    out.print(table, highlight=False, soft_wrap=not out.console.is_terminal)
    out.print("\npobench list losses NAME  shows one with its formula, gradient, settings and source", highlight=False)


def _print_loss(row: dict[str, Any]) -> None:
    """All that is known of one loss."""
    needs = ", ".join(row["needs"]) or "policy alone"
    out.print(
        f"[bold]{escape(row['name'])}[/]  {escape(row['title'])}  [dim]{escape(row['source'])}[/]", highlight=False
    )
    others = f" · also called {', '.join(row['aliases'])}" if row["aliases"] else ""
    out.print(f"[dim]needs {escape(needs)} · trains on {escape(row['unit'])}{escape(others)}[/]\n", highlight=False)
    out.print(escape(row["about"].strip()), highlight=False)
    if row["settings"]:
        out.print("\n[bold]settings[/]", highlight=False)
    for name, about in row["settings"].items():
        facts = (
            about["unit"],
            about["default_from"],
            about["published_range"] and f"published {about['published_range']}",
        )
        out.print(
            f"    [cyan]{escape(name)}[/] = {about['default']}  [dim]{escape(' · '.join(filter(None, facts)))}[/]",
            highlight=False,
        )
