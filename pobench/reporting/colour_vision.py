"""How far apart two colours look, to most people and to those who lack one kind of cone.

Distance: CIEDE2000 (Sharma, Wu, Dalal 2005, doi 10.1002/col.20070). Colour blindness: Machado, Oliveira, Fernandes 2009
(doi 10.1109/TVCG.2009.113), severity 1.0, on linear RGB.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

VISIONS = {
    "trichromat": np.eye(3),
    "protanope": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranope": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = _TO_XYZ.sum(axis=1)  # D65


def distances(colours: Sequence[str], vision: str = "trichromat") -> Numbers:
    """(colours, colours): CIEDE2000 between "#rrggbb" colours as `vision`, a key of `VISIONS`, sees them."""
    lab = _lab(np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours]), VISIONS[vision])
    return ciede2000(lab[:, None], lab[None])


def least_distances(colours: Sequence[str]) -> Numbers:
    """(colours, colours): the smallest of `distances` over all visions."""
    return np.min([distances(colours, vision) for vision in VISIONS], axis=0)


def _lab(rgb: Numbers, cones: Numbers) -> Numbers:
    """(…, 3) sRGB in [0, 1] → (…, 3) CIELAB, as seen through the matrix `cones`."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ cones.T, 0.0, 1.0)
    t = seen @ _TO_XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(one: Numbers, other: Numbers) -> Numbers:
    """(…,): the colour difference ΔE00 of CIELAB colours, each (…, 3)."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    chroma7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    grey = 1.5 - 0.5 * np.sqrt(chroma7 / (chroma7 + 25.0**7))
    a1, a2 = a1 * grey, a2 * grey
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    colourless = c1 * c2 == 0
    turn = np.where(colourless, 0.0, (h2 - h1 + 180) % 360 - 180)
    dl, dc, dh = l2 - l1, c2 - c1, 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    hue = np.where(colourless, h1 + h2, h1 + turn / 2) % 360
    t = (
        1 - 0.17 * np.cos(np.radians(hue - 30)) + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6)) - 0.20 * np.cos(np.radians(4 * hue - 63))
    )  # fmt: skip
    sl = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    sc, sh = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    rotation = (
        -np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))) * 2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    )
    dl, dc, dh = dl / sl, dc / sc, dh / sh
    difference: Numbers = np.sqrt(np.maximum(dl**2 + dc**2 + dh**2 + rotation * dc * dh, 0.0))
    return difference
