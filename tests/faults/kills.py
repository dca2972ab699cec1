"""Kills `pobench run` at random moments, repeats the command, and compares what it made with an undisturbed run's.

    python -m tests.faults.kills --count 200 --seed 1        about half a minute of one core each
    python -m tests.faults.kills --count 20 --only server    of one victim alone

A trial has runs and a cache of its own. It starts the command, waits for a random moment of a random stage, and sends a
signal to one of: the command (`parent`), the process that works (`worker`), the server that forks it (`server`), or all of
them (`group`). Then all its processes must be gone, and the command is repeated until it ends with status 0. Survived: results
bit-identical to those of the undisturbed run (all but measured columns), every step logged once, no orphan. Everything else
is lost, and named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.world import make_world, results

# Each stage begins with a line of the command's that matches; the first begins with the command.
STAGES = {
    "start-up": "",
    "start model": r"^start model: .*→",
    "training": r"^dpo.*: train .*→",
    "answering": r"^dpo.*: answers.*→",
    "judging": r"^dpo.*: held-out.*done",
    "report": r"^dpo.*: verdicts.*done",
}
FAULTS = [
    ("group", signal.SIGTERM), ("group", signal.SIGINT), ("group", signal.SIGKILL),
    ("parent", signal.SIGTERM), ("parent", signal.SIGKILL),
    ("worker", signal.SIGTERM), ("worker", signal.SIGKILL),
    ("server", signal.SIGTERM), ("server", signal.SIGKILL),
]  # fmt: skip
LIMIT = 300.0  # seconds after which a command hangs
ORPHAN = 10.0  # seconds that a process may outlive its command
MARK = "POBENCH_FAULTS_TRIAL"  # the variable by which a trial's processes are known


@dataclass
class Command:
    """`pobench run` in a trial's folder, and when it said what."""

    folder: Path
    setting: Path
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    lines: list[tuple[float, str]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        variables = {**os.environ, MARK: self.mark, "POBENCH_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}
        arguments = ["run", "--losses", "dpo", "--setting", str(self.setting), "--runs", str(self.folder / "runs")]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pobench.cli", *arguments], env=variables, start_new_session=True, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic() - self.began, line.rstrip()))

    def wait(self) -> int:
        """Its exit status."""
        status = self.process.wait(LIMIT)
        self.seconds = time.monotonic() - self.began
        self._reader.join(ORPHAN)
        return status

    def stages(self) -> dict[str, float]:
        """Stage → seconds from the command's start to its beginning, of those that have begun."""
        begun = {}
        for stage, pattern in STAGES.items():
            times = [at for at, line in self.lines if re.search(pattern, line)]
            if times or not pattern:
                begun[stage] = times[0] if pattern else 0.0
        return begun

    def processes(self) -> dict[int, str]:
        """Process → "parent", "server" or "worker", of those that live; of other helpers "other"."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes():
                    found[int(path.name)] = ((path / "cmdline").read_text(), int(_stat(path)[1]), _stat(path)[0])
        servers = {
            process for process, (line, starter, _) in found.items()
            if "forkserver" in line and starter == self.process.pid
        }  # fmt: skip
        kinds = {}
        for process, (_, starter, state) in found.items():
            kind = "server" if process in servers else "worker" if starter in servers else "other"
            if state != "Z":
                kinds[process] = "parent" if process == self.process.pid else kind
        return kinds


def _stat(path: Path) -> tuple[str, str]:
    """(state, parent) of a process."""
    state, starter = (path / "stat").read_text().rpartition(")")[2].split()[:2]
    return state, starter


@dataclass(frozen=True)
class Trial:
    """stage, victim, signal: what was done. lost: why results or processes are not as they should be; "" if they are.
    seconds: that the repeated command took."""

    stage: str
    victim: str
    signal: signal.Signals
    lost: str
    seconds: float


def undisturbed(folder: Path, setting: Path) -> tuple[dict[str, str], dict[str, tuple[float, float]]]:
    """(results, stage → (its beginning, its length in seconds)) of a run that nothing befalls."""
    command = Command(folder, setting)
    if status := command.wait():
        raise RuntimeError(f"the undisturbed command ended with {status}: {command.lines[-3:]}")
    begun = command.stages()
    ends = [*list(begun.values())[1:], command.seconds]
    lengths = {stage: (at, end - at) for (stage, at), end in zip(begun.items(), ends, strict=True)}
    return results(folder / "runs", folder / "cache"), lengths


def trial(folder: Path, setting: Path, expected: dict[str, str], length: float, stage: str, fault: tuple[str, signal.Signals],
          moment: float) -> Trial:  # fmt: skip
    """Kill a command once. length: of the stage, in seconds. moment: the share of it after which the signal is sent."""
    victim, number = fault
    command = Command(folder, setting)
    while command.process.poll() is None and stage not in command.stages():
        time.sleep(0.01)
    time.sleep(moment * length)
    sent = strike(command, victim, number)
    faults = []
    try:
        status = command.wait()
        if sent == "group" and number != signal.SIGKILL and status not in (0, 130):
            faults.append(f"left with status {status}")
    except subprocess.TimeoutExpired:
        faults.append("hangs")
        os.killpg(command.process.pid, signal.SIGKILL)
        command.wait()
    if orphans := outlive(command):
        faults.append(f"orphans: {orphans}")
    seconds = 0.0
    for _ in range(3):
        again = Command(folder, setting)
        status = again.wait()
        seconds += again.seconds
        if status == 0:
            break
    else:
        faults.append(f"the repeated command ends with {status}: {[line for _, line in again.lines[-2:]]}")
    if not faults:
        found = results(folder / "runs", folder / "cache")
        faults += [f"{name} differs" for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
    return Trial(stage, sent, number, "; ".join(faults), seconds)


def strike(command: Command, victim: str, number: signal.Signals) -> str:
    """Send the signal; returns to whom: a victim that does not live at this moment is replaced by the parent."""
    if command.process.poll() is not None:
        return "none"
    chosen = [process for process, kind in command.processes().items() if kind == victim]
    with contextlib.suppress(ProcessLookupError):
        if victim == "group":
            os.killpg(command.process.pid, number)
        elif chosen:
            os.kill(chosen[0], number)
        else:
            victim = "parent"
            os.kill(command.process.pid, number)
    return victim


def outlive(command: Command) -> dict[int, str]:
    """Processes that live `ORPHAN` seconds after their command, which are ended then."""
    deadline = time.monotonic() + ORPHAN
    while (left := command.processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return left


def campaign(count: int, seed: int, only: str = "") -> Iterator[Trial]:
    """`count` trials, drawn by `seed`; stages and faults take turns, so that each pair of them is tried as often as others."""
    drawn = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        setting = make_world(base / "world")
        expected, lengths = undisturbed(base / "undisturbed", setting)
        faults = [fault for fault in FAULTS if only in ("", fault[0])]
        plan = [(stage, fault) for fault in faults for stage in lengths]
        drawn.shuffle(plan)
        for i in range(count):
            stage, fault = plan[i % len(plan)]
            folder = base / f"trial-{i}"
            yield trial(folder, setting, expected, lengths[stage][1], stage, fault, drawn.random())
            shutil.rmtree(folder)


def table(trials: list[Trial]) -> str:
    """Fault × tried × survived × lost × seconds until the repeated command was done, in Markdown."""
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for one in trials:
        groups["by whom", f"{one.victim}, {one.signal.name}"].append(one)
        groups["when", one.stage].append(one)
        groups["all", "together"].append(one)
    lines = ["| fault | tried | survived | lost | seconds to recover, median |", "|---|---|---|---|---|"]
    for (kind, name), of_one in sorted(
        groups.items(), key=lambda item: (["by whom", "when", "all"].index(item[0][0]), item)
    ):
        lost = sum(bool(t.lost) for t in of_one)
        shown = f"while {name}" if kind == "when" else name
        seconds = statistics.median(t.seconds for t in of_one)
        lines.append(f"| {shown} | {len(of_one)} | {len(of_one) - lost} | {lost} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Exits with status 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", choices=sorted({victim for victim, _ in FAULTS}))
    given = parser.parse_args()
    trials = []
    for one in campaign(given.count, given.seed, given.only):
        trials.append(one)
        print(f"{len(trials)}: {one.stage}, {one.victim}, {one.signal.name}: {one.lost or 'survived'}", flush=True)
    print(table(trials))
    sys.exit(any(one.lost for one in trials))


if __name__ == "__main__":
    main()
