"""Frames by name; what follows from others is computed when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import pandas as pd

from pobench.results.cross_loss import cross_loss
from pobench.results.gradients import gradients
from pobench.results.paper import paper_results


class Derived(NamedTuple):
    """How a frame is made. needs, takes: names of frames, its arguments in this order; the latter may be absent."""

    make: Callable[..., pd.DataFrame]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


DERIVED = {
    "cross_loss": Derived(cross_loss, ("runs", "heldout")),
    "gradients": Derived(gradients, ("runs", "heldout"), ("norms",)),
    "paper": Derived(paper_results),
}


class Frames(Mapping[str, pd.DataFrame]):
    """The frames that are given, and those of `DERIVED` that can be made from them. `pobench.columns` describes them."""

    def __init__(self, given: Mapping[str, pd.DataFrame]) -> None:
        self.given: dict[str, pd.DataFrame] = dict(given.given if isinstance(given, Frames) else given)
        self._made: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name in self.given:
            return self.given[name]
        if name not in self:
            raise KeyError(name)
        if name not in self._made:
            how = DERIVED[name]
            self._made[name] = how.make(*(self[n] for n in how.needs), *(self.get(n) for n in how.takes))
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self.given or (name in DERIVED and all(n in self for n in DERIVED[str(name)].needs))

    def __iter__(self) -> Iterator[str]:
        yield from self.given
        yield from [name for name in DERIVED if name not in self.given and name in self]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def of_runs(self, runs: Iterable[str]) -> Frames:
        """The rows of these runs alone; frames that are no run's stay whole, and what is derived is derived anew."""
        kept = set(runs)
        return Frames({n: f[f["run"].isin(kept)] if "run" in f else f for n, f in self.given.items()})
