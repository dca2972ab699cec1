"""Text from data, names and errors reaches the terminal as signs, through one module, whatever it holds."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from pobench.printing import make_console, say, say_json, size, visible

ROOT = Path(__file__).parents[2]
HOSTILE = "a\x1b[31mred\x07\x9b2J\u202eback\udcff\r\nb"
SHOWN = "a⟨U+001B⟩[31mred⟨U+0007⟩⟨U+009B⟩2J⟨U+202E⟩back�\nb"


def obeyed(text: str) -> set[str]:
    """The control characters in printed text that a terminal would obey."""
    return {c for c in text if ord(c) < 32 or 127 <= ord(c) < 160 or "\u202a" <= c <= "\u202e"} - {"\n", "\t"}


def test_control_characters_are_shown_by_number_and_lines_stay_lines(capsys) -> None:
    assert visible(HOSTILE) == SHOWN and visible("β = 2\t3\u202f000\n") == "β = 2\t3\u202f000\n"
    say(HOSTILE)
    say(HOSTILE, out=True)
    assert capsys.readouterr() == (f"{SHOWN}\n", f"{SHOWN}\n")


def test_json_has_the_characters_as_escapes_and_says_the_same(capsys) -> None:
    data = {"name": "γ \x9b\u202e\x1b", "n": 1}
    say_json(data)
    printed = capsys.readouterr().out
    assert not obeyed(printed) and "γ" in printed and json.loads(printed) == data


def test_a_console_styles_and_does_not_pass_a_datas_styles_on(capsys) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("a\x1b]0;title\x07")
    table.add_row(f"[bold]{'x' + chr(27)}[/]")
    console = make_console(force_terminal=True, color_system="standard", width=60)
    console.print(table, Text("y\x1b[2J", style="red"))
    printed = capsys.readouterr().out
    assert "\x1b[1mx⟨U+001B⟩" in printed and "\x1b[31my⟨U+001B⟩[2J" in printed
    assert "\x1b]0" not in printed and "\x1b[2J" not in printed and "\x07" not in printed


@pytest.mark.parametrize("path", sorted((ROOT / "pobench").rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_else_prints(path) -> None:
    if path.name == "printing.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else None
        assert not (isinstance(called, ast.Name) and called.id in ("print", "Console")), f"{path}:{node.lineno}"
        assert not (isinstance(called, ast.Attribute) and called.attr == "print_exc"), f"{path}:{node.lineno}"


@pytest.mark.parametrize(
    ("count", "shown", "decimal"),
    [
        (0, "0 bytes", "0 bytes"),
        (5_000, "4.9 KiB", "5.0 KB"),
        (300_000, "0.3 MiB", "0.3 MB"),
        (37 * 2**20, "37 MiB", "39 MB"),
        (1.5 * 2**30, "1.5 GiB", "1.6 GB"),
        (148.25 * 2**30, "148.2 GiB", "159.2 GB"),
    ],
)
def test_a_size_is_printed_in_the_unit_that_fits(count: float, shown: str, decimal: str) -> None:
    assert (size(count), size(count, decimal=True)) == (shown, decimal)
