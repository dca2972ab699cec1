"""Trains tens of thousands of steps through the whole command, and looks whether memory and disk stay as they are.

    python -m tests.faults.long_run                              20,000 steps; a quarter of an hour of one core
    python -m tests.faults.long_run --precision bf16 --out FILE

The model has two layers, so that what grows is not hidden behind weights. Every batch has other lengths than the last, a
checkpoint is saved every few seconds, and held-out pairs are scored every 500 steps. From outside, at every 500th logged step:
the memory that the process at work holds, its open files, and what its folder takes on disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pobench.locks import holder_of
from pobench.runs.worker import LOCK
from tests.faults.world import make_world

EVERY = 500  # steps from one sample to the next
SETTLED = 1_000  # the step from which memory must stay
ALLOWED = 0.02  # share by which it may grow from there on
PAIRS, BATCH, HELD_OUT = 400, 4, 0.3


class Sample(NamedTuple):
    """What the process at work held behind a step. memory: the most since the last sample, in bytes: a checkpoint returns freed
    memory to the system, so a single look would depend on how long ago that was. files: that it has open. disk: bytes.
    checkpoints: in its folder."""

    step: int
    memory: int
    files: int
    disk: int
    checkpoints: int


def rows() -> list[dict[str, str]]:
    """Preferences whose answers have one to forty words."""
    draw = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{draw.randrange(50)}" for _ in range(draw.randint(low, high)))

    return [
        {"id": str(i), "prompt": f"say {words(1, 6)}", "chosen": words(1, 40), "rejected": f"w1 {words(1, 40)}"}
        for i in range(PAIRS)
    ]


def command(folder: Path, steps: int, precision: str, loss: str) -> subprocess.Popen[bytes]:
    """`pobench run` of a training of at least so many steps."""
    an_epoch = PAIRS * (1 - HELD_OUT) // BATCH
    train = {"epochs": -int(-steps // an_epoch), "precision": precision, "checkpoint_seconds": 5, "evaluate_every": EVERY,
             "lr": 1e-5}  # fmt: skip
    setting = make_world(folder / "world", rows=rows(), train=train)
    variables = {**os.environ, "POBENCH_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = [
        "run",
        "--losses",
        loss,
        "--setting",
        str(setting),
        "--runs",
        str(folder / "runs"),
        "--stages",
        "train",
    ]
    return subprocess.Popen([sys.executable, "-m", "pobench.cli", *arguments], env=variables)


def samples(process: subprocess.Popen[bytes], runs: Path) -> Iterator[Sample]:
    """One behind about every `EVERY`th step, until the command ends."""
    seen, due, read, most = 0, EVERY, 0, 0
    while process.poll() is None:
        time.sleep(0.05)
        for log in runs.glob("small/*/steps.jsonl"):
            with log.open("rb") as file:
                file.seek(read)
                new = file.read()
            read += len(new)
            seen += new.count(b"\n")
            with contextlib.suppress(OSError, IndexError):  # the process has ended
                worker = _worker(log.parent)
                most = max(most, int((worker / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
                if seen >= due:
                    files = len(list((worker / "fd").iterdir()))
                    disk = sum(path.stat().st_size for path in log.parent.rglob("*") if path.is_file())
                    yield Sample(seen, most, files, disk, len(list(log.parent.glob("checkpoint-*"))))
                    due, most = seen + EVERY, 0


def _worker(folder: Path) -> Path:
    """The process that holds a run's folder, below /proc."""
    return Path("/proc") / (holder_of(folder / LOCK) or "").split()[1]


def grown(taken: list[Sample], what: str) -> float:
    """The largest value behind `SETTLED`, by how much it exceeds the first one there, as a share of that."""
    values = [getattr(one, what) for one in taken if one.step >= SETTLED]
    return max(values) / values[0] - 1


def summary(taken: list[Sample], status: int) -> dict[str, Any]:
    last = taken[-1]
    return {
        "status": status,
        "steps": last.step,
        "memory": {"first": next(one.memory for one in taken if one.step >= SETTLED), "last": last.memory,
                   "grown": grown(taken, "memory")},
        "files": {"most": max(one.files for one in taken), "grown": grown(taken, "files")},
        "checkpoints": max(one.checkpoints for one in taken),
        "disk": last.disk,
        "samples": [one._asdict() for one in taken],
    }  # fmt: skip


def main() -> None:
    """Exits with status 1 where memory grew by more than `ALLOWED`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--loss", default="dpo")
    parser.add_argument("--out", type=Path, help="also write the samples there, as JSON")
    given = parser.parse_args()
    taken = []
    with tempfile.TemporaryDirectory() as temporary:
        process = command(Path(temporary), given.steps, given.precision, given.loss)
        for one in samples(process, Path(temporary) / "runs"):
            taken.append(one)
            print(*(f"{name} {value:,}" for name, value in one._asdict().items()), sep="  ", flush=True)
        made = summary(taken, process.wait())
    if given.out:
        given.out.write_text(json.dumps(made, indent=1) + "\n")
    of_memory = made["memory"]
    print(
        f"{made['steps']:,} steps: {of_memory['first'] / 1e6:.0f} MB at step {SETTLED:,}, {of_memory['last'] / 1e6:.0f} at the "
        f"last, at most {of_memory['grown']:+.1%}; at most {made['checkpoints']} checkpoints"
    )
    sys.exit(made["status"] != 0 or of_memory["grown"] > ALLOWED)


if __name__ == "__main__":
    main()
