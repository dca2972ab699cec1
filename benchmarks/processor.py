"""Which processor this machine has. Needs Python alone."""

from __future__ import annotations

import os
import platform
import sys


def cpu_name() -> str:
    """The processor's model name; its architecture if the system does not tell."""
    with open("/proc/cpuinfo", encoding="utf-8") if os.path.exists("/proc/cpuinfo") else open(os.devnull) as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def cores() -> int | None:
    """How many this process may use; None where the system does not tell."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else None
