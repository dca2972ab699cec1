"""Who is judged against whom: the start model alone, one loss, or every loss of the command."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pobench.composition import split
from pobench.errors import PobenchError
from pobench.registry import get_loss, judges
from pobench.runs.task import Task

START, ALL = "start", "all"


def with_opponents(losses: str | Sequence[str], opponents: str) -> tuple[list[str], str]:
    """(the losses of the command with the opponent among them, `start`, `all` or the opponent's registered name).

    Raises PobenchError for a name that is none of these.
    """
    names = split(losses) if isinstance(losses, str) else list(losses)
    if opponents in (START, ALL):
        return names, opponents
    try:
        opponent = get_loss(opponents).name
    except PobenchError as error:
        raise PobenchError(f"--opponents: {error}; or `{START}`, or `{ALL}`") from None
    return [*names, opponent], opponent


def pairs_of(evaluations: Sequence[Task], opponents: str) -> list[tuple[Task, Task]]:
    """The two sides of every comparison of one seed, in one order whatever the order of the losses.

    evaluations: of trained models. opponents: `start`, `all`, or the name of the loss that stands on one side.
    """
    if opponents == START:
        return []
    in_order = sorted(evaluations, key=lambda task: task.run)
    return [
        (a, b)
        for a, b in combinations(in_order, 2)
        if a.job.seed == b.job.seed and (opponents == ALL or (a.job.loss == opponents) != (b.job.loss == opponents))
    ]


def why_none(evaluations: Sequence[Task], opponents: str) -> str:
    """A sentence where nothing is judged head to head although opponents are named; "" elsewhere."""
    job = evaluations[0].job
    name = job.judge.name if job.answers.source is not None else None
    if opponents == START:
        return ""
    if name is None or not judges.get(name).compares:
        how = "no answer is judged" if name is None else f"the judge {name} scores every answer by itself"
        return f"--opponents {opponents}: {how}, so nothing more is judged; losses are compared by scores, prompt by prompt"
    if not pairs_of(evaluations, opponents):
        return f"--opponents {opponents}: the command trains no two losses that could meet"
    return ""
