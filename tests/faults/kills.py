"""Kills `pobench run` at random moments, repeats the command, and compares what it made with an undisturbed run's.

    python -m tests.faults.kills --count 200 --seed 1 --out kills.jsonl    about ten seconds of one core each
    python -m tests.faults.kills --count 20 --only server                  of one victim alone

A trial has runs and a cache of its own. It starts the command, waits for a random moment of a random stage, and sends a
signal to one of: the command (`parent`), the process that works (`worker`), the server that forks it (`server`), or all of
them (`group`); where two processes share a training, also one of them (`rank`), or what starts them (`launcher`). Then all its
processes must be gone, and the command is repeated until it ends with status 0. Survived: results bit-identical to those of
the undisturbed run (all but measured columns), every step logged once, no orphan, no one who stands still. Everything else is
lost, and named.

Nine of ten commands are forked from a process that has imported the packages (`prepared`), the tenth is started as users do.
With --out, each trial is a line of that file, and the same command goes on behind the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import select
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.processes import FAULTS, MARK, processes_of
from tests.faults.world import make_world, results

# Each stage begins with a line of the command's that matches; the first begins with the command.
STAGES = {
    "start-up": "",
    "reference": r"reference pass .*→",
    "start model": r"start model: .*→",
    "training": r"dpo, .*: train +→",
    "answering": r"dpo, .*: answers.*→",
    "judging": r"dpo, .*: held-out pairs .*done",
    "report": r"dpo, .*: verdicts .*done",
}
SHARED = "training in two processes"
SHARED_FAULTS = [
    ("group", signal.SIGTERM), ("group", signal.SIGINT), ("parent", signal.SIGTERM), ("parent", signal.SIGKILL),
    ("launcher", signal.SIGTERM), ("launcher", signal.SIGKILL), ("rank", signal.SIGTERM), ("rank", signal.SIGKILL),
]  # fmt: skip
COLD = 10  # of so many commands one is started as users do
LIMIT = 300.0  # seconds after which a command hangs
ORPHAN = 10.0  # seconds that a process may outlive its command


class Starter:
    """Starts commands, see `prepared`; one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.prepared"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.line()

    def line(self, seconds: float = 600.0) -> str:
        """Raises TimeoutError."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        return self.process.stdout.readline().strip()

    def start(self, **values: Any) -> int:
        """Returns the process; the next `line` is its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()
        return int(self.line())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


class Command:
    """`pobench run` in a trial's folder, and when it said what. starter: None: it is started as users do. shared: two processes
    train together."""

    def __init__(self, folder: Path, setting: Path, starter: Starter | None = None, *, shared: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.mark, self.starter, self.seconds = uuid.uuid4().hex, starter, 0.0
        self.status: int | None = None
        self.lines: list[tuple[float, str]] = []
        self._said = folder / f"{self.mark}.err"
        self._said.touch()
        variables = {MARK: self.mark, "POBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        arguments = ["run", "--losses", "dpo", "--setting", str(setting), "--runs", str(folder / "runs")]
        arguments += ["--devices", "2"] * shared
        self.began = time.monotonic()
        if starter is not None:
            self.pid = starter.start(arguments=arguments, variables=variables, file=str(self._said))
        else:
            with self._said.open("w") as file:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "pobench.cli", *arguments], env={**os.environ, **variables},
                    start_new_session=True, stdout=subprocess.DEVNULL, stderr=file,
                )  # fmt: skip
            self.pid = self._process.pid
        self._ended = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._said.open(errors="replace") as file:
            rest = ""
            while True:
                over = self._ended.is_set()
                *lines, rest = (rest + file.read()).split("\n")
                self.lines += [(time.monotonic() - self.began, line) for line in lines]
                if over:
                    return
                self._ended.wait(0.01)

    def lives(self) -> bool:
        """Whether it has not ended."""
        with contextlib.suppress(TimeoutError, subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.status is None

    def wait(self, limit: float = LIMIT) -> int:
        """Its exit status. Raises TimeoutError or TimeoutExpired."""
        if self.status is None:
            self.status = int(self.starter.line(limit)) if self.starter else self._process.wait(limit)
            self.seconds = time.monotonic() - self.began
            self._ended.set()
            self._reader.join(ORPHAN)
        return self.status

    def stages(self) -> dict[str, float]:
        """Stage → seconds from the command's start to its beginning, of those that have begun."""
        begun = {}
        for stage, pattern in STAGES.items():
            times = [at for at, line in self.lines if re.search(pattern, line)]
            if times or not pattern:
                begun[stage] = times[0] if pattern else 0.0
        return begun

    def processes(self) -> dict[int, str]:
        """Process → kind, see `processes_of`."""
        return processes_of(self.pid, self.mark)

    def stacks(self) -> str:
        """Where each process stands: of prepared ones their Python stacks, of others what the system says."""
        shown = []
        for process, kind in self.processes().items():
            with contextlib.suppress(OSError):
                shown.append(f"{kind} {process}: {Path(f'/proc/{process}/wchan').read_text()}")
                if self.starter and kind in ("parent", "server", "worker"):
                    os.kill(process, signal.SIGUSR1)
                    time.sleep(0.5)
        frames = [line.strip() for _, line in self.lines if line.startswith(("  File", "Thread", "Current thread"))]
        return " | ".join(shown + frames)


@dataclass(frozen=True)
class Trial:
    """stage, victim, signal: what was done, and how the command was started. lost: why results or processes are not as they
    should be; "" if they are. seconds: that the repeated command took."""

    stage: str
    victim: str
    signal: str
    lost: str
    seconds: float
    prepared: bool = True


@dataclass(frozen=True)
class Undisturbed:
    """results: of a run that nothing befalls. lengths: stage → seconds."""

    results: dict[str, str]
    lengths: dict[str, float]


def undisturbed(folder: Path, setting: Path, starter: Starter | None, *, shared: bool = False) -> Undisturbed:
    """Raises RuntimeError where the command fails, or a stage is not seen."""
    command = Command(folder, setting, starter, shared=shared)
    if status := command.wait():
        raise RuntimeError(f"the undisturbed command ended with {status}: {command.lines[-3:]}")
    begun = command.stages()
    if missing := set(STAGES) - set(begun):
        raise RuntimeError(f"the undisturbed command did not show {missing}")
    ends = [*list(begun.values())[1:], command.seconds]
    lengths = {stage: end - at for (stage, at), end in zip(begun.items(), ends, strict=True)}
    return Undisturbed(results(folder / "runs", folder / "cache"), lengths)


def trial(folder: Path, setting: Path, expected: Undisturbed, starter: Starter | None, stage: str,
          fault: tuple[str, signal.Signals], moment: float) -> Trial:  # fmt: skip
    """Kill a command once. moment: the share of the stage after which the signal is sent."""
    victim, number = fault
    shared, at = stage == SHARED, "training" if stage == SHARED else stage
    command = Command(folder, setting, starter, shared=shared)
    while command.lives() and at not in command.stages():
        time.sleep(0.01)
    time.sleep(moment * expected.lengths[at])
    sent = strike(command, victim, number)
    faults = []
    try:
        status = command.wait()
        if sent == "group" and number != signal.SIGKILL and status not in (0, 130, -number):
            faults.append(f"left with status {status}")
    except (TimeoutError, subprocess.TimeoutExpired):
        faults.append(f"hangs: {command.stacks()}")
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()
    if orphans := outlive(command):
        faults.append(f"orphans: {orphans}")
    seconds = 0.0
    for _ in range(3):
        again = Command(folder, setting, starter, shared=shared)
        try:
            status = again.wait()
        except (TimeoutError, subprocess.TimeoutExpired):
            faults.append(f"the repeated command hangs: {again.stacks()}")
            os.killpg(again.pid, signal.SIGKILL)
            status = again.wait()
        seconds += again.seconds
        if status == 0:
            break
    else:
        faults.append(f"the repeated command ends with {status}: {[line for _, line in again.lines[-2:]]}")
    if not faults:
        found, whole = results(folder / "runs", folder / "cache"), expected.results
        faults += [f"{name} differs" for name in sorted({*found, *whole}) if found.get(name) != whole.get(name)]
    return Trial(stage, sent, number.name, "; ".join(faults), seconds, starter is not None)


def strike(command: Command, victim: str, number: signal.Signals) -> str:
    """Send the signal; returns to whom: a victim that does not live at this moment is replaced by the parent."""
    if not command.lives():
        return "none"
    chosen = [process for process, kind in command.processes().items() if kind == victim]
    with contextlib.suppress(ProcessLookupError):
        if victim == "group":
            os.killpg(command.pid, number)
        elif chosen:
            os.kill(chosen[0], number)
        else:
            victim = "parent"
            os.kill(command.pid, number)
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


def campaign(count: int, seed: int, only: str = "", done: int = 0, cold: int = COLD) -> Iterator[Trial]:
    """`count` trials, drawn by `seed`; stages and faults take turns, so that each pair of them is tried as often as others.
    done: trials that need not be made again. cold: of so many commands one is started as users do."""
    plan = [(stage, fault) for fault in FAULTS for stage in STAGES if only in ("", fault[0])]
    plan += [(SHARED, fault) for fault in SHARED_FAULTS if only in ("", fault[0])]
    random.Random(seed).shuffle(plan)
    with tempfile.TemporaryDirectory() as temporary, contextlib.closing(Starter()) as starter:
        base = Path(temporary)
        setting = make_world(base / "world", epochs=2)
        expected: dict[tuple[bool, bool], Undisturbed] = {}
        for i in range(done, count):
            stage, fault = plan[i % len(plan)]
            how = None if i % cold == cold - 1 else starter
            key = (stage == SHARED, how is not None)
            if key not in expected:
                expected[key] = undisturbed(base / f"undisturbed-{len(expected)}", setting, how, shared=key[0])
            folder = base / f"trial-{i}"
            yield trial(folder, setting, expected[key], how, stage, fault, random.Random(f"{seed} {i}").random())
            shutil.rmtree(folder)


def table(trials: list[Trial]) -> str:
    """Fault × stage × tried × survived × lost × seconds until the repeated command was done, in Markdown."""
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for one in trials:
        groups[f"{one.victim}, {one.signal}", one.stage].append(one)
    order = [*STAGES, SHARED]
    rows = sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1])))
    lines = ["| fault | stage | tried | survived | lost | seconds to recover, median |", "|---|---|---|---|---|---|"]
    for (fault, stage), of_one in [*rows, (("all", ""), trials)]:
        lost = sum(bool(t.lost) for t in of_one)
        seconds = statistics.median(t.seconds for t in of_one)
        lines.append(f"| {fault} | {stage} | {len(of_one)} | {len(of_one) - lost} | {lost} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Exits with status 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", choices=sorted({victim for victim, _ in FAULTS + SHARED_FAULTS}))
    parser.add_argument(
        "--out", type=Path, help="a file of JSON lines, a trial each; what stands in it is not done again"
    )
    given = parser.parse_args()
    trials = []
    if given.out and given.out.is_file():
        trials = [Trial(**json.loads(line)) for line in given.out.read_text().splitlines()][: given.count]
    for one in campaign(given.count, given.seed, given.only, done=len(trials)):
        trials.append(one)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(asdict(one)) + "\n")
        print(f"{len(trials)}: {one.stage}, {one.victim}, {one.signal}: {one.lost or 'survived'}", flush=True)
    print(table(trials))
    sys.exit(any(one.lost for one in trials))


if __name__ == "__main__":
    main()
