"""Judges: one file each, registered by decorator, found by name.

A pointwise judge looks at one answer:

    judge.score(row, text, finished=True) -> float in [0, 1]; nan where it has no opinion

A pairwise judge compares two answers to one prompt, in both orders, averaged:

    judge.judge(prompt, a, b) -> P(b is better) in [0, 1]; nan where no verdict could be read
    judge.judge_many(comparisons) -> the same for many at once, with both orders kept; see `pobench.judging.pairwise`

`row` is the prompt's row as stored: at least `id` and `prompt`, and whatever the judge needs (`check` for the
verifiable one). A judge may have either method or both; nan is dropped and counted, never guessed. A factory
decorated with `@register_judge(name)` takes settings as keywords and returns the judge; it loads no model and asks
nobody before the first verdict is wanted. The decorator also says what others must know of a judge before it is made:
`free`, `compares` (it looks at two answers), `offline`.

A reward model's score ranks answers but is no grade: it has no bounds, and no zero. Such a judge says `bounded = False`;
its scores order the answers to one prompt (`pobench.workflows.onpolicy`), and are never averaged or called a pass rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class PointwiseJudge(Protocol):
    """Scores one answer on its own."""

    name: str

    def score(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        """In [0, 1] unless `bounded` is False, higher is better; nan without an opinion. finished: the model ended the
        answer itself."""
        ...


@runtime_checkable
class PairwiseJudge(Protocol):
    """Compares two answers to one prompt."""

    name: str

    def judge(self, prompt: Any, a: str, b: str) -> float:
        """P(b is better than a) in [0, 1], both orders averaged; nan where no verdict could be read."""
        ...


def grades(judge: Any) -> bool:
    """Whether the judge gives single answers a score in [0, 1]; else it compares."""
    return isinstance(judge, PointwiseJudge) and bool(getattr(judge, "bounded", True))
