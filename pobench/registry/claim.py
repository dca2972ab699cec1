"""Claims: what a statistic of the runs would have to be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pobench.errors import PobenchError
from pobench.registry.named import Registry


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: the true value of a statistic lies between `above` and `below`; see `pobench.results.claims`."""

    name: str
    function: Callable[..., Any]  # the statistic: f(Evidence) -> Measured
    says: str
    statistic: str
    unit: str
    subject: str  # one of `SUBJECTS`
    paper: float | None  # the same statistic of the paper's printed numbers; None: not printed
    where: str  # their table or figure; "" for a claim of ours
    above: float
    below: float
    smallest: float  # the smallest effect of interest, in the statistic's unit
    neutral: float  # the value of "no difference"
    identity: bool  # true by the loss's definition: a check of the program, not evidence
    across: bool  # compares settings: its function takes the `Settings` of all groups of runs, not the evidence of one

    @property
    def order(self) -> tuple[int, bool]:
        """The place in a table: by subject, claims of ours last."""
        return SUBJECTS.index(self.subject), not self.where


SUBJECTS = (
    *("Quality of answers", "Length", "Rewards and likelihoods", "Several settings", "Benchmarks", "Time and memory"),
    "Of your own",
)
claims: Registry[Claim] = Registry("claim", "pobench.analysis")


FAR = math.inf


def register_claim(
    name: str,
    *,
    says: str,
    statistic: str,
    unit: str,
    subject: str = SUBJECTS[-1],
    paper: float | None = None,
    where: str = "",
    above: float = -FAR,
    below: float = FAR,
    smallest: float | None = None,
    neutral: float = 0.0,
    identity: bool = False,
    across: bool = False,
) -> Callable[..., Any]:
    """Register a claim, a function `f(Evidence) -> Measured`; `pobench.results.claims` makes the usual ones. across: it
    compares settings, and is `f(Settings) -> Measured`, see `pobench.results.across`.

    subject: one of `SUBJECTS`. above, below: ends of the claimed range, in `unit`. smallest: the smallest effect of interest;
    default: a quarter of the paper's effect. Raises PobenchError where neither is given, and where the range has no end.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if above == -FAR and below == FAR:
            raise PobenchError(f"claim {name!r} excludes nothing: give `above` or `below`")
        if smallest is None and not paper:
            raise PobenchError(
                f"claim {name!r} has no number of the paper: give `smallest`, the smallest effect of interest"
            )
        least = abs((paper or 0.0) - neutral) / 4 if smallest is None else smallest
        facts = (says, statistic, unit, subject, paper, where, above, below, least, neutral, identity, across)
        claims.add(Claim(name, function, *facts))
        return function

    return register
