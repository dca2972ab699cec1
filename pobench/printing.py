"""The one way to the terminal: text from data, names and errors is shown, and never obeyed.

A row, a setting's name or an exception's message may hold control sequences, which would recolour, move or retitle a terminal,
or characters that reverse or hide what stands beside them. They appear by their number, as ⟨U+001B⟩.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_HIDDEN = {
    *range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x61C, 0xAD, 0x200B, 0x200E, 0x200F,
    *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080),
}  # fmt: skip
_ESCAPED = {c: json.dumps(chr(c))[1:-1] for c in _HIDDEN - {*range(0x20)}}  # json escapes the others itself
_VISIBLE = {c: f"⟨U+{c:04X}⟩" for c in _HIDDEN}


def visible(text: str) -> str:
    """The text with broken UTF-8 as �, and invisible and direction-changing characters by their number."""
    valid = text.replace("\r\n", "\n").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return valid.translate(_VISIBLE)


def size(count: float, *, decimal: bool = False) -> str:
    """So many bytes, in the unit that fits: `1.4 GiB`, `37 MiB`, `0.5 KiB`; decimal: in powers of 1000, `1.4 GB`."""
    base, ending = (1000, "B") if decimal else (1024, "iB")
    for name, power in (("G", 3), ("M", 2), ("K", 1)):
        if count >= 0.1 * base**power:
            shown = count / base**power
            digits = 0 if name != "G" and shown >= 10 else 1
            return f"{shown:.{digits}f} {name}{ending}"
    return f"{count:.0f} bytes"


def say(text: str, *, end: str = "\n", out: bool = False) -> None:
    """Print text on standard error, or on standard output."""
    print(visible(text), end=end, file=sys.stdout if out else sys.stderr, flush=True)


def say_json(data: Any) -> None:
    """Print data as JSON on standard output, in which hidden characters are escapes."""
    text = json.dumps(data, indent=1, ensure_ascii=False)
    print(text.translate(_ESCAPED).encode("utf-8", "backslashreplace").decode(), flush=True)


def make_console(**options: Any) -> Console:
    """A rich console that shows all text as `visible` does; only rich's own styles and movements reach the terminal."""
    from rich.console import Console
    from rich.segment import Segment

    class Visible(Console):
        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return Visible(**options)
