"""Table `looked-before`: comparisons whose runs were added to after a report, with intervals that hold at every look."""

from __future__ import annotations

import pandas as pd

from pobench.columns import FRAMES
from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import arms_of
from pobench.results.earlier_looks import looked_again, warning
from pobench.results.stats import excludes

MOST_PAIRS = 15  # rows of pairs of losses on the page; of more, the CSV has them


@register_table("looked-before", title="Looked at before", chapter="results", order=27)
def looked_before(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    looks: pd.DataFrame,
    answers: pd.DataFrame | None = None,
    comparisons: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Differences in mean score, in points, whose runs were added to after a report had shown them. Looks: how many distinct
    sets of their finished runs reports were made of, this one counted. The 95 % interval holds for a single look, and who
    adds seeds until it excludes 0 errs more often than one time in twenty. The interval at any time spends half of the
    error that is left at each look, so that all of them together hold with 95 %, however many follow."""
    found = looked_again(runs, verdicts, answers, looks, arms_of(runs), comparisons)
    if not found:
        raise NothingToDraw(f"{FRAMES['looks'].absent}.")
    rows = [
        {
            "Loss": again.ours.label,
            "Minus": again.theirs.label,
            "Seeds": again.fixed.seeds,
            "Looks": again.looks,
            "At a single look": again.fixed.estimate,
            "At any time": again.any_time.estimate,
        }
        for again in found
    ]
    of_start = [row for row, again in zip(rows, found, strict=True) if again.theirs.is_start]
    pairs = [row for row, again in zip(rows, found, strict=True) if not again.theirs.is_start]
    table = pd.DataFrame([*of_start, *(pairs if len(pairs) <= MOST_PAIRS or not of_start else [])])
    table.attrs["data"] = pd.DataFrame(rows)
    table.attrs["summary"] = warning({(again.ours, again.theirs): again.looks for again in found})
    only = sum(excludes(again.fixed.estimate) and not excludes(again.any_time.estimate) for again in found)
    notes = [f"Of {len(found)} comparisons, {only} differ at a single look and not at any time."]
    if len(table) < len(rows):
        notes.append(f"The CSV has each of the {len(pairs)} pairs of losses.")
    table.attrs["notes"] = " ".join(notes)
    return table
