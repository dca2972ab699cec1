"""The longer answer wins: a bias, printed beside every judge of pairs, and never offered as one of quality.

It agrees with people on a third to more than two thirds of the pairs, depending on the data: what a judge adds to it
is what the judge knows. So it is in no list of judges.
"""

from __future__ import annotations

from collections.abc import Sequence

from pobench.judging.pairwise import Comparison, Progress, Verdict


class Longer:
    """More characters win; equally many tie."""

    name = "longer"

    def judge_many(self, comparisons: Sequence[Comparison], progress: Progress | None = None) -> list[Verdict]:
        return [Verdict(p, p, p) for p in (self.judge(*c) for c in comparisons)]

    def judge(self, prompt: object, a: str, b: str) -> float:
        return 0.5 + 0.5 * ((len(b) > len(a)) - (len(b) < len(a)))
