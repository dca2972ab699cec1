"""The judge `rehearsed`: stands for a judge that compares while a rehearsal runs. Its verdicts say nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from pobench.judging.pairwise import Comparison, Progress, Read, TwoOrders
from pobench.registry import register_judge


class Rehearsed(TwoOrders):
    """A probability from the digest of what is shown, the order included, so that some verdicts flip; some cannot be read."""

    name = "rehearsed"

    def read(self, shown: Sequence[Comparison], progress: Progress | None = None) -> list[Read]:
        return [_read(comparison) for comparison in shown]


def _read(comparison: Comparison) -> Read:
    number = int(hashlib.sha256(repr(tuple(comparison)).encode("utf-8", "replace")).hexdigest()[:8], 16)
    return Read(math.nan, "no verdict") if number % 10 == 9 else Read(number / 0xFFFFFFFF)


@register_judge("rehearsed", offline=True, compares=True)
def rehearsed() -> Rehearsed:
    """For rehearsals: random numbers in place of a judge that compares."""
    return Rehearsed()
