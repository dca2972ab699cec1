"""Signals at a fine sweep of moments while a command starts its server and its worker; who stands still is named.

    python -m tests.faults.starts --count 400        about a second of one core each

The command is the smallest that has both: it runs `sleep` in a child (`pobench.runs.children`). A signal to leave that the
command or its worker is sent has to end it with status 130; the server takes none; and nobody may be left.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

from pobench.runs.children import run_each
from pobench.training import leaving
from tests.faults.processes import FAULTS, MARK, processes_of

WORK = 4.0  # seconds that the child sleeps
SWEEP = 1.0  # seconds from the first line on, over which the moments are spread
LIMIT = 60.0  # seconds after which a command stands still


def sleep(seconds: float) -> int:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    time.sleep(seconds)
    return 0


def command() -> None:
    """Exits with status 0 where the child has done its work, 130 where it was asked to leave, 1 where something was killed."""
    try:
        with leaving.listening():
            faulthandler.register(signal.SIGUSR1, all_threads=True)
            print("listens", flush=True)
            status = run_each(sleep, [(WORK,)], [])
    except KeyboardInterrupt:
        status = leaving.INTERRUPTED
    sys.exit(status if status in (0, leaving.INTERRUPTED) else 1)


def trial(victim: str, number: signal.Signals, moment: float) -> tuple[str, str]:
    """(whom the signal was sent to, what was wrong; "" where nothing was)."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryFile("w+") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.starts", "--command"], env={**os.environ, MARK: mark},
            start_new_session=True, stdout=subprocess.PIPE, stderr=stderr, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        chosen = [one for one, kind in processes_of(process.pid, mark).items() if kind == victim]
        if victim == "group":
            os.killpg(process.pid, number)
        else:
            victim = victim if chosen else "parent"
            with suppress(ProcessLookupError):
                os.kill([*chosen, process.pid][0], number)
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return victim, stands(process.pid, mark, stderr.fileno())
        deadline = time.monotonic() + 10
        while (left := processes_of(process.pid, mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if left:
            return victim, f"left: {stands(process.pid, mark, stderr.fileno())}"
    right = {
        signal.SIGKILL: (-9,) if victim in ("group", "parent") else (1,),
    }.get(number, (0,) if victim == "server" else (leaving.INTERRUPTED,))  # fmt: skip
    return victim, "" if status in right else f"ended with {status}, not {right[0]}"


def stands(command: int, mark: str, stderr: int) -> str:
    """Where each process stands; then they are ended."""
    shown = []
    left = processes_of(command, mark)
    for process, kind in left.items():
        with suppress(OSError):
            shown.append(f"{kind} {process} {Path(f'/proc/{process}/wchan').read_text()}")
            if kind in ("parent", "worker"):
                os.kill(process, signal.SIGUSR1)
    time.sleep(1)
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    os.lseek(stderr, 0, os.SEEK_SET)
    return f"stands still: {shown}\n{os.read(stderr, 100_000).decode(errors='replace')}"


def main() -> None:
    """Exits with status 1 where something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--command", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.command:
        command()
    tried: Counter[tuple[str, str]] = Counter()
    wrong: Counter[tuple[str, str]] = Counter()
    for i in range(given.count):
        victim, number = FAULTS[i % len(FAULTS)]
        victim, fault = trial(victim, number, SWEEP * i / given.count)
        tried[victim, number.name] += 1
        if fault:
            wrong[victim, number.name] += 1
            print(f"{victim}, {number.name}, {SWEEP * i / given.count:.3f} s: {fault}", flush=True)
    print("| to | signal | tried | wrong |\n|---|---|---|---|")
    print(
        "\n".join(f"| {victim} | {name} | {n} | {wrong[victim, name]} |" for (victim, name), n in sorted(tried.items()))
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
