"""Write files atomically, and check their digests.

A file is written under a temporary name beside its target, synced to disk, then renamed, and the folder is synced too, so
neither readers nor a machine that loses its power see a part of it. In JSON, nan is written as null.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from pobench.errors import CorruptError

NAME = re.compile(r"\w[\w.+-]{0,63}")  # of a setting, study, loss, judge, …: folders and files are called by it
OTHER_BYTES = "its bytes are not those that were written"
SEAL = "seal"  # the key of a stored mapping that holds a digest of all others


def name_fault(name: object, reserved: Iterable[str] = ()) -> str:
    """Why `name` cannot be the name of a setting, a loss or anything else that names a file; "" if it can."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        shown = repr(name) if len(repr(name)) < 80 else f"{repr(name)[:76]}…"
        return f"{shown} cannot be a name; allowed: at most 64 letters, digits and . _ + -, a letter, digit or _ first"
    return f"{name!r} is a name that pobench uses itself; choose another" if name in reserved else ""


@contextmanager
def whole(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path for a file or folder. It becomes `path` if the block succeeds, and is removed otherwise.

    sync: False does not wait for the disk: for what may be lost in a crash, and is made anew then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(
        f".{path.name}.{uuid.uuid4().hex[:12]}.partial"
    )  # unique, even in a folder that machines share
    try:
        yield partial
        for inner in ([*partial.rglob("*"), partial] if partial.is_dir() else [partial]) if sync else ():
            if inner.is_dir():
                sync_folder(inner)
            elif inner.is_file():
                sync_file(inner)
        if partial.is_dir():
            _remove(path)
        os.replace(partial, path)
        if sync:
            sync_folder(path.parent)
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
        try:
            fault = "" if digest(path) == expected else OTHER_BYTES
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):  # a command at work may remove it now
            fault = "the file is gone"
        if fault:
            faults.append(CorruptError(path, fault))
    return faults


def refuse_corrupt(folder: Path, files: Mapping[str, str], digest: Callable[[Path], str] = sha256_of) -> None:
    """Raises the first CorruptError of `corrupt_files`."""
    for fault in corrupt_files(folder, files, digest):
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


def marker_with(path: Path, keys: Mapping[str, type], fault: str) -> dict[str, Any] | None:
    """The marker of a finished folder, which has at least these keys with values of these types; None where there is none.
    Raises CorruptError, in the words of `fault`, for one that is not what was written, or lacks a key."""
    if not path.is_file():
        return None
    try:
        about = read_marker(path)
    except CorruptError:
        about = {}
    if not all(isinstance(about.get(key), kind) for key, kind in keys.items()):
        raise CorruptError(path, fault)
    return about


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping as JSON holds it (lone surrogates become `?`), with a digest of its content, by which `unsealed` finds a
    changed byte."""
    stored: dict[str, Any] = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", errors="replace"))
    return {**stored, SEAL: _seal(stored)}


def unsealed(stored: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A mapping that was read from `path`, without its seal; earlier versions wrote none. Raises CorruptError where its content
    is not what was sealed."""
    value = {key: inner for key, inner in stored.items() if key != SEAL}
    if SEAL in stored and stored[SEAL] != _seal(value):
        raise CorruptError(path, OTHER_BYTES)
    return value


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_marker(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file that marks a finished result. Raises CorruptError where it is not what was written."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CorruptError(path, f"it cannot be read ({type(error).__name__})") from error
    if not isinstance(stored, dict):
        raise CorruptError(path, "it holds no mapping")
    if not isinstance(stored.get("files", {}), dict):
        raise CorruptError(path, "it lists no files")
    return unsealed(stored, path)


def listed_files(marker: Path) -> dict[str, str]:
    """File → sha256, as a marker lists them. Raises CorruptError where it is not what was written, or lists none."""
    files = read_marker(marker).get("files")
    if files is None:
        raise CorruptError(marker, "it lists no files")
    return dict(files)


class MarkedFolder:
    """A folder that appears whole. Its `marker` is a JSON file that holds the sha256 of every other file under `files`."""

    marker: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def finished(self) -> bool:
        """Whether the marker is there."""
        return (self.path / self.marker).is_file()

    @property
    def about(self) -> dict[str, Any]:
        """The content of the marker. Raises CorruptError where it cannot be read."""
        return read_marker(self.path / self.marker)

    def faults(self) -> list[CorruptError]:
        """One error per file whose bytes are not those that were written."""
        try:
            return corrupt_files(self.path, listed_files(self.path / self.marker))
        except CorruptError as error:
            return [error]


def sync_file(file: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in the folder are on the disk, where the file system can say so."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


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
