"""The grids of a search: reading a YAML of experiments/grids, the values it gives each loss, and their combinations."""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pydantic

from pobench.errors import PobenchError, nearest
from pobench.registry import Loss, Modifier, get_loss, part_of
from pobench.settings.faults import explain
from pobench.settings.plain_yaml import plain_yaml
from pobench.settings.schema import Rate

# ---------------------------------------------------------------- what is searched
Point = dict[str, Any]  # "lr" or a setting of the loss → value
Space = dict[str, list[Any]]
MOST_CELLS = 100_000  # of a loss's grid; those that ship have some fifty


class Grid(pydantic.BaseModel):
    """One YAML of experiments/grids. lr: learning rates for every loss; losses: name → setting → values; a loss's own `lr`
    replaces the common one."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    lr: list[Rate] = pydantic.Field(min_length=1)
    losses: dict[str, dict[str, Annotated[list[Any], pydantic.Field(min_length=1)]]] = {}


def grid_folder() -> Path:
    """The folder of the shipped grids."""
    return Path(str(importlib.resources.files("pobench.experiments"))) / "grids"


def read_grid(name: str) -> Grid:
    """A shipped grid or a YAML path. Raises PobenchError that lists what is wrong with it."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else grid_folder() / f"{name}.yaml"
    if not os.path.isfile(path):  # False for a name too long
        known = sorted(p.stem for p in grid_folder().glob("*.yaml"))
        raise PobenchError(
            f"tune.grid: no grid {name!r}{nearest(name, known)} Known: {', '.join(known)}; or a YAML path"
        )
    try:
        values, _ = plain_yaml(path.read_text(encoding="utf-8"), f"tune.grid: {str(path)!r}")
        if not isinstance(values, dict):
            raise PobenchError(f"tune.grid: {str(path)!r} holds no mapping of `lr` and `losses`")
        return Grid.model_validate(values)
    except pydantic.ValidationError as error:
        raise PobenchError("\n".join(explain(error, f"{path.name}: ", Grid))) from None
    except (ValueError, OSError) as error:
        raise PobenchError(f"tune.grid: {str(path)!r} cannot be read: {error}") from None


def search_space(loss: Loss, grid: Grid) -> Space:
    """Learning rates × settings of the loss: those in the grid, otherwise those with a published range. An expression that the
    grid does not name has those of its parts.

    Raises PobenchError for a setting that the loss does not have, and for more than `MOST_CELLS` combinations.
    """
    by_loss = {part_of(name).name: values for name, values in grid.losses.items()}
    own = by_loss.get(loss.name)
    if own is None:
        parts = [(part, f"{part.name}.") for part in loss.parts] or [(loss, "")]
        own = {f"{prefix}{key}": values for part, prefix in parts for key, values in _own_space(part, by_loss).items()}
    unknown = [key for key in own if key != "lr" and key not in loss.settings]
    if unknown:
        raise PobenchError(
            f"tune.grid: {loss.name} has no {', '.join(map(repr, unknown))}; it takes {', '.join(loss.settings) or 'none'}"
        )
    space = {"lr": list(grid.lr), **{key: list(values) for key, values in own.items()}}
    if (cells := math.prod(map(len, space.values()))) > MOST_CELLS:
        raise PobenchError(
            f"tune.grid: {loss.name} has {cells:,} combinations, more than {MOST_CELLS:,}; leave values out"
        )
    return space


def _own_space(part: Loss | Modifier, by_loss: Mapping[str, Space]) -> Space:
    published = getattr(part, "ranges", {})
    own = by_loss.get(part.name) or {name: list(v) for name, v in published.items() if len(tuple(v or ())) > 1}
    return {key: values for key, values in own.items() if key != "lr"}


def search_spaces(grid: str | None, names: Sequence[str]) -> dict[str, Space]:
    """Loss → its search space; {} without a grid. Raises PobenchError for a grid that cannot be read, and as `search_space`."""
    if grid is None:
        return {}
    read = read_grid(grid)
    return {name: search_space(get_loss(name), read) for name in names}


def points_of(space: Space, loss: str) -> list[Point]:
    """Every cell of the grid, ordered by hash: the first N are a fair sample, and a larger N keeps them."""
    cells = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return sorted(cells, key=lambda cell: hashlib.sha256(json.dumps([loss, cell], sort_keys=True).encode()).hexdigest())
