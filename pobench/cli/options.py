"""Options that several commands share, and how they are parsed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from pobench.errors import PobenchError, or_fault
from pobench.runs.stages import ALL, DEFAULT, MANY

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which preference-optimization loss is really better, on your model and your data?",
)
data_app = typer.Typer(no_args_is_help=True, help="Look at preference data, or make some on policy.")

score_app = typer.Typer(no_args_is_help=True, help="Score stored verdicts of AlpacaEval 2, Arena-Hard or MT-Bench.")

judge_app = typer.Typer(no_args_is_help=True, help="Find out what a judge is worth before it is believed.")

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

HOME_STAGES, STAGES, KNOWN_STAGES = MANY, DEFAULT, ALL


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
    from pobench.errors import nearest

    stages = [s.strip() for s in text.split(",") if s.strip()]
    wrong = [
        f"--stages: unknown stage {s!r}{nearest(s, KNOWN_STAGES)} Known: {', '.join(KNOWN_STAGES)}"
        for s in stages
        if s not in KNOWN_STAGES
    ]
    if wrong or not stages:
        raise PobenchError("\n".join(wrong) or f"--stages: name at least one of {', '.join(KNOWN_STAGES)}")
    return stages


ModelName = Annotated[str | None, typer.Option(help="Whose tokenizer; default: the setting's.")]


def _untrusted(text: str) -> str:
    """Text from a file, fit for a terminal."""
    return escape("".join(c if c.isprintable() else "�" for c in text))
