"""The time of training steps, and how much of it the process waited for a processor that had other work.

A time measured beside other work says nothing of a loss. On Linux the kernel counts, for every thread, how long it was ready to
run and none of the processors took it; the thread that makes the steps is the one that counts.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NamedTuple

_SCHEDSTAT = Path(
    "/proc/thread-self/schedstat"
)  # nanoseconds on a processor, nanoseconds of waiting for one, time slices


class Spent(NamedTuple):
    """seconds: of wall time. waited: those of them in which this thread was ready and no processor took it; nan where the
    system does not count them."""

    seconds: float = 0.0
    waited: float = 0.0

    @classmethod
    def so_far(cls) -> Spent:
        """A reading of both clocks; only the difference of two readings of one thread means something."""
        try:
            waited = int(_SCHEDSTAT.read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            waited = math.nan
        return cls(time.monotonic(), waited)

    def since(self, earlier: Spent) -> Spent:
        """What passed between an earlier reading and this one."""
        return Spent(self.seconds - earlier.seconds, self.waited - earlier.waited)

    def plus(self, more: Spent) -> Spent:
        """Both together."""
        return Spent(self.seconds + more.seconds, self.waited + more.waited)
