"""Compares every stored file with the digest that was written beside it: run folders, token pairs, samples, benchmarks, looks,
checkpoints, shards, searches, a report's frames; in the cache folder reference sums, density ratios, start models and judges'
replies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pobench import shards
from pobench.errors import CorruptError, or_fault
from pobench.files import corrupt_files, listed_files, read_marker
from pobench.results.earlier_looks import FOLDER as LOOKS
from pobench.results.earlier_looks import stored_looks
from pobench.results.frame_files import FramesFolder
from pobench.results.load import digest_fault
from pobench.results.run_folder import NODE_NAME, RunFolder, run_names
from pobench.runs.sampling import line_faults
from pobench.sources import cache_folder
from pobench.training import checkpoint
from pobench.training.density_ratio import DensityRatios
from pobench.training.reference import ReferenceSums

MARKERS = (
    "trained.json",
    "node.json",
    "data.json",
    "read.json",
    "manifest.json",
    FramesFolder.marker,
)  # each holds {"files": path below its folder → sha256}
CAUSES = re.compile("[0-9a-f]{12}")  # a benchmark's folder
PAID = ("replies/*/*.json", "mt_bench/reference_answer/*.json")  # below the cache folder: what judges wrote


class Verified(NamedTuple):
    """folders: how many results were read. files: how many files were hashed. faults: one line each. unsigned: run
    folders of protocol 1, which hold no digests."""

    folders: int
    files: int
    faults: list[str]
    unsigned: list[str]


def verify(runs: Path, advance: Callable[[str], None] = lambda folder: None) -> Verified:
    """Hash everything below `runs`, and the reference sums, density ratios, start models and what judges wrote in the cache
    folder. Nothing is remembered, and nothing is changed.

    advance: called with the name of each folder before it is read.
    """
    folders, files, faults = 0, 0, []
    for root in (runs, cache_folder() / "sft"):
        for marker in sorted(p for name in MARKERS for p in root.rglob(name) if p.parent.suffix != ".damaged"):
            advance(str(marker.parent))
            try:
                listed = listed_files(marker)
            except CorruptError as error:
                faults.append(str(error))
                continue
            if not (marker.parent / "model").is_dir():  # a search keeps no weights of its trials
                listed = {name: digest for name, digest in listed.items() if not name.startswith("model/")}
            folders, files = folders + 1, files + len(listed)
            faults += map(str, corrupt_files(marker.parent, listed))
        faults += _unfinished(root)
    for folder, load in _of_cache():
        advance(str(folder))
        try:
            load(folder)
            folders, files = folders + 1, files + 1
        except CorruptError as error:
            faults.append(str(error))
    parts = sorted((cache_folder() / "reference").glob("*/part-*.safetensors"))
    for part in parts:  # the name holds the digest
        found = corrupt_files(part.parent, {part.name: part.stem.removeprefix("part-")})
        faults += _of_what_stands(part, map(str, found))
    paid = [path for kind in PAID for path in sorted(cache_folder().glob(kind))]
    files += len(paid)
    for path in paid:
        faults += _of_what_stands(path, _faults(read_marker, path))
    faults += _samples(runs)
    faults += _beside(runs)
    for folder in sorted(runs.glob(f"*/{LOOKS}")):
        or_fault(faults, partial(stored_looks, runs, folder.parent.name))
    for path in sorted(runs.rglob("pair-*/shown.json")):  # a pair of losses has no configuration
        or_fault(faults, partial(read_marker, path))
    for run in run_names(runs):
        faults += _unread(RunFolder(runs, run))
    faults += _gone(runs)
    unsigned = sorted(str(p.parent) for p in runs.rglob("finished.json") if not (p.parent / "shown.json").is_file())
    return Verified(folders, files, faults, unsigned)


def _of_cache() -> Iterator[tuple[Path, Callable[[Path], object]]]:
    """The finished folders of reference sums and of density ratios, each with what reads it."""
    for name, load in (("reference", ReferenceSums.load), ("density_ratio", DensityRatios.load)):
        for marker in sorted((cache_folder() / name).glob(f"*/{name}.json")):
            if marker.parent.suffix != ".damaged":
                yield marker.parent, load


def _unfinished(root: Path) -> list[str]:
    """One line for each damaged file from which an interrupted command goes on: of checkpoints and of shards."""
    faults: list[str] = []
    for path in sorted(root.rglob("checkpoint-*")):
        if root.name != "sft" and not (path.parent / "config.yaml").is_file():  # another program's
            continue
        found: list[str] = []
        state = or_fault(found, partial(checkpoint.about, path))
        found += map(str, corrupt_files(path, {} if state is None else state["files"]))
        faults += _of_what_stands(path, found)
    of_shards = sorted(root.rglob(".*.shards/*.json"))
    for path in [path for path in of_shards if path.name != shards.ABOUT]:
        faults += _of_what_stands(path, _faults(read_marker, path))
    for folder in dict.fromkeys(path.parent for path in of_shards):
        faults += _of_what_stands(folder, _faults(shards.origin, folder))
    return faults


def _faults(read: Callable[[Path], object], path: Path) -> list[str]:
    """Why `read(path)` fails, in one line; none if it does not."""
    faults: list[str] = []
    or_fault(faults, partial(read, path))
    return faults


def _of_what_stands(path: Path, faults: Iterable[str]) -> list[str]:
    """The faults of a file or folder; none where a command at work has removed it."""
    return [*faults] if path.exists() else []


def _samples(runs: Path) -> list[str]:
    """One line for each file of samples that holds other lines than were written, or is gone from beside its pairs."""
    faults = [str(fault) for file in sorted(runs.glob("*/onpolicy-*/*.samples*.jsonl")) for fault in line_faults(file)]
    pairs = sorted(runs.glob("*/onpolicy-*/pairs-*/pairs.jsonl"))
    expected = dict.fromkeys(path.parent.with_name("pairs.samples.jsonl") for path in pairs)
    return faults + [str(CorruptError(path, "the file is gone")) for path in expected if not path.is_file()]


def _beside(runs: Path) -> list[str]:
    """One line for each file of a search that is not what the digest beside it tells."""
    digests = sorted([*runs.glob("*.csv.sha256"), *runs.glob("*/tuning/*.sha256")])
    faults: list[str] = []
    for path in (digest.with_suffix("") for digest in digests):
        fault = digest_fault(path) if path.is_file() else "the file is gone"
        faults += [str(CorruptError(path, fault))] if fault else []
    return faults


def _gone(runs: Path) -> list[str]:
    """One line for each run without its configuration, and each result without its marker: these come first, or with all."""
    shown = [path for path in sorted(runs.rglob("shown.json")) if not path.parent.name.startswith("pair-")]
    gone = [config for path in shown if not (config := path.with_name("config.yaml")).is_file()]
    results = (path for path in sorted(runs.rglob("*.parquet")) if NODE_NAME.fullmatch(path.parent.name))
    gone += dict.fromkeys(marker for path in results if not (marker := path.with_name("node.json")).is_file())
    of_benchmarks = (path for path in sorted(runs.rglob("benchmarks/**/*.json*")) if CAUSES.fullmatch(path.parent.name))
    gone += dict.fromkeys(marker for path in of_benchmarks if not (marker := path.with_name("manifest.json")).is_file())
    return [str(CorruptError(path, "the file is gone")) for path in gone]


def _unread(folder: RunFolder) -> list[str]:
    """One line for each file of a run that no marker lists and that is not what was written."""
    faults: list[str] = []
    or_fault(faults, lambda: folder.config)
    or_fault(faults, lambda: folder.shown)
    steps = folder.path / "steps.jsonl"
    if steps.is_file() and not folder.has("trained.json"):  # else its marker has their digest
        whole, read = steps.read_bytes().count(b"\n"), len(folder.logged())
        faults += [str(CorruptError(steps, f"line {read + 1} is not what was written"))] if read < whole else []
    return [*faults, *map(str, folder.unread)]
