"""The colour and marker of each loss, the same in every figure."""

from __future__ import annotations

import hashlib
from typing import NamedTuple


# ---------------------------------------------------------------- colours and markers
class Look(NamedTuple):
    """How a loss is drawn. marker: matplotlib's name or (points, style, angle)."""

    colour: str
    marker: str | tuple[int, int, int]


# Mid-tones: each has a contrast of 3 or more against white and against the dark page, and no two share a marker, so
# that nothing depends on telling hues apart. Blues: SimPO and its variants. Oranges and browns: DPO and its variants.
LOOKS = {
    "start": Look("#7b828c", "o"),
    "simpo": Look("#2a78d6", "D"),
    "simpo_no_ln": Look("#5a8ff0", "d"),
    "simpo_sft": Look("#5b63c9", "p"),
    "dpo": Look("#d4541a", "s"),
    "dpo_ln": Look("#c9802b", "P"),
    "dpo_gamma": Look("#a9663a", "X"),
    "rdpo": Look("#c2493d", "^"),
    "ipo": Look("#139a74", "v"),
    "cpo": Look("#c9609b", "*"),
    "kto": Look("#8f63c4", "h"),
    "orpo": Look("#a88a12", "<"),
    "rrhf": Look("#5f8f3a", ">"),
    "slic_hf": Look("#2596ab", (4, 1, 0)),
    # Further losses. Warm: DPO with another margin. Greens: squared. Purples and pinks: each answer by itself.
    "cdpo": Look("#aa8a79", "8"),
    "robust_dpo": Look("#dc726f", "H"),
    "rso": Look("#72680e", (5, 0, 180)),
    "dpop": Look("#f8602a", (3, 0, 45)),
    "rpo": Look("#74674e", (4, 0, 22)),
    "discopop": Look("#f80779", (5, 1, 180)),
    "caldpo": Look("#0f7850", (3, 0, 315)),
    "sppo_hard": Look("#068307", (6, 1, 30)),
    "exo_pair": Look("#067284", (7, 1, 0)),
    "nca_pair": Look("#e016f8", (9, 1, 0)),
    "bco_pair": Look("#b506bc", (12, 1, 0)),
    "apo_zero": Look("#852ff5", (3, 1, 90)),
    "apo_down": Look("#f948be", (3, 1, 270)),
    "simper": Look("#087faf", (4, 1, 22)),
    "alphapo": Look("#2f55f3", (5, 0, 90)),
    "repo": Look("#7991c4", (6, 0, 15)),
}
# For losses of users; a name always gets the same look, whatever stands beside it.
RESERVED_COLOURS = ("#a25aa8", "#7c8a1e", "#4b8b8b", "#c2476b", "#8f7652", "#64809f", "#3f9a4e", "#b0634f")
RESERVED_MARKERS = ((6, 1, 0), (7, 0, 0), (8, 1, 0), (3, 1, 0), (10, 1, 0), (3, 1, 180), (4, 1, 45))

INK, FAINT, GRID, PAPER, SHADE = "#24292f", "#6e7781", "#dfe3e8", "#fefefe", "#eef1f5"
# What the page may recolour for the dark (and nothing else in a figure uses exactly these).
PAGE_COLOURS = {INK: "--fig-ink", FAINT: "--fig-faint", GRID: "--fig-grid", PAPER: "--fig-paper", SHADE: "--fig-shade"}


def look_of(loss: str) -> Look:
    """The colour and marker of a loss; a loss that does not ship gets a stable one from its name."""
    if loss in LOOKS:
        return LOOKS[loss]
    digest = hashlib.sha256(loss.encode("utf-8", "replace")).digest()
    return Look(
        RESERVED_COLOURS[digest[0] % len(RESERVED_COLOURS)], RESERVED_MARKERS[digest[1] % len(RESERVED_MARKERS)]
    )
