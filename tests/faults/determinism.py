"""Runs one command several times under other circumstances, and compares all that it stores and shows, byte by byte.

    python -m tests.faults.determinism                    the smallest world: some minutes of one core
    python -m tests.faults.determinism --setting tiny     a shipped setting
    python -m tests.faults.determinism --only threads,AVX2     some variants

The first run is compared with each of the others: in other folders, under another hash seed, locale, time zone and width of the
terminal; interrupted while it trains, and repeated; two jobs at one time; with another number of threads; and with fewer
instructions than this processor has, which stands for other kinds of processor. Compared are the trained weights, every frame
but its measured columns, the names of reference sums, and, once the measured values are copied over, every stored file that
holds no path, and every file of the report, of its frames and of the site that `pobench share` writes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from pobench.columns import FRAMES
from pobench.files import SEAL, sealed, write_json
from pobench.results.load import load_frames
from tests.faults.world import make_world, results

MEASURED = {column.name for frame in FRAMES.values() for column in frame.columns if column.measured}
OF_A_PLACE = ("config.yaml", "failed.json")  # hold a path, or what an interruption left
SHOWN = ("pass_rate", "win_rate", "pass_rate_gain")
USUAL = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"}
ELSEWHERE = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu", "LC_ALL": "POSIX", "COLUMNS": "50", "HOME": "/"}


class Variant(NamedTuple):
    """Another way to run the command. variables: of the environment. arguments: further ones. same: whether every byte has to
    be the same; where not, the report says how much moved."""

    name: str
    variables: Mapping[str, str] = MappingProxyType({})
    arguments: tuple[str, ...] = ()
    interrupted: bool = False
    same: bool = True


def _processor(name: str, capability: str, onednn: str, mkl: str) -> Variant:
    variables = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": onednn, "MKL_ENABLE_INSTRUCTIONS": mkl}
    return Variant(f"processor: {name}", variables, same=False)


VARIANTS = (
    Variant("elsewhere", ELSEWHERE),
    Variant("interrupted", interrupted=True),
    Variant("two jobs at one time", arguments=("--parallel", "2")),
    Variant("two threads", {"OMP_NUM_THREADS": "2"}, same=False),
    Variant("two threads, MKL_CBWR", {"OMP_NUM_THREADS": "2", "MKL_CBWR": "AVX2,STRICT"}, same=False),
    _processor("AVX-512 without bf16 and AMX", "avx512", "AVX512_CORE_VNNI", "AVX512"),
    _processor("AVX2", "avx2", "AVX2", "AVX2"),
    _processor("SSE4.1", "default", "SSE41", "SSE4_2"),
)


class Seen(NamedTuple):
    """What differs from the first run: named results, stored files, files of the report. The last two are None where results
    differ that may. moved: loss and metric → (its value in the first run, here)."""

    variant: Variant
    results: list[str]
    stored: list[str] | None
    report: list[str] | None
    moved: dict[str, tuple[float, float]]

    @property
    def fault(self) -> bool:
        return self.variant.same and bool(self.results or self.stored or self.report)


class Work(NamedTuple):
    """The command. setting: a name; "" for the smallest world, which is made anew in each place."""

    losses: str = "dpo,simpo"
    setting: str = ""
    seeds: str = "1,2"

    def do(self, folder: Path, variant: Variant) -> None:
        """Run it in the folder until it has ended with status 0."""
        setting = self.setting or str(make_world(folder / "world", epochs=20))
        arguments = ["run", "--losses", self.losses, "--setting", setting, "--seeds", self.seeds, "--runs", "runs"]
        process = start([*arguments, *variant.arguments], folder, variant)
        if variant.interrupted:
            while process.poll() is None and not list((folder / "runs").glob("*/*/checkpoint-*")):
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGINT)
            if (status := process.wait()) != 130:
                raise RuntimeError(f"an interrupted command ended with {status}")
            process = start([*arguments, *variant.arguments], folder, variant)
        ended(process, variant)


def start(arguments: list[str], folder: Path, variant: Variant) -> subprocess.Popen[bytes]:
    """`pobench` in a folder, with a cache of its own."""
    variables = {**os.environ, **USUAL, **variant.variables, "POBENCH_CACHE": str(folder / "cache")}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pobench.cli", *arguments], cwd=folder, env=variables, start_new_session=True,
            stdout=log, stderr=log,
        )  # fmt: skip


def ended(process: subprocess.Popen[bytes], variant: Variant) -> None:
    if status := process.wait():
        raise RuntimeError(f"{variant.name}: a command ended with {status}")


def lend_measured(lender: Path, borrower: Path) -> None:
    """Copy the measured values of the runs in one folder to the same runs in another, and no other value."""
    for source in lender.glob("*/*/environment.json"):
        target = borrower / source.parent.relative_to(lender)
        shutil.copy(source, target / source.name)
        if (source.parent / "trained.json").is_file() and (target / "trained.json").is_file():
            rows = [sealed(_measured(*pair)) for pair in zip(*map(_rows, (source.parent, target)), strict=True)]
            (target / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            facts = _measured(*(json.loads((at / "trained.json").read_text()) for at in (source.parent, target)))
            facts["files"]["steps.jsonl"] = hashlib.sha256((target / "steps.jsonl").read_bytes()).hexdigest()
            write_json(target / "trained.json", sealed({key: facts[key] for key in facts if key != SEAL}))


def _measured(theirs: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    return {**own, **{key: theirs[key] for key in own.keys() & theirs.keys() & MEASURED}}


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != SEAL} for row in rows]


def report(folder: Path, variant: Variant) -> None:
    """Draw everything anew from the stored runs."""
    for arguments in (
        ["analyze", "--out", "out", "--format", "all,parquet,answers"],
        ["share", "runs", "--out", "site"],
    ):
        ended(start(arguments, folder, variant), variant)


def files(folder: Path, *parts: str) -> dict[str, bytes]:
    """Name → bytes, of all files below these parts of a folder."""
    found = [path for part in parts for path in sorted((folder / part).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def stored(folder: Path) -> dict[str, bytes]:
    """The files of all runs, but those that hold a path of their own place, and locks."""
    homes = [str(path.parent.relative_to(folder)) for path in (folder / "runs").glob("*/*/config.yaml")]
    return {name: data for name, data in files(folder, *homes).items() if not name.endswith((*OF_A_PLACE, ".lease"))}


def differ(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


def scores(runs: Path) -> dict[str, float]:
    """`loss, seed: metric` → its value."""
    frames = load_frames(runs)
    titles = {
        row.run: row.loss if row.seed < 0 else f"{row.loss}, seed {row.seed}" for row in frames["runs"].itertuples()
    }
    rows = frames["scores"][frames["scores"]["metric"].isin(SHOWN)]
    return {f"{titles[row.run]}: {row.metric}": row.value for row in rows.itertuples()}


def compare(first: Path, other: Path, variant: Variant) -> Seen:
    a, b = (results(at / "runs", at / "cache") for at in (first, other))
    ours, theirs = scores(first / "runs"), scores(other / "runs")
    moved = {name: (ours[name], theirs[name]) for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]}
    if differ(a, b) and not variant.same:
        return Seen(variant, differ(a, b), None, None, moved)
    lend_measured(first / "runs", other / "runs")
    if not (first / "out").is_dir():
        report(first, Variant("first"))
    report(other, variant)
    shown = [files(at, "out", "site") for at in (first, other)]
    return Seen(variant, differ(a, b), differ(stored(first), stored(other)), differ(*shown), moved)


def campaign(work: Work, folder: Path, only: Sequence[str] = ("",)) -> Iterator[Seen]:
    """Each variant beside the first run. only: those whose names hold one of these words."""
    first = folder / "first"
    first.mkdir(parents=True)
    work.do(first, Variant("first"))
    for variant in VARIANTS:
        if any(word in variant.name for word in only):
            other = folder / f"another place, {variant.name}"
            other.mkdir()
            work.do(other, variant)
            yield compare(first, other, variant)


def line(seen: Seen) -> str:
    """A row of a table."""
    cells = [seen.variant.name]
    for names in (seen.results, seen.stored, seen.report):
        cells.append("" if names is None else f"{len(names)} differ" if names else "the same")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Exits with status 1 where something differs that must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="variants whose names hold one of these words, comma-separated")
    parser.add_argument("--setting", default="", help="a shipped one; default: the smallest world")
    parser.add_argument("--losses", default="dpo,simpo")
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--keep", type=Path, help="make all in this new folder, and leave it there")
    given = parser.parse_args()
    fault = False
    print("| run again | results | stored files | report and site |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        work = Work(given.losses, given.setting, given.seeds)
        for seen in campaign(work, given.keep or Path(temporary), given.only.split(",")):
            print(line(seen), flush=True)
            for name in [*seen.results, *(seen.stored or ()), *(seen.report or ())][:12] if seen.fault else ():
                print(f"  {name}")
            for name, (before, after) in sorted(seen.moved.items()):
                print(f"  {name} {before:.4f} → {after:.4f}")
            fault = fault or seen.fault
    sys.exit(fault)


if __name__ == "__main__":
    main()
