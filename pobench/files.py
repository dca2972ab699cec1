"""Files appear whole: written under a temporary name beside the target, then renamed. In JSON, nan is null."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write a file or folder to; it becomes `path` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    _remove(partial)
    try:
        yield partial
        if partial.is_dir():
            _remove(path)
        os.replace(partial, path)
    finally:
        _remove(partial)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8; lone surrogates are kept as `?`) to `path`, whole or not at all."""
    with whole(path) as partial:
        partial.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as JSON that people can read, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def nan_as_null(value: Any) -> Any:
    """`value` with None for every nan, which JSON does not have; within mappings and lists too."""
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
