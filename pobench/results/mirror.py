"""A folder of runs at an address that fsspec reads (`s3://bucket/runs`, `gs://…`, `file://…`), for who only reads it.

What a report is made of is copied into the cache folder: configurations, frames, steps, scores, looks, trials; no weights, no
checkpoints, no token pairs, no reports. A second command copies what is new or has changed, by what the listing says of each
file (size, time, ETag). The copy is read as any folder of runs is, with the digests that are stored beside its results, so a
file that the address holds half is named and never used. Nothing is written at the address, and no lock is taken there.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pobench.errors import PobenchError
from pobench.files import write_json
from pobench.locks import hold
from pobench.progress import progress
from pobench.sources import cache_folder

ADDRESS = re.compile(
    r"[a-zA-Z][\w+.-]*(::[\w+.-]+)*:/"
)  # also of one that `Path` has read, which makes one slash of two
INDEX = "mirror.json"  # path → a digest of what the listing said of it, when it was copied
CHUNK = 256  # files that are fetched together


def is_address(runs: str | Path) -> bool:
    """Whether this is an address that fsspec reads, and no path."""
    return ADDRESS.match(str(runs)) is not None and not Path(runs).exists()


def local_runs(runs: str | Path) -> Path:
    """The folder of runs; of an address, a copy of what a report is made of, in the cache folder.

    Raises PobenchError with a remedy where the address cannot be read.
    """
    if not is_address(runs):
        return Path(runs)
    address = str(runs)
    copy = cache_folder() / "mirror" / hashlib.sha256(address.rstrip("/").encode()).hexdigest()[:12]
    copy.parent.mkdir(parents=True, exist_ok=True)
    with hold(copy.with_name(f".{copy.name}.lease"), wait=True), _readable(address):
        _update(address, copy)
    return copy


@contextlib.contextmanager
def _readable(address: str) -> Iterator[None]:
    """Whatever a file system raises, as one sentence."""
    try:
        yield
    except PobenchError:
        raise
    except ImportError as error:  # it names the package
        raise PobenchError(f"{address!r} cannot be read: {error}") from error
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise PobenchError(f"{address!r} cannot be read ({type(error).__name__}: {why[:200]})") from error


def _update(address: str, copy: Path) -> None:
    from fsspec.core import url_to_fs

    files, root = url_to_fs(address, use_listings_cache=False)
    listed: dict[str, Mapping[str, Any]] = files.find(root, detail=True)
    found = {str(PurePosixPath(path).relative_to(root)): (path, about) for path, about in listed.items()}
    found = {name: entry for name, entry in found.items() if _is_read(PurePosixPath(name))}
    if not found:
        raise PobenchError(f"no stored runs at {address!r}")
    stored = json.loads((copy / INDEX).read_text(encoding="utf-8")) if (copy / INDEX).is_file() else {}
    index = {name: _fingerprint(about) for name, (_, about) in found.items()}
    known = {name for name, digest in index.items() if stored.get(name) == digest and (copy / name).is_file()}
    for name in stored.keys() - found.keys():
        (copy / name).unlink(missing_ok=True)
    left = [name for name in sorted(found) if name not in known]
    if not left:
        write_json(copy / INDEX, index)
        return
    with progress(f"reading {address}", len(left), "files") as advance:
        for begin in range(0, len(left), CHUNK):
            names = left[begin : begin + CHUNK]
            _fetch(files, {name: found[name] for name in names}, copy)
            known |= set(names)
            write_json(copy / INDEX, {name: index[name] for name in sorted(known)})
            advance(len(names))


def _fetch(files: Any, found: Mapping[str, tuple[str, Mapping[str, Any]]], copy: Path) -> None:
    """Copy files beside their places, all together, then rename each."""
    staged = copy / ".fetched"
    shutil.rmtree(staged, ignore_errors=True)
    targets = {name: staged / name for name in found}
    for target in targets.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    files.get([path for path, _ in found.values()], [str(target) for target in targets.values()])
    for name, target in targets.items():
        if (time := _time(found[name][1])) is not None:
            os.utime(target, (time, time))  # a report takes the newest audit of equal pairs
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        target.replace(copy / name)
    shutil.rmtree(staged, ignore_errors=True)


def _is_read(path: PurePosixPath) -> bool:
    """Whether a report is made of this file, by its path below the runs."""
    parts, name = path.parts, path.name
    if any(p.startswith((".", "checkpoint-")) or p.endswith(".damaged") or p == "model" for p in parts):
        return False
    if parts[0] in ("report", "rehearsal") or (len(parts) > 1 and parts[1] == "tuning"):
        return name == "trials.csv"
    if name.endswith(".parquet"):
        return not path.parent.name.startswith("data-")
    return name.endswith((".json", ".yaml")) or name in ("steps.jsonl", "trials.csv", "vectors.npz")


def _fingerprint(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _time(about: Mapping[str, Any]) -> float | None:
    """When a file was written, as the file system says, in seconds; None where it does not."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = about.get(key)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
