"""`manifest.json` of a folder whose files are made one by one: what they were made from, and the sha256 of each.

    {"made_from": {causes and weights}, "files": {name: sha256}}

A file that the manifest does not list is unfinished. Such a file, and one with other bytes than it lists, or made from
something else, is never used: `claim` renames it to `<name>.damaged`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pobench.errors import CorruptError
from pobench.files import corrupt_files, read_marker, sealed, sha256_of, write_json

FILE = "manifest.json"
OTHER_CAUSES = "it was made from something else"
UNFINISHED = "its command ended before it was finished"
_KEPT = (FILE, "config.yaml")  # rewritten in place, never renamed


def manifest(folder: Path) -> dict[str, Any]:
    """The stored manifest; {} where there is none. Raises CorruptError where it is not what was written."""
    path = folder / FILE
    if not path.is_file():
        return {}
    stored = read_marker(path)
    if not all(isinstance(stored.get(key), dict) for key in ("made_from", "files")):
        raise CorruptError(path, "it does not describe a folder's files")
    return stored


def _known(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The stored manifest, {} where there is none or it is damaged, and a sentence where it is."""
    try:
        return manifest(folder), []
    except CorruptError as error:
        return {}, [str(error)]


def causes_of(folder: Path) -> dict[str, Any]:
    """What the folder's files were made from; {} where that is not known."""
    return dict(_known(folder)[0].get("made_from", {}))


def holds(folder: Path, made_from: Mapping[str, Any], *names: str) -> bool:
    """Whether these files are finished and made from `made_from`, and all that are finished hold what was written."""
    stored, _ = _known(folder)
    files = stored.get("files", {})
    if stored.get("made_from") != dict(made_from) or not set(names) <= set(files):
        return False
    return not corrupt_files(folder, files)


def claim(folder: Path, made_from: Mapping[str, Any], why: str = OTHER_CAUSES) -> list[str]:
    """Ready the folder for files made from `made_from`: rename what may not be used, unfinished files too, as no digest says
    what was written. Returns one sentence for each. why: what to say of files made from something else.
    """
    stored, damage = _known(folder)
    files = stored.get("files", {})
    present = sorted(p for p in folder.glob("[!.]*") if p.is_file() and p.name not in _KEPT and p.suffix != ".damaged")
    if stored.get("made_from") == dict(made_from):
        bad = {fault.path.name: str(fault) for fault in corrupt_files(folder, files)}
        bad |= {path.name: f"{str(path)!r}: {UNFINISHED}" for path in present if path.name not in files}
    else:
        why = "its manifest is damaged" if damage else why
        bad, files = {path.name: f"{str(path)!r}: {why}" for path in present}, {}
    for name in bad:
        if (folder / name).is_file():
            (folder / name).replace(folder / f"{name}.damaged")
    left = {name: digest for name, digest in files.items() if name not in bad}
    if stored != (now := {"made_from": dict(made_from), "files": left}):
        write_json(folder / FILE, sealed(now))
    return [f"{sentence}; it is made anew" for sentence in (*damage, *bad.values())]


def finish(folder: Path, *names: str) -> None:
    """List files that are whole now. The folder must have been claimed."""
    stored = manifest(folder)
    files = {**stored["files"], **{name: sha256_of(folder / name) for name in names}}
    write_json(folder / FILE, sealed({**stored, "files": files}))
