"""Options that several commands share, and how they are parsed."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pobench.cli.complete import complete_executors, complete_losses, complete_settings
from pobench.cli.group import COMPARED, FIRST, OUTPUT, PLACE
from pobench.errors import PobenchError, nearest, or_fault


def _no_address(runs: Path) -> Path:
    """Raises PobenchError for an address: nothing is written there."""
    from pobench.results.mirror import is_address

    if is_address(runs):
        raise PobenchError(
            f"--runs {str(runs)!r} is an address, which `pobench analyze` and `plan` read; name a folder here"
        )
    return runs


Runs = Annotated[Path, typer.Option(callback=_no_address, help="Folder of the stored runs.", rich_help_panel=PLACE)]
StoredRuns = Annotated[
    str,
    typer.Option(
        metavar="PATH",
        help="Folder of the stored runs, or an address that fsspec reads: s3://bucket/runs.",
        rich_help_panel=PLACE,
    ),
]
Losses = Annotated[
    str,
    typer.Option(
        help="Names or aliases, comma-separated; `paper`: the twelve that the SimPO paper "
        "compares; `all` that pairs can train; `rated`: those that read ratings. Also sums and modifiers: "
        "`dpo + 0.2*sft`, `label_smoothing(dpo)`.",
        autocompletion=complete_losses,
        rich_help_panel=COMPARED,
    ),
]
SettingName = Annotated[
    str,
    typer.Option(help="A shipped setting or a YAML path.", autocompletion=complete_settings, rich_help_panel=COMPARED),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value; repeatable.", rich_help_panel=COMPARED),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        help="A Python file that registers losses, judges or figures.",
        rich_help_panel=COMPARED,
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option(help="The model whose tokenizer is used; default: the setting's.", rich_help_panel=COMPARED),
]
Parallel = Annotated[
    int,
    typer.Option(
        min=1,
        help="Jobs that this machine runs at one time, each with its GPUs or its share of the cores; one alone has all cores.",
        rich_help_panel=PLACE,
    ),
]
Devices = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Devices of a training job, a process each; default: all GPUs, or your `accelerate config`'s.",
        rich_help_panel=PLACE,
    ),
]
ExecutorName = Annotated[
    str,
    typer.Option(
        "--executor",
        help="Where jobs run: `local`, `slurm` or `ray`.",
        autocompletion=complete_executors,
        rich_help_panel=PLACE,
    ),
]
ExecutorSets = Annotated[
    list[str] | None,
    typer.Option(
        "--executor-set",
        metavar="KEY=VALUE",
        help="Such as partition=gpu, for the executor; repeatable.",
        rich_help_panel=PLACE,
    ),
]
Detach = Annotated[
    bool,
    typer.Option(
        "--detach", help="End as soon as the jobs are on their way; `pobench status` shows them.", rich_help_panel=PLACE
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan and its cost; write nothing.", rich_help_panel=FIRST)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print a summary for machines on standard output.", rich_help_panel=OUTPUT)
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.", rich_help_panel=OUTPUT)]


def load_plugins(plugins: list[Path] | None) -> list[str]:
    """Import each file and return their absolute paths. Raises PobenchError that names every file that cannot be imported."""
    from pobench.registry import load_plugin

    faults: list[str] = []
    for plugin in plugins or []:
        or_fault(faults, partial(load_plugin, plugin))
    raise_faults(faults)  # before others: a name may be unknown only because its plug-in cannot be imported
    return [str(p.absolute()) for p in plugins or []]


def parse_each(
    faults: list[str], texts: list[str] | None, parse: Callable[[list[str]], dict[str, Any]]
) -> dict[str, Any]:
    """The values that `parse` reads from several KEY=VALUE. What it refuses is added to `faults`."""
    return {
        key: value for text in texts or () for key, value in (or_fault(faults, partial(parse, [text])) or {}).items()
    }


def parse_executor(faults: list[str], name: str, sets: list[str] | None, parallel: int, detach: bool) -> Any:
    """The executor of `--executor`, `--executor-set` and `--parallel`; None where one of them is wrong. What is wrong, or what
    this machine lacks for it, is added to `faults`."""
    from pobench.runs.executor import make_executor
    from pobench.settings.resolve import parse_settings

    settings = parse_each(faults, sets, lambda texts: parse_settings(texts, "--executor-set"))
    executor = or_fault(faults, lambda: make_executor(name, settings, parallel))
    if executor is not None:
        faults += or_fault(faults, lambda: executor.faults(detach)) or []
    return executor


def raise_faults(faults: list[str]) -> None:
    """Raise PobenchError that lists the faults of a command, each once. Does nothing if there are none."""
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(line for fault in faults for line in fault.splitlines())))


def parse_seeds(text: str | None) -> list[int] | None:
    """`"1,2,3"` → [1, 2, 3]. Raises PobenchError if a part is no whole number, or there is none."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"[+-]?[0-9]+", part) for part in parts):
        raise PobenchError(f"--seeds {text!r}: expected whole numbers, comma-separated, such as 1,2,3")
    return [int(part) for part in parts]


def parse_stages(text: str | None) -> list[str]:
    """`"train,heldout"` → ["train", "heldout"]; None: the default stages of `pobench run`. Raises PobenchError that lists
    every unknown stage."""
    from pobench.runs.stages import ALL, DEFAULT

    if text is None:
        return list(DEFAULT)
    stages = [s.strip() for s in text.split(",") if s.strip()]
    wrong = [f"--stages: unknown stage {s!r}{nearest(s, ALL)} Known: {', '.join(ALL)}" for s in stages if s not in ALL]
    if wrong or not stages:
        raise PobenchError("\n".join(wrong) or f"--stages: name at least one of {', '.join(ALL)}")
    return stages
