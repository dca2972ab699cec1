"""A registry: items of one kind by name and alias, found in a package of content, in plug-ins and in installed packages."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pobench.errors import PobenchError, UnknownNameError, _normal, nearest
from pobench.files import name_fault


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Items of one kind by name and alias. The first look-up imports every file of `package`."""

    def __init__(
        self, kind: str, package: str, entry_points: str | None = None, reserved: frozenset[str] = frozenset()
    ) -> None:
        self.kind, self.package, self.entry_points, self.reserved = kind, package, entry_points, reserved
        self._items: dict[str, T] = {}
        self._aliases: dict[str, str] = {}
        self._loaded = False

    def add(self, item: T, aliases: Iterable[str] = ()) -> None:
        """Register `item`. Raises PobenchError if its name names no file, is reserved, or belongs to another item."""
        if fault := name_fault(item.name, self.reserved):
            raise PobenchError(f"{self.kind}: {fault}")
        taken = self._items.get(item.name)
        if taken is not None and _home(taken) != _home(item):
            raise PobenchError(f"{self.kind} {item.name!r} is registered twice: {_home(taken)} and {_home(item)}")
        for alias in (item.name, *aliases):
            owner = self._aliases.setdefault(_normal(alias), item.name)
            if owner != item.name:
                raise PobenchError(f"{self.kind} {item.name!r}: the name {alias!r} belongs to {owner!r} already")
        self._items[item.name] = item

    def get(self, name: str) -> T:
        """The item called `name`. Raises UnknownNameError with the nearest name and all known names."""
        self._load()
        try:
            return self._items[self._aliases[_normal(name)]]
        except KeyError:
            known = ", ".join(self.names())
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}{nearest(name, self.names())} Known: {known}"
            ) from None

    def canonical(self, name: Any) -> str:
        """The registered name for a name or alias in any spelling; an unknown name stays unchanged."""
        self._load()
        return self._aliases.get(_normal(str(name)), str(name))

    def names(self) -> list[str]:
        """All names, sorted, without aliases."""
        self._load()
        return sorted(self._items)

    def aliases(self, name: str) -> list[str]:
        """The other names of `name`, normalised."""
        return sorted(a for a, owner in self._aliases.items() if owner == name and a != _normal(name))

    def files(self) -> list[Path]:
        """The files of the package in order of their names, without importing them."""
        package = importlib.util.find_spec(self.package)
        folders = (package.submodule_search_locations if package else None) or []
        names = [module.name for module in pkgutil.iter_modules(folders)]
        return [path for folder in folders for name in names if (path := Path(folder) / f"{name}.py").is_file()]

    def only_files(self) -> bool:
        """Whether all items come from the package's files: no plug-in and no installed package has added one."""
        return not self._items and not (self.entry_points and _installed(self.entry_points))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in _installed(self.entry_points) if self.entry_points else ():
            try:
                entry.load()
            except (Exception, SystemExit) as error:
                raise PobenchError(f"the installed plug-in {entry.value!r} {import_fault(error)}") from error


def _installed(group: str) -> list[Any]:
    """The entry points of `group` that installed packages declare."""
    from importlib.metadata import entry_points

    return list(entry_points(group=group))


def _home(item: Any) -> str:
    function = getattr(item, "function", item)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The settings that a function declares: its keyword parameters, with their defaults."""
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def load_plugin(path: str | Path) -> None:
    """Import a user's file that registers losses, judges or figures. Raises PobenchError if the import fails.

    The module is named by its path, so that two files of one name are two modules.
    """
    path = Path(path)
    if not path.is_file():
        raise PobenchError(f"--plugin: no file {str(path)!r}")
    name = f"pobench_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PobenchError(f"--plugin: {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (PobenchError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit, or a kind of its own
        raise PobenchError(f"--plugin: {str(path)!r} {import_fault(error)}") from error


def import_fault(error: BaseException) -> str:
    return f"fails at import: {type(error).__name__}: {error}"
