"""Compares every stored file with the digest that was written beside it: run folders, token pairs, reference sums."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pobench.errors import CorruptError, or_fault
from pobench.files import corrupt_files
from pobench.results.run_folder import RunFolder, run_names
from pobench.sources import cache_folder
from pobench.training.density_ratio import DensityRatios
from pobench.training.reference import ReferenceSums, about_reference

MARKERS = ("trained.json", "node.json", "data.json")  # each holds {"files": path below its folder → sha256}


class Verified(NamedTuple):
    """folders: how many results were read. files: how many files were hashed. faults: one line each. unsigned: run
    folders of protocol 1, which hold no digests."""

    folders: int
    files: int
    faults: list[str]
    unsigned: list[str]


def verify(runs: Path, advance: Callable[[str], None] = lambda folder: None) -> Verified:
    """Hash everything below `runs`, and the reference sums, density ratios and start models in the cache folder. Nothing is
    remembered, and nothing is changed.

    advance: called with the name of each folder before it is read.
    """
    folders, files, faults = 0, 0, []
    for root in (runs, cache_folder() / "sft"):
        for marker in sorted(p for name in MARKERS for p in root.rglob(name) if p.parent.suffix != ".damaged"):
            advance(str(marker.parent))
            try:
                listed: Mapping[str, Any] = json.loads(marker.read_text(encoding="utf-8"))["files"]
            except (ValueError, KeyError, TypeError, OSError) as error:
                faults.append(str(CorruptError(marker, f"it cannot be read ({type(error).__name__})")))
                continue
            folders, files = folders + 1, files + len(listed)
            faults += map(str, corrupt_files(marker.parent, listed))
    for marker in sorted((cache_folder() / "reference").glob("*/reference.json")):
        advance(str(marker.parent))
        try:
            if about_reference(marker.parent) is not None:
                ReferenceSums.load(marker.parent)
                folders, files = folders + 1, files + 1
        except CorruptError as error:
            faults.append(str(error))
    for marker in sorted((cache_folder() / "density_ratio").glob("*/density_ratio.json")):
        advance(str(marker.parent))
        try:
            DensityRatios.load(marker.parent)
            folders, files = folders + 1, files + 1
        except CorruptError as error:
            faults.append(str(error))
    for run in run_names(runs):
        faults += _unread(RunFolder(runs, run))
    unsigned = sorted(str(p.parent) for p in runs.rglob("finished.json") if not (p.parent / "shown.json").is_file())
    return Verified(folders, files, faults, unsigned)


def _unread(folder: RunFolder) -> list[str]:
    """One line for each small file of a run that has no digest and cannot be read."""
    faults: list[str] = []
    or_fault(faults, lambda: folder.config)
    for name in ("environment.json", "shown.json", "scores.json", "failed.json"):
        if folder.has(name):
            or_fault(faults, partial(folder.read_json, name))
    return faults
