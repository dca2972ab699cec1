"""Takes the disk away from `pobench run` and `pobench analyze`, gives it back, and compares what the repeated command makes.

    python -m tests.faults.disks               some minutes of one core; needs the right to mount (root)
    python -m tests.faults.disks --only full   trials whose name holds a word

Folders of runs and of the cache lie on file systems in memory (tmpfs) of their own. They are full up to some kilobytes,
read-only, or vanish while a model trains. The command must end in a message, without a traceback, and with status 0 only if all
is done. With room, the repeated command must end with the weights and frames of an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.forked import FIGURES, Ended, pobench
from tests.faults.world import make_world, results

LIMIT = 600.0  # seconds after which a command hangs
ROOM = 64  # megabytes of a file system
LEFT = (8, 40, 80, 120, 200, 300)  # kilobytes
FULL = "is full"


class Trial(NamedTuple):
    """name: what was done. ended: the disturbed command. again: the repeated one. lost: what is not as it should be, or ""."""

    name: str
    ended: Ended
    again: Ended
    lost: str


def may_mount() -> bool:
    """Whether this process can mount file systems."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


class Disks:
    """Two file systems in memory: `runs` and `cache` below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.cache = folder, folder / "runs", folder / "cache"

    def __enter__(self) -> Disks:
        for place in (self.runs, self.cache):
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}m", "tmpfs", str(place)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        for place in (self.runs, self.cache):
            subprocess.run(["umount", "-l", str(place)], check=True)

    def fill(self, place: Path, left: int) -> Path:
        """Write a file that leaves so many kilobytes."""
        file = place / "filler"
        with contextlib.suppress(OSError), file.open("wb") as stream:
            stream.write(bytes(shutil.disk_usage(place).free - left * 1024))
        return file

    def read_only(self, place: Path, only: bool) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if only else 'rw'}", str(place)], check=True)

    def command(self, *arguments: str, while_it_runs: Callable[[], bool] = lambda: True) -> Ended:
        return pobench(arguments, {"POBENCH_CACHE": str(self.cache)}, while_it_runs=while_it_runs, limit=LIMIT)


def campaign(only: str = "") -> Iterator[Trial]:
    """Every trial whose name holds a word."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        setting = make_world(base / "world", epochs=1)
        with Disks(base / "disks") as disks:
            ended = disks.command(*run_in(disks, setting))
            if ended.status:
                raise RuntimeError(f"the undisturbed command ended with {ended.status}: {ended.words[-500:]}")
            expected = results(disks.runs, disks.cache)
        for name, do in trials(setting).items():
            if only in name:
                with Disks(base / "disks") as disks:  # at the same paths
                    yield trial(name, disks, do, setting, expected)


def run_in(disks: Disks, setting: Path) -> list[str]:
    return ["run", "--losses", "dpo", "--setting", str(setting), "--runs", str(disks.runs)]


Do = Callable[[Disks], tuple[Ended, str]]  # disturbs a command; how it ended, and a fault


def trials(setting: Path) -> dict[str, Do]:
    found: dict[str, Do] = {}
    for place in ("runs", "cache"):
        for left in LEFT:
            found[f"{place}: full, {left} kB left"] = lambda disks, place=place, left=left: full(
                disks, setting, place, left
            )  # type: ignore[misc]
        found[f"{place}: read-only"] = lambda disks, place=place: read_only(disks, setting, place)  # type: ignore[misc]
        found[f"{place}: vanishes while training"] = lambda disks, place=place: vanishes(disks, setting, place)  # type: ignore[misc]
    found["runs: full, a report"] = lambda disks: report_on(disks, setting, full_up)
    found["runs: read-only, a report"] = lambda disks: report_on(disks, setting, lambda d: d.read_only(d.runs, True))
    found["runs: read-only, a report elsewhere"] = lambda disks: report_elsewhere(disks, setting)
    return found


def full(disks: Disks, setting: Path, place: str, left: int) -> tuple[Ended, str]:
    filler = disks.fill(getattr(disks, place), left)
    ended = disks.command(*run_in(disks, setting))
    filler.unlink()
    return ended, ""


def full_up(disks: Disks) -> None:
    disks.fill(disks.runs, 0)


def read_only(disks: Disks, setting: Path, place: str) -> tuple[Ended, str]:
    disks.read_only(getattr(disks, place), True)
    ended = disks.command(*run_in(disks, setting))
    disks.read_only(getattr(disks, place), False)
    return ended, "" if ended.status or place == "cache" else "status 0"


def vanishes(disks: Disks, setting: Path, place: str) -> tuple[Ended, str]:
    """All that lies in the folder is removed as soon as a step is logged."""

    def once() -> bool:
        if not any(disks.runs.glob("*/dpo-*/steps.jsonl")):
            return False
        for path in getattr(disks, place).iterdir():
            shutil.rmtree(path, ignore_errors=True)
        return True

    return disks.command(*run_in(disks, setting), while_it_runs=once), ""


def report_on(disks: Disks, setting: Path, disturb: Callable[[Disks], None]) -> tuple[Ended, str]:
    disks.command(*run_in(disks, setting))
    shutil.rmtree(disks.runs / "report")
    disturb(disks)
    ended = disks.command("analyze", "--runs", str(disks.runs), "--figures", FIGURES)
    disks.read_only(disks.runs, False)
    (disks.runs / "filler").unlink(missing_ok=True)
    return ended, "" if ended.status else "status 0"


def report_elsewhere(disks: Disks, setting: Path) -> tuple[Ended, str]:
    """Of runs that may only be read: all is done."""
    disks.command(*run_in(disks, setting))
    disks.read_only(disks.runs, True)
    ended = disks.command(
        "analyze", "--runs", str(disks.runs), "--figures", FIGURES, "--out", str(disks.folder / "out")
    )
    disks.read_only(disks.runs, False)
    shutil.rmtree(disks.folder / "out", ignore_errors=True)
    return ended, f"status {ended.status}" if ended.status else ""


def trial(name: str, disks: Disks, do: Do, setting: Path, expected: dict[str, str]) -> Trial:
    ended, fault = do(disks)
    faults = [fault] if fault else []
    if ended.status not in (0, 1, 2):
        faults.append(f"status {ended.status}")
    if "Traceback (most recent call last)" in ended.words:
        faults.append("a traceback")
    again = disks.command(*run_in(disks, setting))
    if again.status:
        faults.append(f"the repeated command ended with {again.status}: {again.words[-300:]}")
        return Trial(name, ended, again, "; ".join(faults))
    found = results(disks.runs, disks.cache)
    unread = {key for key in expected if key.startswith("reference/")} - set(found)  # sums of what is trained already
    if differing := [key for key in sorted({*found, *expected} - unread) if found.get(key) != expected.get(key)]:
        faults.append(f"differs: {', '.join(differing)}")
    return Trial(name, ended, again, "; ".join(faults))


def table(done: list[Trial]) -> str:
    """What was done × times × survived × lost × seconds of the repeated command, in Markdown; alike trials in one row."""
    rows: dict[str, list[Trial]] = {}
    for one in done:
        rows.setdefault(
            f"{one.name.partition(FULL)[0].partition(', ')[0]}{', a report' if 'report' in one.name else ''}", []
        ).append(one)
    lines = ["| what | times | survived | lost | to recover, s |", "|---|---|---|---|---|"]
    for name, own in rows.items():
        lost = sum(bool(one.lost) for one in own)
        seconds = sum(one.again.seconds for one in own) / len(own)
        lines.append(f"| {name} | {len(own)} | {len(own) - lost} | {lost} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Exits with status 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    if not may_mount():
        parser.error("mounting a file system is not allowed here")
    done = []
    for one in campaign(given.only):
        done.append(one)
        print(f"{one.name}: status {one.ended.status}: {one.ended.message}", file=sys.stderr, flush=True)
        if one.lost:
            print(f"LOST {one.name}: {one.lost}\n{one.ended.words[-1500:]}", file=sys.stderr, flush=True)
    print(table(done))
    print(f"{len(done)} trials, {sum(bool(one.lost) for one in done)} lost")
    sys.exit(any(one.lost for one in done))


if __name__ == "__main__":
    main()
