"""Printing to the terminal by rich, which is imported at the first print: help and completion do not need it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from pobench.printing import make_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Terminal:
    """Standard output or standard error, as a rich console."""

    def __init__(self, *, stderr: bool = False) -> None:
        self.stderr = stderr

    @cached_property
    def console(self) -> Console:
        return make_console(stderr=self.stderr, soft_wrap=True)

    def print(self, *things: Any, **style: Any) -> None:
        self.console.print(*things, **style)


out = Terminal()
err = Terminal(stderr=True)


def escape(text: str) -> str:
    """The text without any meaning as markup."""
    from rich.markup import escape

    return escape(text)


def make_table(*columns: str, padding: tuple[int, int, int, int] = (0, 2, 0, 0)) -> Table:
    """A table without lines, its header in bold."""
    from rich.table import Table

    return Table(*columns, box=None, header_style="bold", padding=padding)
