"""What the stages of one task share."""

from __future__ import annotations

import sys


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
