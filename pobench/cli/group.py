"""Groups of commands, such as `pobench` and `pobench data`. A command's file is imported when the command runs."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from pobench.printing import say

STYLE: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}


# What an option is called elsewhere, or was called here: too far from its name for a look at the letters.
ALSO_CALLED = {"--at-once": "--parallel", "--jobs": "--parallel", "--cluster": "--executor"}


COMPARED, WORK, PLACE, FIRST, OUTPUT = PANELS = (
    "What is compared",
    "What is done",
    "Where it runs",
    "Before it runs",
    "Output",
)


class Command(TyperCommand):
    """A command whose help lists its options by panel, and its examples line by line. (Typer draws panels by rich, which takes
    long to import.)"""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            given = "Arguments" if option.param_type_name == "argument" else getattr(option, "rich_help_panel", None)
            if record is not None:
                panels.setdefault(given or OUTPUT, []).append(record)
        for title in ("Arguments", *PANELS):
            if title in panels:
                with formatter.section(title):
                    formatter.write_dl(panels[title])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            formatter.write("\nExamples:\n" + "".join(f"  {line}\n" for line in self.epilog.strip().splitlines()))


class Group(TyperGroup):
    """Lists the first paragraph of each command's help. Without arguments it prints its own help."""

    def list_commands(self, ctx: Any) -> list[str]:
        for command in self.commands.values():
            command.short_help = first_paragraph(command.help)
        return list(self.commands)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            say(ctx.get_help(), out=True)
            raise typer.Exit()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:  # of click, or of the copy that Typer brings
            if (name := ALSO_CALLED.get(getattr(error, "option_name", ""))) is not None:
                error.possibilities = [name]  # type: ignore[attr-defined]
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, _unconverted(command, ctx) if ctx.resilient_parsing else command, rest

    def get_params(self, ctx: Any) -> Any:
        """The options, with False as a flag's default: Typer would convert None by pydantic, which is slow to import."""
        options = super().get_params(ctx)
        for option in options:
            if getattr(option, "is_flag", False) and option.default is None:
                option.default = False
        return options


class CommandFiles(Group):
    """The command NAME stands in pobench/cli/NAME.py, as a Typer called `app` that holds one command or several.

    A file is imported when its command runs or prints its help; listing the commands imports all files.
    """

    files: tuple[str, ...] = ()

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name) for name in self.files}

    def list_commands(self, ctx: Any) -> list[str]:
        for name, command in self.commands.items():
            app = app_of(name)
            info = app.registered_callback or app.registered_commands[0]
            command.help = inspect.getdoc(info.callback)
        return super().list_commands(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            command = typer.main.get_command(app_of(name))
        return name, _unconverted(command, ctx) if ctx.resilient_parsing else command, rest


def _unconverted(command: Any, ctx: Any) -> Any:
    """The command with its values left as text, for completion: Typer converts them by pydantic, which is slow to import."""
    for option in command.get_params(ctx) if command is not None else ():
        option.process_value = lambda ctx, value: value
    return command


def app_of(name: str) -> typer.Typer:
    """The Typer of a command's file."""
    app: typer.Typer = importlib.import_module(f"pobench.cli.{name}").app
    return app


def first_paragraph(text: str | None) -> str:
    return " ".join((text or "").partition("\n\n")[0].split())
