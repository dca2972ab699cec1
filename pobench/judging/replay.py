"""The replay judge: looks stored scores up by prompt and answer. For rehearsals, tests and teaching.

A row of its file (JSONL, JSON, CSV or Parquet) is one stored verdict:

    {"prompt": "e7", "score": 0.5}                          for any answer to this prompt
    {"prompt": "e7", "text": "An answer.", "score": 1.0}    for exactly this answer

A missing verdict or a null score is no opinion: the judge returns nan, which is dropped and counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pobench.data.rows import read_rows
from pobench.errors import PobenchError
from pobench.registry import register_judge


class Replay:
    """A pointwise judge over a table: (prompt, text) → score, or (prompt, None) → score of any answer."""

    name = "replay"

    def __init__(self, scores: Mapping[tuple[str, str | None], float]) -> None:
        self.scores = scores

    def score(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        """The stored score of exactly this answer, else of any answer to the prompt; nan if there is none."""
        prompt = str(row["id"])
        return self.scores.get((prompt, text), self.scores.get((prompt, None), math.nan))


@register_judge("replay", offline=True)
def replay(*, file: str = "") -> Replay:
    """Stored scores, looked up by prompt and answer. file: the stored verdicts.

    Raises PobenchError that lists every row without a valid verdict.
    """
    if not file:
        raise PobenchError("judge.settings.file: the replayed judge needs the file of the verdicts to replay")
    scores: dict[tuple[str, str | None], float] = {}
    faults = []
    for number, row in read_rows(file):
        score = row.get("score") if isinstance(row, dict) else None
        if not isinstance(row, dict) or "prompt" not in row or "score" not in row:
            faults.append(f"{file}: row {number}: a verdict holds `prompt` and `score`")
        elif score is not None and not (isinstance(score, int | float) and 0 <= score <= 1):
            faults.append(f"{file}: row {number}, 'score': got {score!r}; a number in [0, 1] or null is needed")
        else:
            scores[str(row["prompt"]), row.get("text")] = math.nan if score is None else float(score)
    if faults:
        raise PobenchError("\n".join(faults))
    return Replay(scores)
