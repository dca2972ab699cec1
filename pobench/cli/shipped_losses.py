"""The declarations of the shipped losses, read from the text of their files, so that listing them imports no torch.

The registry has the same from the imported functions; a test compares the two for every loss.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from pobench.errors import _normal
from pobench.registry import Loss, losses

# Keywords of the registration that a list does not show, and whose values are no literals.
NOT_LISTED = ("alternatives", "canonical", "update")


def declared_losses() -> list[tuple[Loss, list[str]]] | None:
    """Every shipped loss and its other names, sorted by name, without a function that can be called.

    None if the files do not hold everything: a plug-in or an installed package adds losses, or a declaration is
    more than literals.
    """
    if not losses.only_files():
        return None
    try:
        declared = [_declared(path) for path in losses.files()]
    except ValueError:  # of ast.literal_eval
        return None
    return sorted((one for file in declared for one in file), key=lambda one: one[0].name)


def _declared(path: Path) -> list[tuple[Loss, list[str]]]:
    module = ast.parse(path.read_text(encoding="utf-8"))
    about = ast.get_docstring(module, clean=False) or ""
    functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
    return [
        _loss(function, decorator, about)
        for function in functions
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("register_loss")
    ]


def _loss(function: ast.FunctionDef, decorator: ast.Call, about: str) -> tuple[Loss, list[str]]:
    name = ast.literal_eval(decorator.args[0])
    keywords: dict[str, Any] = {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in decorator.keywords
        if keyword.arg is not None and keyword.arg not in NOT_LISTED
    }
    aliases = {_normal(alias) for alias in keywords.pop("aliases", ())} - {_normal(name)}
    settings = {
        argument.arg: ast.literal_eval(default)
        for argument, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        if default is not None
    }
    own_text = ast.get_docstring(function, clean=False)
    loss = Loss(
        name=name,
        function=_not_imported,
        needs=frozenset(argument.arg for argument in function.args.args) - {"policy"},
        settings=settings,
        doc=inspect.cleandoc(own_text) if own_text else about,
        **{"title": name, **keywords},
    )
    return loss, sorted(aliases)


def _not_imported(*arguments: Any, **settings: Any) -> Any:
    raise RuntimeError("this loss was read from its file to be listed; `get_loss` imports it")
