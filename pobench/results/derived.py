"""Frames by name. Derived frames are computed from the stored ones on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache, partial
from html import escape
from typing import NamedTuple

import pandas as pd

from pobench.columns import FRAMES
from pobench.results.cross_loss import cross_loss
from pobench.results.gradients import gradients
from pobench.results.paper import paper_results
from pobench.results.rows import InMemory, Rows


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


MOST_SETTINGS = 8  # that are named where frames are printed


class Frames(Mapping[str, pd.DataFrame]):
    """Stored frames, and the frames of `DERIVED` that can be computed from them. `pobench.columns` describes all. Printed, also
    in a notebook, they say what they hold, a line a frame.

    later: further frames, by what makes each on first use. by_run: further frames, read run by run when they are asked for.
    left_out: names of runs that are damaged and not read.
    """

    def __init__(
        self,
        stored: Mapping[str, pd.DataFrame],
        later: Mapping[str, Callable[[], pd.DataFrame]] | None = None,
        by_run: Mapping[str, Rows] | None = None,
        left_out: Iterable[str] = (),
    ) -> None:
        inner = stored if isinstance(stored, Frames) else None
        self.stored: dict[str, pd.DataFrame] = dict(stored if inner is None else inner.stored)
        self.later: dict[str, Callable[[], pd.DataFrame]] = {**({} if inner is None else inner.later), **(later or {})}
        self.by_run: dict[str, Rows] = {**({} if inner is None else inner.by_run), **(by_run or {})}
        self.left_out: tuple[str, ...] = tuple(left_out) or (() if inner is None else inner.left_out)
        self._made: dict[str, pd.DataFrame] = {}
        self._in_memory: dict[str, InMemory] = {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        if name in self.stored:
            return self.stored[name]
        if name not in self:
            raise KeyError(name)
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> pd.DataFrame:
        if name in self.later:
            return self.later[name]()
        if name in self.by_run:
            return self.by_run[name].whole()
        how = DERIVED[name]
        return how.make(*(self[needed] for needed in how.needs), *(self.get(taken) for taken in how.takes))

    def rows(self, name: str) -> Rows | None:
        """A frame's rows, to be read run by run; None where there is no such frame. What was read already is not read again."""
        if name not in self:
            return None
        if name in self.by_run and name not in self._made:
            return self.by_run[name]
        if name == "gradients" and name not in self._made and "heldout" in self.by_run:
            return self._gradients
        if name not in self._in_memory:
            self._in_memory[name] = InMemory(name, self[name])
        return self._in_memory[name]

    @cached_property
    def _gradients(self) -> Rows:
        """`gradients` of each run, from its own rows of `heldout` and `norms`; held, since processes that are forked must not
        derive them: torch's threads do not follow."""
        held, norms, runs = self.by_run["heldout"], self.rows("norms"), self["runs"]

        @lru_cache(maxsize=512)
        def of_run(run: str) -> pd.DataFrame:
            return gradients(runs, held.of([run]), None if norms is None else norms.of([run]))

        return Rows("gradients", held.runs, lambda run, columns: of_run(run))

    def __contains__(self, name: object) -> bool:
        known = name in self.stored or name in self.later or name in self.by_run
        return known or (name in DERIVED and all(n in self for n in DERIVED[str(name)].needs))

    def __iter__(self) -> Iterator[str]:
        known = {**self.stored, **self.later, **self.by_run}
        yield from known
        yield from [name for name in DERIVED if name not in known and name in self]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        held = list(self._held())
        widths = [max((len(line[k]) for line in held), default=0) for k in (0, 1)]
        lines = [f"{name:<{widths[0]}}  {amount:>{widths[1]}}  {row}".rstrip() for name, amount, row in held]
        return "\n".join([self._headline(), *lines])

    def _repr_html_(self) -> str:
        heads = "<tr><th>frame</th><th>holds</th><th>a row is</th></tr>"
        cells = ("".join(f"<td>{escape(text)}</td>" for text in line) for line in self._held())
        body = "".join(f"<tr>{line}</tr>" for line in cells)
        return f"<p>{escape(self._headline())}</p><table><thead>{heads}</thead><tbody>{body}</tbody></table>"

    def _headline(self) -> str:
        """`Frames of 16 runs; setting: 'smollm2'`. Names come from data, so they are quoted with escapes."""
        if "runs" not in self.stored:
            return "Frames"
        runs = self.stored["runs"]
        names = [repr(str(name)) for name in runs["setting"].unique()]
        more = f" and {len(names) - MOST_SETTINGS} more" if len(names) > MOST_SETTINGS else ""
        settings = f"setting{_s(len(names))}: {', '.join(names[:MOST_SETTINGS])}{more}"
        return f"Frames of {len(runs):,} run{_s(len(runs))}; {settings}"

    def _held(self) -> Iterator[tuple[str, str, str]]:
        """Of each frame: its name, how many rows are in memory or when they will be, and what a row is. Nothing is read or
        made for it."""
        for name in self:
            if name in self.stored or name in self._made:
                amount = f"{len(self[name]):,} row{_s(len(self[name]))}"
            else:
                amount = "read when asked for" if name in self.by_run else "made when asked for"
            yield (name, amount, FRAMES[name].row) if name in FRAMES else (repr(name), amount, "")

    def of_runs(self, runs: Iterable[str]) -> Frames:
        """Only the rows of these runs. Frames without a column `run` stay whole, and derived frames are computed anew."""
        kept = set(runs)

        def rows(name: str) -> pd.DataFrame:
            frame = self[name]
            return frame[frame["run"].isin(kept)] if "run" in frame else frame

        by_run = {name: rows.only(kept) for name, rows in self.by_run.items()}
        later = {name: partial(rows, name) for name in self.later}
        return Frames({name: rows(name) for name in self.stored}, later, by_run)


def _s(count: int) -> str:
    """The plural's."""
    return "" if count == 1 else "s"
