"""Frames by name. Derived frames are computed from the stored ones on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import pandas as pd

from pobench.results.cross_loss import cross_loss
from pobench.results.gradients import gradients
from pobench.results.paper import paper_results


class Derived(NamedTuple):
    """How to compute a frame. needs, takes: names of the frames that `make` gets, in this order; those of `takes` may be
    absent."""

    make: Callable[..., pd.DataFrame]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


DERIVED = {
    "cross_loss": Derived(cross_loss, ("runs", "heldout")),
    "gradients": Derived(gradients, ("runs", "heldout"), ("norms",)),
    "paper": Derived(paper_results),
}


class Frames(Mapping[str, pd.DataFrame]):
    """Stored frames, and the frames of `DERIVED` that can be computed from them. `pobench.columns` describes all.

    later: further frames, by what makes each on first use.
    """

    def __init__(
        self, stored: Mapping[str, pd.DataFrame], later: Mapping[str, Callable[[], pd.DataFrame]] | None = None
    ) -> None:
        inner = stored if isinstance(stored, Frames) else None
        self.stored: dict[str, pd.DataFrame] = dict(stored if inner is None else inner.stored)
        self.later: dict[str, Callable[[], pd.DataFrame]] = {**({} if inner is None else inner.later), **(later or {})}
        self._made: dict[str, pd.DataFrame] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name in self.stored:
            return self.stored[name]
        if name not in self:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self.later[name]() if name in self.later else self._derived(DERIVED[name])
        return self._made[name]

    def _derived(self, how: Derived) -> pd.DataFrame:
        return how.make(*(self[name] for name in how.needs), *(self.get(name) for name in how.takes))

    def __contains__(self, name: object) -> bool:
        known = name in self.stored or name in self.later
        return known or (name in DERIVED and all(n in self for n in DERIVED[str(name)].needs))

    def __iter__(self) -> Iterator[str]:
        known = {**self.stored, **self.later}
        yield from known
        yield from [name for name in DERIVED if name not in known and name in self]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def of_runs(self, runs: Iterable[str]) -> Frames:
        """Only the rows of these runs. Frames without a column `run` stay whole, and derived frames are computed anew."""
        kept = set(runs)

        def rows(name: str) -> pd.DataFrame:
            frame = self[name]
            return frame[frame["run"].isin(kept)] if "run" in frame else frame

        return Frames({name: rows(name) for name in self.stored}, {name: partial(rows, name) for name in self.later})
