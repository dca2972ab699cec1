"""A commented file to start from: a loss, a setting, a study or a judge of one's own.

The texts are `new_KIND.txt` beside this file; `$name` stands for the name. Each works as it is.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import NamedTuple

from pobench.composition import MARKS
from pobench.errors import PobenchError, nearest
from pobench.files import name_fault


class Kind(NamedTuple):
    """What can be written. taken: whether a name is in use. next: commands to type, with {file} and {name}."""

    suffix: str
    reserved: Iterable[str]
    taken: Callable[[str], bool]
    next: tuple[str, ...]


def _kinds() -> dict[str, Kind]:
    from pobench.registry import NOT_A_LOSS, judges, losses, modifiers
    from pobench.settings.read import NOT_A_SETTING, list_settings
    from pobench.workflows.study_file import list_studies

    return {
        "loss": Kind(
            ".py",
            NOT_A_LOSS,
            lambda name: losses.canonical(name) in losses.names() or modifiers.canonical(name) in modifiers.names(),
            (
                "pobench check {file}",
                "pobench run --losses simpo,{name} --plugin {file} --dry-run",
                "pobench run --losses simpo,{name} --plugin {file}",
            ),
        ),
        "setting": Kind(
            ".yaml",
            NOT_A_SETTING,
            lambda name: name in list_settings(),
            (
                "pobench run --setting {file} --dry-run",
                "pobench run --setting {file} --rehearse",
                "pobench run --setting {file} --losses simpo,dpo",
            ),
        ),
        "study": Kind(
            ".yaml",
            (),
            lambda name: name in list_studies(),
            ("pobench study {file} --setting tiny --dry-run", "pobench study {file} --setting tiny"),
        ),
        "judge": Kind(
            ".py",
            (),
            lambda name: judges.canonical(name) in judges.names(),
            (
                "pobench run --set judge.name={name} --plugin {file} --dry-run",
                "pobench run --set judge.name={name} --plugin {file}",
            ),
        ),
    }


KINDS = ("loss", "setting", "study", "judge")


def write_new(kind: str, name: str, folder: Path) -> tuple[Path, list[str]]:
    """(the file NAME.py or NAME.yaml that was written into `folder`, the commands to type next).

    Raises PobenchError for an unknown kind, a name that cannot be used or is taken, a folder that is not there and a file
    that is.
    """
    if kind not in KINDS:
        raise PobenchError(f"new: unknown kind {kind!r}{nearest(kind, KINDS)} Known: {', '.join(KINDS)}")
    about = _kinds()[kind]
    if fault := name_fault(name, about.reserved):
        raise PobenchError(f"new {kind}: {fault}")
    if kind == "loss" and MARKS & set(name):
        raise PobenchError(
            f"new loss: {name!r} reads as a sum of losses; choose a name without {' '.join(sorted(MARKS))}"
        )
    if not folder.is_dir():
        raise PobenchError(f"--out: no folder {str(folder)!r}")
    path = folder / f"{name}{about.suffix}"
    there = PobenchError(f"new {kind}: {str(path)!r} exists already and is left as it is")
    if path.exists():
        raise there
    if about.taken(name):
        raise PobenchError(f"new {kind}: {name!r} is a name that pobench uses already; choose another")
    text = Template(files("pobench.workflows").joinpath(f"new_{kind}.txt").read_text(encoding="utf-8"))
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text.substitute(name=name))
    except FileExistsError:
        raise there from None
    shown = shlex.quote(str(path))
    return path, [line.format(name=shlex.quote(name), file=shown) for line in about.next]
