"""The picture that stands for a report where its address is shared: title, the card's sentence, the main figure."""

from __future__ import annotations

import io
import textwrap

from matplotlib import image

from pobench.reporting import plot
from pobench.reporting.looks import FAINT, INK

SIZE = (1200, 630)  # pixels
DOTS = 100  # a pixel inch
LINES, LETTERS = 4, 62  # of the sentence, beside a figure
WIDEST, TALLEST = 0.52, 0.84  # of the figure, as shares of the picture


def social_card(title: str, sentence: str, facts: str, main: bytes | None) -> bytes:
    """A PNG of `SIZE`; the same arguments give the same bytes. main: the main figure as PNG."""
    with plot.style():
        figure = plot.Figure(figsize=(SIZE[0] / DOTS, SIZE[1] / DOTS), dpi=DOTS)
        wide = 34 if main else 70
        figure.text(0.045, 0.9, "pobench", fontsize=15, color=FAINT, va="top")
        figure.text(0.045, 0.82, _wrapped(title, wide - 8, 2), fontsize=25, weight="bold", color=INK, va="top")
        figure.text(0.045, 0.6, _wrapped(sentence, wide, 7), fontsize=18, color=INK, va="top", linespacing=1.35)
        figure.text(0.045, 0.06, _wrapped(facts, 118, 1), fontsize=12, color=FAINT, va="bottom")
        if main:
            pixels = image.imread(io.BytesIO(main), format="png")
            high, across = pixels.shape[:2]
            scale = min(WIDEST * SIZE[0] / across, (TALLEST - 0.06) * SIZE[1] / high)
            width, height = scale * across / SIZE[0], scale * high / SIZE[1]
            ax = figure.add_axes((0.97 - width, 0.15 + (TALLEST - 0.03 - height) / 2, width, height))
            ax.imshow(pixels, interpolation="lanczos", aspect="auto")
            ax.set_axis_off()
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DOTS, metadata={"Software": None})
        return buffer.getvalue()


def _wrapped(text: str, wide: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(text, wide, max_lines=lines, placeholder=" …"))
