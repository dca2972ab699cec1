"""What lies in the cache folder, who needs it, and what of it goes when it is to become smaller.

An entry is one file or folder that was fetched or made as a whole: a model, a data set, a start model, a reference pass. It
stays where a stored run names it, where somebody placed it by hand or paid for it, and where it was used within a day.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pobench.errors import PobenchError
from pobench.results.run_folder import RunFolder, run_names
from pobench.sources import cache_folder, weights_digest

DAY = 86_400.0  # seconds
LOCKS = (".lease", ".worker.lease")  # in the folder of what is being made


class Kind(NamedTuple):
    """A folder of the cache. again: how what lies in it comes back. kept: whether `prune` leaves it in any case."""

    meaning: str
    again: str
    kept: bool = False


KINDS = {
    "models": Kind("models as they are read, converted or merged", "fetched"),
    "packages": Kind("data of published packages", "fetched"),
    "data": Kind("data sets of the hub", "fetched"),
    "mirror": Kind("runs read from an address", "fetched"),
    "mt_bench": Kind("reference answers of MT-Bench", "computed"),
    "sft": Kind("start models that settings make", "trained"),
    "reference": Kind("log-probabilities of start models", "computed"),
    "density_ratio": Kind("density ratios of prompts", "computed"),
    "rehearsal": Kind("stand-ins of rehearsals", "computed"),
    "index": Kind("what the small files of runs say", "computed"),
    "digests": Kind("digests of large files", "computed"),
    "downloads": Kind("files placed by hand", "by hand", kept=True),
    "replies": Kind("replies of judges, which were paid for", "paid for", kept=True),
    "jobs": Kind("jobs that several folders of runs share", "", kept=True),
}


class Entry(NamedTuple):
    """kind: its folder in the cache. bytes: its size. used: seconds since 1970 at which one of its files was last read or
    written, as far as the file system says. keeps: why `prune` leaves it; "" where it may go."""

    kind: str
    name: str
    path: Path
    bytes: int
    used: float
    keeps: str


class Pruned(NamedTuple):
    """removed: what goes. left: what stays. Removed already, unless it was only asked what would be."""

    removed: list[Entry]
    left: list[Entry]

    @property
    def freed(self) -> int:
        return sum(entry.bytes for entry in self.removed)


def cached(runs: Sequence[Path] = ()) -> list[Entry]:
    """Everything in the cache folder, the largest of a kind first. runs: folders whose runs' causes keep what they name."""
    named, now = frozenset(_named(runs)), time.time()
    found = []
    for kind in KINDS:
        own = [_entry(kind, path, named, now) for path in sorted((cache_folder() / kind).glob("*"))]
        found += sorted((entry for entry in own if not _is_lock(entry.path)), key=lambda entry: -entry.bytes)
    return found


def prune(
    runs: Sequence[Path], *, older_than: float | None = None, most: float | None = None, dry: bool = False
) -> Pruned:
    """Remove entries that were not used for `older_than` days, then those that were not used for longest until the cache takes
    at most `most` bytes, and the remembered digests of files that are gone. dry: remove nothing.

    Raises PobenchError for a folder of `runs` that is not there: its runs could not keep what they name.
    """
    if gone := [str(folder) for folder in runs if not folder.is_dir()]:
        raise PobenchError(
            f"--runs: no folder {gone[0]!r}; name the folders of all runs that are to keep what they read"
        )
    entries, now = cached(runs), time.time()
    free = sorted((entry for entry in entries if not entry.keeps), key=lambda entry: entry.used)
    going = [
        entry for entry in free if (older_than is not None and now - entry.used > older_than * DAY) or _stale(entry)
    ]
    size = sum(entry.bytes for entry in entries) - sum(entry.bytes for entry in going)
    for entry in free:
        if most is None or size <= most:
            break
        if entry not in going:
            going.append(entry)
            size -= entry.bytes
    for entry in () if dry else going:
        if entry.path.is_dir():
            shutil.rmtree(entry.path)
        else:
            entry.path.unlink(missing_ok=True)
    return Pruned(going, [entry for entry in entries if entry not in going])


# ---------------------------------------------------------------- an entry
def _entry(kind: str, path: Path, named: frozenset[str], now: float) -> Entry:
    stats = {}
    for file in [path] if path.is_file() else path.rglob("*"):
        with contextlib.suppress(OSError):  # gone in between
            if file.is_file():
                stats[file] = file.stat()
    used = max((max(stat.st_mtime, stat.st_atime) for stat in stats.values()), default=path.stat().st_mtime)
    keeps = _keeps(kind, path, named, now - used)
    for file, stat in stats.items():  # a look is no use
        with contextlib.suppress(OSError):
            if file.stat().st_atime_ns != stat.st_atime_ns:
                os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return Entry(kind, path.name, path, sum(stat.st_size for stat in stats.values()), used, keeps)


def _keeps(kind: str, path: Path, named: frozenset[str], age: float) -> str:
    """Why an entry stays."""
    if KINDS[kind].kept:
        return KINDS[kind].again or "shared"
    if kind in ("index", "digests"):
        return ""
    if path.with_name(f".{path.name}.lease").exists() or any((path / lock).exists() for lock in LOCKS):
        return "a command is at work there"
    if names_of(kind, path) & named or any(_reads(kind, path, text) for text in named):
        return "a run names it"
    return "used within a day" if age < DAY else ""


def names_of(kind: str, path: Path) -> set[str]:
    """By which digests the causes of runs name an entry: its own, and that of its weights."""
    names = set(re.findall(r"[0-9a-f]{12}$", path.name))
    with contextlib.suppress(PobenchError, OSError, ValueError, KeyError, TypeError):
        if kind == "models":
            names.add(weights_digest(path))
        elif kind == "sft":
            names.add(weights_digest(path / "model"))
        elif kind == "reference":
            names.add(json.loads((path / "reference.json").read_text(encoding="utf-8"))["causes"]["weights"])
    return names


def _reads(kind: str, path: Path, text: str) -> bool:
    """Whether a value of a run's configuration says that it read the entry: by its path, as a package or as a data set."""
    if kind == "packages":
        return path.name.rpartition("-")[0] in text
    if kind == "data":
        return len(text) > 1 and path.name.startswith(re.sub(r"[^\w.\-]", "_", text))
    return str(path) in text


def _stale(entry: Entry) -> bool:
    """Whether it is the digest of a file that is gone."""
    if entry.kind != "digests":
        return False
    try:
        return not Path(json.loads(entry.path.read_text(encoding="utf-8"))["file"]).exists()
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _is_lock(path: Path) -> bool:
    return path.name.endswith(".lease")


# ---------------------------------------------------------------- what runs name
def _named(folders: Iterable[Path]) -> Iterator[str]:
    """Every text in the configuration and the causes of the runs, and digests of twelve digits that stand at its end."""
    for runs in folders:
        for run in run_names(runs):
            folder = RunFolder(runs, run)
            values: list[Any] = []
            with contextlib.suppress(PobenchError):
                values.append(folder.config)
            for marker in ("trained.json", "*/node.json", "model/adapter_config.json"):
                for path in folder.path.glob(marker):
                    with contextlib.suppress(OSError, ValueError):
                        values.append(json.loads(path.read_text(encoding="utf-8")))
            for text in _texts(values):
                yield text
                yield from re.findall(r"[0-9a-f]{12}$", text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "files":  # digests of the run's own
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
