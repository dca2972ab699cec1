"""Judges: one file each, registered by decorator, found by name.

A pointwise judge looks at one answer:

    judge.score(row, text, finished=True) -> float in [0, 1]; nan if it has no opinion

If its score is pass or fail, it may also say how far the answer came, given the same arguments:

    judge.grade(row, text, finished=True) -> float in [0, 1], 1 where the answer passes; nan if it has no opinion

Any of them may say why in a few words, which the answers' reader shows:

    judge.reason(row, text, finished=True) -> str; "" if it has nothing to say

A pairwise judge compares two answers to one prompt, in both orders, and averages:

    judge.judge(prompt, a, b) -> P(b is better) in [0, 1]; nan if no verdict could be read
    judge.judge_many(comparisons) -> the same for many at once, with the verdicts of both orders; see `pairwise.py`
    judge.margins(comparisons) -> if it has this, log-odds that b is better, summed over both orders: what answers are ranked by

`row` is the prompt's stored row: `id`, `prompt`, and the fields that the judge reads (`check` for the verifiable judge).
A judge may have either method or both. A nan verdict is dropped and counted.

A factory decorated with `@register_judge(name)` takes settings as keywords and returns the judge. It loads its model or
connects only for the first verdict. The decorator declares facts that a plan needs before the judge is made: `free`,
`compares` (it looks at two answers), `offline`.

A reward has no bounds and no zero, so a reward model ranks answers but does not grade them. Such a judge has
`bounded = False`; its scores order the answers to one prompt (`pobench.runs.onpolicy`), and nothing averages them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class PointwiseJudge(Protocol):
    """Scores one answer on its own."""

    name: str

    def score(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        """The answer's score, higher is better; in [0, 1] unless `bounded` is False; nan without an opinion.

        finished: whether the model ended the answer itself.
        """
        ...


@runtime_checkable
class PairwiseJudge(Protocol):
    """Compares two answers to one prompt."""

    name: str

    def judge(self, prompt: Any, a: str, b: str) -> float:
        """P(b is better than a) in [0, 1], averaged over both orders; nan if no verdict could be read."""
        ...


def grades(judge: Any) -> bool:
    """Whether the judge scores single answers in [0, 1]; otherwise it compares or ranks."""
    return isinstance(judge, PointwiseJudge) and bool(getattr(judge, "bounded", True))
