"""What people read of a benchmark that compares with a baseline: both answers to each question, and the judge's words.

The rows of `beside.jsonl`, beside the score; `pobench.results.load` reads them into the frame `benchmark_answers`. A question's
own row has the baseline's answer, as AlpacaEval's or Arena-Hard's files name it, and a stored verdict the judge's words. They
stand here and not in the benchmarks' files, whose code decides the verdicts' names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pobench.judging.pairwise import LONGEST_REASON

FILE = "beside.jsonl"
BASELINES = ("baseline", "output")  # fields of a question's row: Arena-Hard's, AlpacaEval's
SHORT = 3  # characters of a reply that is a verdict and no reason


def baseline_of(row: Mapping[str, Any]) -> str | None:
    """The baseline's answer in a question's row; None of a benchmark without one."""
    return next((row[name] for name in BASELINES if isinstance(row.get(name), str)), None)


def beside_baseline(
    question: str, row: Mapping[str, Any], prompt: str, text: str, verdict: Mapping[str, Any], score: float
) -> dict[str, Any]:
    """A row, in the columns of `benchmark_answers`. row: the question's own. score: 1 won, 0 lost, nan without a verdict."""
    return {
        "question": question,
        "kind": str(row.get("category") or ""),
        "prompt": prompt,
        "text": text,
        "baseline": baseline_of(row),
        "score": None if math.isnan(score) else score,
        "reason": said(verdict) or None,
    }


def said(verdict: Mapping[str, Any]) -> str:
    """The judge's words on one question: of both games where there are two; "" where it wrote a verdict alone."""
    games = verdict.get("games")
    if games is None:
        reply = str(verdict.get("raw_completion") or "").strip()
        return reply[:LONGEST_REASON] if len(reply) > SHORT else ""
    orders = ("A: the baseline, B: this answer", "A: this answer, B: the baseline")
    texts = [(order, str(game.get("judgment") or "").strip()) for order, game in zip(orders, games, strict=False)]
    return "\n\n".join(f"[{order}] {text[:LONGEST_REASON]}" for order, text in texts if text)
