"""Looks: the sets of finished runs that reports were made of, and intervals that hold at every one of them.

Who adds seeds because a report was undecided, and stops when it is decided, errs more often than 5 %: each look is a
chance. So every report leaves its set of finished runs beside them, `runs/<setting>/looks/<12 hex>.json`, named by content:
the same runs again are the same file, and the same report. A report of some runs of an arm, such as a study's, is a look at
all finished runs of that arm: they were there to be seen. A comparison's look is what of such a set belongs to its two
arms; looks that differ in other arms are one.

At the k-th look an interval AT ANY TIME spends the error 5 % / 2^k, so all looks together spend less than 5 % however many
follow (Bonferroni; error spending, Lan and DeMets 1983). It assumes nothing but that each single interval holds at its level.
Simulated without any difference, with a look at 3, 4, … 10 seeds (30 prompts, seed effects none to strong): some interval
excludes 0 in 8 to 15 % of 1000 repetitions at a single look's level, and in 1.1 to 3.4 % at any time.
Confidence sequences from martingales or from the normal limit (Howard et al. 2021; Waudby-Smith et al. 2021) are narrower after
many looks, but they need either the exact variance or dozens of independent units before the first look; three to ten
seeds, whose variance is estimated from themselves, are neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pobench.errors import CorruptError
from pobench.files import OTHER_BYTES, write_json
from pobench.identity import name_of
from pobench.results import contrast
from pobench.results.arms import Arm, arms_of
from pobench.results.contrast import Contrast
from pobench.results.crossed import LEVEL
from pobench.results.groups import prompt_groups

FOLDER = "looks"


def record_look(folder: Path, shown: pd.DataFrame, stored: pd.DataFrame) -> None:
    """Store the finished runs of every arm that a report showed, setting by setting, below the runs' folder. Where that cannot
    be written, nothing is stored.

    shown: the frame `runs` that the report was made of. stored: the same frame of all runs there are.
    """
    arms = arms_of(stored)
    looked_at = {run for arm in arms if not {*arm.runs}.isdisjoint(shown["run"]) for run in arm.runs}
    finished = stored[(stored["status"] == "finished") & stored["run"].isin(looked_at)]
    for setting, members in finished.groupby("setting", sort=True):
        look = {"runs": sorted(members["run"].astype(str))}
        path = folder / str(setting) / FOLDER / f"{name_of(look)}.json"
        try:
            if not path.is_file():
                write_json(path, look)
        except OSError:
            continue


def stored_looks(folder: Path, setting: str) -> list[dict[str, Any]]:
    """Rows of the frame `looks`. Raises CorruptError for a file that holds other runs than its name says."""
    rows = []
    for path in sorted((folder / setting / FOLDER).glob("*.json")):
        try:
            runs = [str(run) for run in json.loads(path.read_text(encoding="utf-8"))["runs"]]
        except (ValueError, KeyError, TypeError):
            runs = []
        if name_of({"runs": runs}) != path.stem:
            raise CorruptError(path, f"{OTHER_BYTES}; remove it, and this look is not counted")
        rows += [{"setting": setting, "look": path.stem, "run": run} for run in runs]
    return rows


# ---------------------------------------------------------------- comparisons that were looked at before
Sides = tuple[Arm, Arm]


def looks_at(looks: pd.DataFrame, runs: pd.DataFrame, arms: Sequence[Arm]) -> dict[Sides, int]:
    """Each two arms whose finished runs were added to after a look at both → the number of looks, this one counted."""
    finished = frozenset(runs.loc[runs["status"] == "finished", "run"])
    seen = [frozenset(members) for _, members in looks.groupby(["setting", "look"], sort=True)["run"]]
    own = {arm: finished.intersection(arm.runs) for arm in arms}
    added_to = {arm for arm in arms if any(0 < len(look & own[arm]) < len(own[arm]) for look in seen)}
    counts = {}
    for pair in combinations(arms, 2) if added_to else ():
        if added_to.isdisjoint(pair):
            continue
        ours, theirs = (own[arm] for arm in pair)
        earlier = {look & (ours | theirs) for look in seen if look & ours and look & theirs} - {ours | theirs}
        if earlier:
            counts[pair] = len(earlier) + 1
    return counts


def level_at(look: int) -> float:
    """The level of an interval at the k-th look, k from 1, so that those of all looks hold together with 95 %."""
    return 1.0 - (1.0 - LEVEL) / 2**look


class Again(NamedTuple):
    """A comparison (ours - theirs, in points) that was looked at before. fixed: as for a single look; any_time: at
    `level_at`."""

    ours: Arm
    theirs: Arm
    looks: int
    fixed: Contrast
    any_time: Contrast


def looked_again(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None,
    looks: pd.DataFrame,
    arms: Sequence[Arm],
    comparisons: pd.DataFrame | None = None,
) -> list[Again]:
    """The judged comparisons of `looks_at`; the start model stands second."""
    groups = prompt_groups(answers)
    found = []
    for (first, second), count in looks_at(looks, runs, arms).items():
        ours, theirs = (second, first) if first.is_start else (first, second)
        a, b = (contrast.scores(verdicts, runs, arm) for arm in (ours, theirs))
        won = contrast.by_seed(contrast.met(comparisons, verdicts, ours, theirs), runs, "prompt", "score")
        fixed, any_time = (contrast.difference(a, b, won, groups, level) for level in (LEVEL, level_at(count)))
        if fixed.estimate.n:
            found.append(Again(ours, theirs, count, fixed, any_time))
    return found


def warning(counts: dict[Sides, int]) -> str:
    """A sentence for reader and terminal; "" where no comparison was looked at before."""
    if not counts:
        return ""
    many = f"{len(counts)} comparisons have" if len(counts) > 1 else "One comparison has"
    return (
        f"{many} runs that were added after a report, {max(counts.values())} looks with this one: verdicts, p-values and "
        "95 % intervals hold for a single look. The table “Looked at before” has intervals that hold at every look."
    )
