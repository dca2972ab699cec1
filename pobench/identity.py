"""Names of results: twelve hex digits of a digest of everything that decides the result, its causes.

Causes are resolved values, and digests of token ids, weights, prompts and source code. Paths, folder names, devices and
checkpoint intervals are no causes. With twelve digits, one in five million collections of ten thousand results has a
collision.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

PROTOCOL = 2  # raised when stored results of two versions may no longer be compared


def name_of(causes: Mapping[str, Any]) -> str:
    """12 hex digits of sha256 over the causes. Their order does not matter."""
    return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()[:12]


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the causes that differ; nested ones by their path, e.g. `train.lr`."""
    keys = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            keys += [f"{key}.{inner}" for inner in changed(old, new)]
        elif old != new:
            keys.append(key)
    return keys


# ---------------------------------------------------------------- source code
MATH = (
    "pobench.loss_math",
    "pobench.list_math",
    "pobench.shared_margins",
    "pobench.dispersion",
)  # what losses compute with


def code_digest(function: Callable[..., Any]) -> str:
    """Hex sha256 of the code of a registered function: its file, and every file of the same folder that it imports.

    For a loss or judge that ships: its own file, and those of `MATH` that it imports. Docstrings, comments, layout and the
    parts of a registration that are for readers (a title, a colour) do not count. For a function without a file (in a
    notebook): its own source, or its byte code.
    """
    path = _file_of(function)
    if path is None:
        return hashlib.sha256(_loose(function).encode()).hexdigest()
    shipped = str(getattr(function, "__module__", "")).startswith("pobench.")
    return _digest(_shipped_files(path) if shipped else _files(path))


def room_digest(*files: str) -> str:
    """Hex sha256 of the code of these files and of every file of their folders that they import, directly or not."""
    return _digest(dict.fromkeys(path for file in files for path in _files(Path(file))))


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n{meaning(file.read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


# Arguments of a registration that only readers, tables and figures see. They decide no number.
SHOWN = {
    *("source", "aliases", "title", "units", "ranges", "meanings", "defaults"),
    *("in_paper", "colour", "marker", "becomes"),
}


@cache
@lru_cache(maxsize=512)  # a plan asks for the same files again and again; by their text, so that an edit counts
def meaning(source: str) -> str:
    """Python source without docstrings, comments, layout and the arguments of a registration in `SHOWN`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].startswith("register_"):
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in SHOWN]
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _file_of(function: Callable[..., Any]) -> Path | None:
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    path = Path(source) if source else None
    return path if path is not None and path.is_file() else None


def _loose(function: Callable[..., Any]) -> str:
    try:
        return meaning(inspect.cleandoc("\n" + inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        code = getattr(inspect.unwrap(function), "__code__", None)
        return repr((code.co_code, code.co_consts, code.co_names)) if code else repr(function)


def _shipped_files(path: Path) -> list[Path]:
    names = set(_imported(path))
    specs = [importlib.util.find_spec(name) for name in MATH if name in names]
    return [path, *(Path(spec.origin) for spec in specs if spec is not None and spec.origin)]


def _files(path: Path) -> list[Path]:
    """`path`, and the files of its folder that it imports, directly or not, breadth first."""
    files, waiting = [], [path.resolve()]
    while waiting:
        file = waiting.pop(0)
        if file in files:
            continue
        files.append(file)
        for name in _imported(file):
            beside = file.parent / f"{name.rpartition('.')[2]}.py"
            if beside.is_file() and _is_imported_from(name, beside):
                waiting.append(beside.resolve())
    return files


def _is_imported_from(name: str, file: Path) -> bool:
    """Whether importing `name` loads `file`, not another module of that name."""
    module = sys.modules.get(name)
    loaded = getattr(module, "__file__", None)
    return loaded is None or Path(loaded).resolve() == file.resolve()


def _imported(path: Path) -> tuple[str, ...]:
    """Dotted names of the modules that a file may import; for `from a import b`, both `a` and `a.b`."""
    return _named(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=512)
def _named(source: str) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names += [base] if base else []
            names += [f"{base}.{alias.name}" if base else alias.name for alias in node.names]
    return tuple(names)
