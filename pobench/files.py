"""Write files atomically, and check their digests.

A file is written under a temporary name beside its target, synced to disk, then renamed, so readers never see a part of
it. In JSON, nan is written as null.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pobench.errors import CorruptError

OTHER_BYTES = "its bytes are not those that were written"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder. It becomes `path` if the block succeeds, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(
        f".{path.name}.{uuid.uuid4().hex[:12]}.partial"
    )  # unique, even in a folder that machines share
    try:
        yield partial
        for file in partial.rglob("*") if partial.is_dir() else [partial]:
            if file.is_file():
                _sync(file)
        if partial.is_dir():
            _remove(path)
        os.replace(partial, path)
    finally:
        _remove(partial)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8; lone surrogates become `?`) to `path`, whole or not at all."""
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all, synced to disk before this returns."""
    with whole(path) as partial:
        partial.write_bytes(data)


def sha256_of(file: Path) -> str:
    """sha256 (hex) of a file's bytes, without a cache."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """Path below `folder` → sha256, for every file."""
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def corrupt_files(
    folder: Path, files: Mapping[str, str], digest: Callable[[Path], str] = sha256_of
) -> list[CorruptError]:
    """One for each of `files` (path below the folder → sha256) that is absent or holds other bytes. digest: of a file."""
    faults = []
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            faults.append(CorruptError(path, "the file is gone"))
        elif digest(path) != expected:
            faults.append(CorruptError(path, OTHER_BYTES))
    return faults


def refuse_corrupt(folder: Path, files: Mapping[str, str]) -> None:
    """Raises the first CorruptError of `corrupt_files`."""
    for fault in corrupt_files(folder, files):
        raise fault


def checked_bytes(path: Path, expected: str | None) -> bytes:
    """The file's bytes. Raises CorruptError if their sha256 is not `expected`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CorruptError(path, "the file is gone") from None
    if expected is None or hashlib.sha256(data).hexdigest() != expected:
        raise CorruptError(path, f"{OTHER_BYTES}; repeat the command that made it, and it is made anew")
    return data


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def nan_as_null(value: Any) -> Any:
    """`value` with None for every nan, because JSON has no nan; also inside mappings and lists."""
    if isinstance(value, Mapping):
        return {key: nan_as_null(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [nan_as_null(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
