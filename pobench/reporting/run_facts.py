"""What leaves the machine about a run: its values and their sources without paths, without addresses' passwords, and without
anything of the judge but its name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from pobench.errors import PobenchError
from pobench.registry import get_loss

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
SOURCES = ("source", "base", "held_out", "chat_template")  # keys whose value may be a file
PRIVATE = ("judge", "benchmarks")  # sections of which the name alone is shown, because settings name servers and keys
ABOUT = ("setting", "loss", "seed", "kind", "protocol", "start", "values_from", "tuned", "origin", "loss_settings")

_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_KEY = re.compile(r"\b(?:sk|hf|gh[pousr]|xox[abp]|glpat|AKIA)[-_]?[A-Za-z0-9_-]{16,}")
_QUOTED = re.compile(r"""(?<=(['"`]))(?:file:/)?(?:~|\.{1,2}|[A-Za-z]:)?[/\\][^'"`\n]+?(?=\1)""")
_PATH = re.compile(r"""(?<![\w:/\\.-])(?:file:/)?(?:~|\.{1,2}|[A-Za-z]:)?[/\\][^\s'"`,;()\[\]]*[\w/\\]""")


def without_paths(text: str) -> str:
    """The text with files and folders by their last names alone, without what looks like a key or a login."""
    text = _KEY.sub("…", _LOGIN.sub("", text))
    return _PATH.sub(_last, _QUOTED.sub(_last, text))


def _last(path: re.Match[str]) -> str:
    return re.split(r"[/\\]", path[0].rstrip("/\\"))[-1]


def values_of(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(key, value, where it comes from) of every value of a run's configuration that may be shown."""
    origin, loss = config["origin"], config["loss"]
    sections = {name: value for name, value in config.items() if name not in (*ABOUT, *PRIVATE)}
    for key, value in (*_flat(config["loss_settings"], loss), *_flat(sections)):
        if value is not None and value != [] and value != {}:
            name = key.rpartition(".")[2]
            where = origin.get(key) or origin.get(name if name in config["loss_settings"] else key) or "default"
            yield key, _shown(name, value), without_paths(str(where))
    if name := config.get("judge", {}).get("name"):
        yield "judge.name", str(name), without_paths(str(origin.get("judge.name") or "default"))


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        inner = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and any(isinstance(value, Mapping) for value in tree):
        inner = [(str(place), value) for place, value in enumerate(tree, 1)]
    else:
        yield prefix, tree
        return
    for key, value in inner:
        yield from _flat(value, f"{prefix}.{key}" if prefix else key)


def _shown(name: str, value: Any) -> str:
    text = str(value)
    is_file = name in SOURCES and "\n" not in text and "{" not in text
    return without_paths(shown_source(text) if is_file else text)


def title_of(loss: str) -> tuple[str, str, list[str]]:
    """(title, source, formula) of a loss; of one that is not registered here, its name."""
    try:
        found = get_loss(loss)
    except PobenchError:
        return loss, "a loss of the user's own", []
    return found.title, found.source, found.formula.splitlines()


def on_hub(source: str) -> bool:
    return HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def shown_source(source: Any) -> str:
    """A source, of a file the name alone."""
    text = str(source)
    local = not on_hub(text) and not re.match(r"(builtin|package):", text)
    return Path(text).name if local else text


def command_of(config: Mapping[str, Any]) -> str:
    """The command that trains the run again, with the values that were set by hand."""
    origin = config["origin"]
    given = {key for key, where in origin.items() if where == "--set" and key.partition(".")[0] != "judge"}
    words = [
        f"pobench run --losses {quote(config['loss'])} --setting {quote(config['setting'])} --seeds {config['seed']}"
    ]
    for key in sorted(given):
        section, _, name = key.partition(".")
        values = config["loss_settings"] if section == config["loss"] else config.get(section, {})
        value = values.get(name) if isinstance(values, Mapping) else None
        if not isinstance(value, Mapping | list | None) and not (
            isinstance(value, str) and "/" in value and not on_hub(value)
        ):
            words.append(f"--set {quote(f'{key}={value}')}")
    return " ".join(words)
