"""Draws docs/losses-family.svg: which objective is which with a setting changed, from `becomes` of the registrations.

Written as text, without matplotlib, so that the bytes are the same under every version. `make docs` stores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from pobench.printing import say
from pobench.registry import Loss, losses

BOX, GAP, ROW = 150, 290, 34  # widths of a box and of the arrows' space, height of a row, in pixels
HEIGHT = 22  # of a box
INK, FRAME = "#1f2328", "#8c959f"


class Placed(NamedTuple):
    """An objective's box: its column from the left and its row from the top."""

    loss: Loss
    column: int
    row: float


def family_figure() -> str:
    """The figure as SVG, the same bytes every time. An arrow leads from an objective to the one that it becomes."""
    boxes = {box.loss.name: box for box in _placed()}
    wide = (max(box.column for box in boxes.values()) + 1) * (BOX + GAP) - GAP + 20
    high = int((max(box.row for box in boxes.values()) + 1) * ROW) + 16
    arrows = [_arrow(box, boxes[other]) for box in boxes.values() for other in box.loss.becomes]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
            f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">',
            f'<rect width="{wide}" height="{high}" fill="#ffffff"/>',
            '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0 0 8 4 0 8z" fill="{FRAME}"/></marker>',
            *arrows,
            *map(_box, boxes.values()),
            "</svg>\n",
        ]
    )


def condition(loss: Loss, other: str) -> str:
    """The settings at which a loss is the other, as `alpha 0`; `on pairs` where it needs none."""
    return ", ".join(f"{key} {value:g}" for key, value in loss.becomes[other].items()) or "on pairs"


def _placed() -> Iterator[Placed]:
    """Every objective that becomes another or that another becomes; the special ones at the left, the largest family first."""
    every = [losses.get(name) for name in losses.names()]
    children: dict[str, list[Loss]] = {}
    for loss in every:
        for other in loss.becomes:
            children.setdefault(other, []).append(loss)
    roots = [losses.get(name) for name in children if not losses.get(name).becomes]
    seen: set[str] = set()
    free = 0.0

    def place(loss: Loss, column: int) -> Iterator[Placed]:
        nonlocal free
        seen.add(loss.name)
        inner: list[Placed] = []
        rows: list[float] = []
        for child in children.get(loss.name, ()):
            if child.name not in seen:
                found = list(place(child, column + 1))
                inner, rows = [*inner, *found], [*rows, found[0].row]
        if not rows:
            rows, free = [free], free + 1
        yield Placed(loss, column, (rows[0] + rows[-1]) / 2)
        yield from inner

    for root in sorted(roots, key=lambda loss: (-len(children[loss.name]), loss.title.casefold())):
        yield from place(root, 0)


def _corner(box: Placed) -> tuple[float, float]:
    return 10 + box.column * (BOX + GAP), 13 + box.row * ROW


def _box(box: Placed) -> str:
    x, y = _corner(box)
    return (
        f'<rect x="{x}" y="{y:g}" width="{BOX}" height="{HEIGHT}" rx="4" fill="#f6f8fa" stroke="{FRAME}"/>'
        f'<text x="{x + BOX / 2:g}" y="{y + 15:g}" text-anchor="middle">{escape(box.loss.title)}</text>'
    )


def _arrow(general: Placed, special: Placed) -> str:
    (x, y), (to_x, to_y) = _corner(general), _corner(special)
    start, end, bend = y + HEIGHT / 2, to_y + HEIGHT / 2, to_x + BOX + 20
    line = f"M{x} {start:g}H{bend}V{end:g}H{to_x + BOX}"
    return (
        f'<path d="{line}" fill="none" stroke="{FRAME}" marker-end="url(#head)"/>'
        f'<text x="{x - 6}" y="{start - 4:g}" text-anchor="end" font-size="10">'
        f"{escape(condition(general.loss, special.loss.name))}</text>"
    )


if __name__ == "__main__":
    say(family_figure(), end="", out=True)
