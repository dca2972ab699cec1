"""Whether two arms had equal chances: where the values of their losses come from, and after how many trials.

A difference between two losses says something about the losses only where both were treated alike: searched with the same
number of trials, left at their defaults, or given the paper's values. The columns `values` and `trials` of the `runs` frame
say which.
"""

from __future__ import annotations

import math

import pandas as pd

from pobench.results.arms import Arm, of_arm

WORDS = {"default": "default", "paper": "paper", "set": "set by hand", "": "not stored"}


def values_of(runs: pd.DataFrame, arm: Arm) -> str:
    """For readers: `tuned (8 trials)`, `default`, `paper`, `set by hand`; `–` for a start model; `not stored` for runs of
    earlier versions. Several, with `, ` between them, where the runs of an arm differ in it."""
    if arm.is_start:
        return "–"
    return ", ".join(sorted(_words(*origin) for origin in _origins(runs, arm)))


def equally_tuned(runs: pd.DataFrame, a: Arm, b: Arm) -> bool:
    """Whether a difference between two arms may be called one between what they name.

    True where both are tuned with the same number of trials, both at defaults, or both at the paper's values. A start model
    goes with any arm. So do two arms of one loss: they differ in a value, and that value is what is compared. Values set by
    hand go with no other loss, not even with values set by hand: nothing stored says how many were tried before, and a
    hand may have picked the best of a hundred. Nor does an arm of an earlier version, which stored nothing.
    """
    if a.is_start or b.is_start or a.loss == b.loss:
        return True
    ours, theirs = _origins(runs, a), _origins(runs, b)
    return len(ours) == 1 and ours == theirs and not {values for values, _ in ours} & {"set", ""}


def trials_of(runs: pd.DataFrame, arm: Arm) -> int:
    """How many trials of a search chose the arm's values; 0 where no search did, or not that of all its runs."""
    origins = _origins(runs, arm)
    return min(int(trials) if values == "tuned" else 0 for values, trials in origins)


def _origins(runs: pd.DataFrame, arm: Arm) -> set[tuple[str, float]]:
    """(values, trials) of the arm's runs; 0 trials where none were made."""
    rows = of_arm(runs, arm).reindex(columns=["values", "trials"])
    return {
        ("" if pd.isna(values) else str(values), 0.0 if pd.isna(trials) else float(trials))
        for values, trials in zip(rows["values"], rows["trials"], strict=True)
    }


def _words(values: str, trials: float) -> str:
    if values != "tuned":
        return WORDS.get(values, values)
    return f"tuned ({trials:g} trial{'' if math.isclose(trials, 1) else 's'})"
