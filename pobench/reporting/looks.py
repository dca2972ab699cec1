"""The colour, marker and dash of each loss, the same in every figure, and the colours of axes and page."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pobench.registry import Marker, losses

if TYPE_CHECKING:
    from matplotlib.path import Path as Outline

# ---------------------------------------------------------------- colours and markers
Dash = tuple[float, tuple[float, ...] | None]  # offset, lengths of ink and gap in line widths; None: solid


class Look(NamedTuple):
    """How a loss is drawn. marker: matplotlib's name, (points, style, angle), or the outline of letters. dash: matplotlib's, of
    its lines."""

    colour: str
    marker: Marker | Outline
    dash: Dash


DASHES: tuple[Dash, ...] = (
    (0, None),
    (0, (4, 1.6)),
    (0, (1.2, 1.4)),
    (0, (6, 1.5, 1.2, 1.5)),
    (0, (8, 2)),
    (0, (3, 1.2, 1, 1.2, 1, 1.2)),
)
START = Look("#7b828c", "o", (0, (4, 3)))  # the start model
# The colour and marker of a loss stand in its decorator. Shipped colours are mid-tones: each has a contrast of 3 or more
# against white and against the dark page, and no two share a marker, so that nothing depends on telling hues apart. Those of
# the paper's losses are ΔE 10 apart for deuteranopes and protanopes too (`pobench.reporting.colour_vision`); for five times as
# many losses there is no room. Blues: SimPO and its variants. Oranges and browns: DPO and its variants; further warm ones: DPO
# with another margin. Greens: squared objectives. Purples and pinks: each answer by itself. The dash comes from the name.

# For losses that declare no look. A name always gets the same look, whichever other losses are shown.
RESERVED_COLOURS = ("#a25aa8", "#7c8a1e", "#4b8b8b", "#c2476b", "#8f7652", "#64809f", "#3f9a4e", "#b0634f")
RESERVED_MARKERS = ((6, 1, 0), (7, 0, 0), (8, 1, 0), (3, 1, 0), (10, 1, 0), (3, 1, 180), (4, 1, 45))

INK, FAINT, GRID, PAPER, SHADE = "#24292f", "#6e7781", "#dfe3e8", "#fefefe", "#eef1f5"
# Colours that the page replaces in dark mode; nothing else in a figure uses exactly these.
PAGE_COLOURS = {INK: "--fig-ink", FAINT: "--fig-faint", GRID: "--fig-grid", PAPER: "--fig-paper", SHADE: "--fig-shade"}


def look_of(loss: str) -> Look:
    """The look of `start` or of a loss; a loss that declares no colour and marker gets stable ones from its name."""
    if loss == "start":
        return START
    digest = hashlib.sha256(loss.encode("utf-8", "replace")).digest()
    dash = DASHES[digest[2] % len(DASHES)]
    declared = losses.get(loss) if loss in losses.names() else None
    if declared is not None and declared.colour:
        return Look(declared.colour, _drawn(declared.marker), dash)
    colour = RESERVED_COLOURS[digest[0] % len(RESERVED_COLOURS)]
    return Look(colour, RESERVED_MARKERS[digest[1] % len(RESERVED_MARKERS)], dash)


@cache
def _drawn(marker: Marker) -> Marker | Outline:
    """The outline of a marker that is a formula, `$X$`, around its middle. matplotlib would draw the dollar signs as well,
    because in our style they begin no formula."""
    if not (isinstance(marker, str) and marker.startswith("$")):
        return marker
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path as Outline
    from matplotlib.textpath import text_to_path

    vertices, codes = text_to_path.get_text_path(FontProperties(), marker, ismath=True)
    letters = Outline(np.asarray(vertices), np.asarray(codes))
    return Outline(letters.vertices - letters.get_extents().get_points().mean(axis=0), letters.codes)
