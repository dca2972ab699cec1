"""Measure how often a pairwise judge agrees with people, next to the baseline "the longer answer wins" (`pobench judge check`).

The rows are preferences of any shape that `pobench.data.shapes` reads; `chosen` is the answer that a person preferred. If
rows name a subset (`subset`, or `meta.subset`), each subset is also counted alone. Intervals are clustered by prompt.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pobench.data.rows import Preference, as_text, read_rows, refuse
from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError
from pobench.judging.benchmarks.verdict_files import Line, Scored, Verbatim, fingerprint, short
from pobench.judging.pairwise import Comparison, Longer, Progress, Verdict, judge_many
from pobench.results import stats
from pobench.types import Estimate

REASON = 240  # characters of the reason why a pair has no verdict: a server's words


class Case(NamedTuple):
    """A preference as the judge sees it. A hash of the row decides whether the chosen answer is a or b."""

    comparison: Comparison
    chosen_is_b: bool
    subset: str
    prompt: str  # a fingerprint, the cluster

    def right(self, verdict: Verdict) -> float:
        """1 if the judge prefers the chosen answer, 0 if the rejected one, 0.5 for a tie, nan without a verdict."""
        sign = 1 if self.chosen_is_b else -1
        return float(0.5 + 0.5 * np.sign(verdict.probability - 0.5) * sign)


def cases(path: Path | str, limit: int | None = None) -> list[Case]:
    """The preferences of a file. limit: how many, chosen by a hash, so that every subset keeps its share.

    Raises PobenchError that lists the bad rows.
    """
    loaded = load_preferences(path)
    refuse(loaded.faults, source=loaded.source, rows=loaded.rows)
    subsets = {number: _subset(row) for number, row in read_rows(path) if isinstance(row, dict)}
    chosen = sorted(loaded.preferences, key=lambda p: _draw(p, "limit"))[:limit] if limit else loaded.preferences
    return [_case(p, subsets.get(p.row, "")) for p in sorted(chosen, key=lambda p: p.row)]


def _case(p: Preference, subset: str) -> Case:
    chosen_is_b = _draw(p, "side") % 2 == 0
    a, b = (p.rejected, p.chosen) if chosen_is_b else (p.chosen, p.rejected)
    return Case(Comparison(p.prompt, a, b), chosen_is_b, subset, fingerprint(as_text(p.prompt)))


def _draw(p: Preference, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{what} {p.id}".encode("utf-8", "replace")).digest()[:8])


def _subset(row: Mapping[str, Any]) -> str:
    meta = row.get("meta")
    subset = row.get("subset") or (meta.get("subset") if isinstance(meta, Mapping) else None)
    return str(subset or "")


def check(judge: Any, pairs: Sequence[Case], *, data: str = "", progress: Progress | None = None) -> Scored:
    """Agreement of the judge with people on these pairs, and of the longer answer with people on the same pairs.

    Raises PobenchError for a judge that cannot compare two answers.
    """
    if not hasattr(judge, "judge"):
        raise PobenchError(f"judge {judge.name!r} grades single answers; agreement needs one that compares two")
    comparisons = [case.comparison for case in pairs]
    verdicts = judge_many(judge, comparisons, progress)
    right = np.array([c.right(v) for c, v in zip(pairs, verdicts, strict=True)])
    by_length = np.array([c.right(v) for c, v in zip(pairs, Longer().judge_many(comparisons), strict=True)])
    by_length[np.isnan(right)] = math.nan  # the same rows
    prompts = np.array([c.prompt for c in pairs])
    flips, first = (_share([getattr(v, name) for v in verdicts], prompts) for name in ("flipped", "first"))
    over = stats.mean(right - by_length, prompts, bounds=stats.SIGNED)
    shares = {"agreement": _share(right, prompts), "longer": _share(by_length, prompts)}
    by_subset = {}
    for subset in sorted({c.subset for c in pairs} - {""}):
        in_subset = np.array([c.subset == subset for c in pairs])
        by_subset[subset] = {
            "agreement": _share(right[in_subset], prompts[in_subset]),
            "longer": _share(by_length[in_subset], prompts[in_subset]),
        }
    lines = [
        _percent("Agreement, %", shares["agreement"]),
        _percent("“The longer wins”, %", shares["longer"], "no judge: a bias to measure one by"),
        Line("Above it, points", over.scaled(100), "+.1f"),
        *(
            _percent(f"  {subset}", part["agreement"], f"the longer: {_plain(part['longer'])}")
            for subset, part in by_subset.items()
        ),
        _percent("Position flips, %", flips, "another winner in the other order"),
        _percent("First shown wins, %", first, "50 without a liking for a place"),
    ]
    blank = [v.error for v in verdicts if math.isnan(v.probability)]
    values = {
        "pairs": len(pairs),
        "dropped": len(blank),
        **shares,
        "above_longer": over,
        "position_flips": flips,
        "first": first,
        "subsets": by_subset,
        "spent": vars(judge.client.spent) if hasattr(judge, "client") else None,
    }
    return Scored("Agreement with people", data, judge.name, tuple(lines), values, _notes(judge, blank, len(pairs)))


def _notes(judge: Any, blank: Sequence[str], n: int) -> tuple[str, ...]:
    notes = []
    if blank:
        why = Counter(short(Verbatim(error or "no reason given"), REASON) for error in blank).most_common(3)
        notes.append(f"{len(blank)} of {n} pairs have no verdict: dropped. " + "; ".join(f"{k}× {e}" for e, k in why))
    notes += getattr(judge, "notes", ())
    if hasattr(judge, "client"):
        notes.append(f"paid for now: {judge.client.spent}")
    return tuple(notes)


def _share(values: Any, prompts: Any) -> Estimate:
    return stats.mean(values, prompts, bounds=stats.UNIT)


def _percent(title: str, share: Estimate, note: str = "") -> Line:
    return Line(title, share.scaled(100), ".1f", note)


def _plain(share: Estimate) -> str:
    return f"{share.value * 100:.1f}" if share.n else "–"
