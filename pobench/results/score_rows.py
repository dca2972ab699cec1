"""The frame `scores` of stored runs, of which rows are computed when they are asked for.

A run's rows are stored beside it. An arm of several runs has rows of its own, from its runs' vectors: of thousands of arms, and
twenty metrics each, a report asks for some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import pandas as pd

from pobench.columns import FRAMES
from pobench.results.metrics import Scored, score_vectors, scored_sets
from pobench.results.rows import Rows
from pobench.results.scores import Summary

Key = tuple[str, str | None]  # the name of what is scored, and a metric; None: all


class ScoreRows(Rows):
    """sets: name of a run or an arm → what it is made from. summary: of a run. seed: of the bootstrap; None: what is not stored
    has no rows."""

    def __init__(self, sets: Iterable[Scored], summary: Callable[[str], Summary], seed: int | None = None) -> None:
        self.sets = {scored.name: scored for scored in sets}
        super().__init__("scores", self.sets, lambda name, columns: self._frame([name]))
        self._summary, self._seed = summary, seed
        # an arm is asked for one metric after another
        self._vectors = lru_cache(maxsize=64)(lambda run: summary(run).vectors())
        self._found: dict[Key, list[dict[str, Any]]] = {}

    @classmethod
    def stored(cls, runs: Iterable[str], summary: Callable[[str], Summary]) -> ScoreRows:
        """The rows that are stored beside each run, finished or not; none of arms."""
        return cls((Scored(run, (run,), None) for run in runs), summary)

    def of_arms(self, runs: pd.DataFrame, seed: int) -> ScoreRows:
        """The rows of these runs that are finished, and of their arms."""
        return ScoreRows(scored_sets(runs), self._summary, seed).in_order()

    def of_metric(self, names: Iterable[str], metric: str) -> list[dict[Any, Any]]:
        return [row for name in names if name in self._places for row in self._rows(name, metric)]

    def whole(self) -> pd.DataFrame:
        """Stored rows, by run; then those that are computed, arm by arm."""
        names = self.runs if self._seed is None else [name for name in self.sets if name in self._places]
        stored = [name for name in names if self._is_stored(name)]
        known = set(stored)
        computed = [name for name in names if name not in known]
        return self._frame([*sorted(stored), *computed])

    def _is_stored(self, name: str) -> bool:
        scored = self.sets[name]
        return scored.runs == (name,) and bool(self._summary(name).rows)

    def _frame(self, names: Iterable[str]) -> pd.DataFrame:
        return FRAMES["scores"].of([{"run": name, **row} for name in names for row in self._rows(name, None)])

    def _rows(self, name: str, metric: str | None) -> list[dict[str, Any]]:
        if self._seed is None or self._is_stored(name):
            rows = self._summary(name).rows
            rows = sorted(rows, key=lambda row: str(row["metric"])) if self._sorted else rows
            return rows if metric is None else [row for row in rows if row["metric"] == metric]
        key = name, metric
        if key not in self._found:
            self._found[key] = self._computed(self.sets[name], metric)
        return self._found[key]

    def _computed(self, scored: Scored, metric: str | None) -> list[dict[str, Any]]:
        assert self._seed is not None
        own = [self._vectors(run) for run in scored.runs]
        starts = None if scored.starts is None else [self._vectors(run) for run in scored.starts]
        return score_vectors(own, starts, None if metric is None else {metric}, seed=self._seed)
