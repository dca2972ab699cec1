"""The local files that hold the rows of a data set: one file, a pattern, a folder of shards, a folder of `save_to_disk`.

    mine.jsonl | shards/*.parquet | FOLDER as the hub lays data sets out, with splits and configurations | saved FOLDER

The files of a data set are read in a fixed order, and which files were read stands in its name.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pobench.errors import PobenchError, nearest

ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".csv", ".tsv")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")  # hold no rows
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)+")


class RowFiles(NamedTuple):
    """The files of a data set. name: for messages. paths: in the order in which they are read."""

    name: str
    paths: tuple[Path, ...]

    def label(self, path: Path) -> str:
        """What a message calls one of the files: its path below the folder that all of them share."""
        return Path(os.path.relpath(path, os.path.commonpath([p.parent for p in self.paths]))).as_posix()


def kind_of(path: Path) -> str:
    """The ending that says how a file is read, in lower case; `.gz` is looked behind."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def local_rows(
    source: str, split: str | None = None, subset: str | None = None, section: str = "data"
) -> RowFiles | None:
    """The files of a local source; None if nothing here has this name.

    split, subset: of a folder; the default split is `train`. A single file, or a pattern, is read whole, whatever the split
    is called. section: of the settings, for messages; "" where it has no `subset` and `split`. Raises PobenchError for a part
    of a split (`train[:10]`), a pattern that no file matches, and a folder whose files are not clearly those of one data set.
    """
    local = Path(source).expanduser()
    there = os.path.exists(local)  # False, and no error, for a name that is too long
    pattern = not there and glob.has_magic(source)
    if not (there or pattern):
        return None
    if split and re.search(r"[\[+%]", split):
        raise PobenchError(
            f"data {source!r}: {split!r} is no split of local rows; parts and sums of splits are read from the hub alone "
            "(data.max_pairs takes a part)"
        )
    if local.is_dir():
        return _of_folder(local, source, split, subset, section)
    if local.is_file():
        part = _part([local])
        return RowFiles(f"{local.name} ({part})" if part else local.name, (local,))
    paths = [Path(p) for p in sorted(glob.glob(str(local), recursive=True)) if Path(p).is_file()]
    if not paths:
        raise PobenchError(f"data {source!r}: no such file, and none that it matches as a pattern")
    return RowFiles(f"{source} ({_part(paths) or _count(paths)})", tuple(paths))


def configurations_in(error: Exception) -> list[str]:
    """The configurations that a message of the hub's client offers where it misses the name of one; [] in other messages."""
    known = re.search(r"(?:available configs|Available): \[(.*?)\]", str(error))
    return re.findall(r"'([^']*)'", known[1]) if known else []


def subset_fault(source: str, subset: str | None, known: list[str], section: str = "data") -> str:
    """What to set where a data set has several configurations and `subset` is none of them. section: as in `local_rows`."""
    if subset is None:
        remedy = f"set {section}.subset to one of" if section else "name the files of one"
        return f"data {source!r} has several configurations; {remedy}: {', '.join(known)}"
    return f"data {source!r} has no configuration {subset!r}{nearest(subset, known)} Known: {', '.join(known)}"


# ---------------------------------------------------------------- folders
def _of_folder(folder: Path, source: str, split: str | None, subset: str | None, section: str) -> RowFiles:
    if (folder / "dataset_dict.json").is_file():
        splits = {name: folder / name for name in _read(folder / "dataset_dict.json").get("splits", [])}
        paths = _saved(_chosen(splits, split, source, section))
    elif (folder / "state.json").is_file():
        own = _read(folder / "state.json").get("_split")
        if own and split:
            _chosen({own: folder}, split, source, section)
        paths = _saved(folder)
    else:
        splits, others = _splits(folder, source, subset, section)
        paths = sorted(_chosen(splits, split, source, section))
        _refuse_unclear(source, paths, others)
    parts = [*([subset] if subset else []), *([split] if split else []), _count(paths)]
    return RowFiles(f"{folder.name} ({', '.join(parts)})", tuple(paths))


def _read(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PobenchError(f"data: {str(file)!r} cannot be read: {error}") from error
    return about if isinstance(about, dict) else {}


def _saved(folder: Path) -> list[Path]:
    """The Arrow files that `save_to_disk` wrote, in their order."""
    state = _read(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise PobenchError(
            f"data {str(folder)!r}: saved with a list of indices, by an old release of datasets; save it again"
        )
    paths = [folder / str(file["filename"]) for file in state.get("_data_files", [])]
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise PobenchError(f"data {str(folder)!r} is not whole; missing: {', '.join(missing) or 'every file'}")
    return paths


def _chosen(splits: dict[str, Any], split: str | None, source: str, section: str) -> Any:
    name = split or "train"
    if name not in splits:
        known = ", ".join(splits) or "none"
        remedy = f"Set {section}.split. " if section else ""
        raise PobenchError(f"data {source!r} has no split {name!r}{nearest(name, splits)} {remedy}Known: {known}")
    return splits[name]


def _splits(folder: Path, source: str, subset: str | None, section: str) -> tuple[dict[str, list[Path]], list[Path]]:
    """Split → files, as the hub's client reads them from the names of files and the README; and the folder's other files with
    rows, which no split holds. Nothing of the folder is run."""
    import datasets

    no_rows = f"data {source!r}: no rows ({', '.join(ENDINGS)}) are found in this folder"
    try:
        with tempfile.TemporaryDirectory() as cache:  # the client makes folders there even where it only looks
            builder = datasets.load_dataset_builder(str(folder), subset, cache_dir=cache)
    except Exception as error:  # the client raises a dozen unrelated types
        if known := configurations_in(error):
            raise PobenchError(subset_fault(source, subset, known, section)) from error
        raise PobenchError(no_rows) from error
    files = getattr(builder.config, "data_files", None) or {}
    splits = {str(name): [Path(str(file)) for file in found] for name, found in files.items()}
    if not any(kind_of(path) in ENDINGS for found in splits.values() for path in found):
        raise PobenchError(no_rows)
    named = {path.resolve() for found in splits.values() for path in found}
    readme = folder / "README.md"
    if readme.is_file() and re.search(r"^configs:", readme.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
        return splits, []  # it says which files belong to which configuration
    beside = [p for p in sorted(folder.rglob("*")) if p.is_file() and kind_of(p) in ENDINGS and p.name not in _ABOUT]
    hidden = [p for p in beside if any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return splits, [p for p in beside if p not in hidden and p.resolve() not in named]


def _refuse_unclear(source: str, paths: list[Path], others: list[Path]) -> None:
    """Raises PobenchError where reading the files of a folder would leave rows out, or mix data sets, in silence."""
    fix = f"name the files by a pattern, such as {source.rstrip('/')}/*{kind_of(paths[0])}"
    kinds = sorted({kind_of(path) for path in paths})
    if others:
        raise PobenchError(f"data {source!r}: {_names(others)} would not be read; {fix}")
    if len(kinds) > 1:
        raise PobenchError(f"data {source!r} holds files of several kinds ({', '.join(kinds)}); {fix}")
    for stem, shards in _shards(paths).items():
        if len(shards) > 1:
            counts = " and ".join(map(str, sorted(shards)))
            raise PobenchError(f"data {source!r}: {stem.name!r} is there twice, in shards of {counts}; {fix}")
        for total, numbers in shards.items():
            missing = [f"{stem.name}-{i:05d}-of-{total:05d}" for i in range(total) if i not in numbers]
            if missing:
                raise PobenchError(f"data {source!r} is not whole; missing: {', '.join(missing[:8])}")


def _shards(paths: Iterable[Path]) -> dict[Path, dict[int, set[int]]]:
    """Stem → number of shards → the shards that are there, of names such as `train-00000-of-00005.parquet`."""
    found: dict[Path, dict[int, set[int]]] = {}
    for path in paths:
        if match := _SHARD.fullmatch(path.name):
            found.setdefault(path.parent / match[1], {}).setdefault(int(match[3]), set()).add(int(match[2]))
    return found


def _part(paths: list[Path]) -> str:
    """ "1 of 5 shards" where the files that are named are a part of several; else ""."""
    parts = [(len(numbers), total) for shards in _shards(paths).values() for total, numbers in shards.items()]
    here, together = sum(n for n, _ in parts), sum(total for _, total in parts)
    return "" if here == together else f"{here} of {together} shards"


def _count(paths: list[Path]) -> str:
    return f"{len(paths)} file{'s' if len(paths) > 1 else ''}"


def _names(paths: list[Path], most: int = 5) -> str:
    return ", ".join(path.name for path in paths[:most]) + (
        f" and {len(paths) - most} more" if len(paths) > most else ""
    )
