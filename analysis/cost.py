"""Table `cost`: time, memory and tokens of training each loss."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import arms_of, of_arm
from pobench.results.few_runs import timed_on

NUMBERS = ["seconds", "waited", "reference_seconds", "peak_memory", "tokens"]


@register_table("cost", title="Cost of training", chapter="methods", order=430)
def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Wall time of the training steps; beside it that of the stored reference pass, done once and shared by all runs that read
    it (0: none, or in the steps themselves, where the reference is `every_step`); peak memory of the process or device; useful
    tokens (padding not counted). Means over seeds. Comparable only between runs on the same part of the same, otherwise idle
    machine: "trained on" is that part, where it is stored, and "waited" the share of the steps' time in which other work had
    the processor. A time with more than 4.5 % decides no claim."""
    rows = []
    for arm in arms_of(runs):
        own = of_arm(runs, arm)
        kinds = [] if arm.is_start else own.groupby(["reference", timed_on(own)], dropna=False, sort=True)
        for (kind, part), members in kinds:
            means = members.reindex(columns=NUMBERS).apply(pd.to_numeric, errors="coerce").mean()
            rows.append(
                {
                    "Loss": arm.label,
                    "Trained on": part.removeprefix("on "),
                    "Reference": kind if isinstance(kind, str) and kind else "none",
                    "Seconds": means["seconds"],
                    "Waited, %": 100 * means["waited"] / means["seconds"],
                    "Reference pass, s": means["reference_seconds"],
                    "Peak memory, GB": means["peak_memory"] / 1e9,
                    "Tokens": means["tokens"],
                    "Tokens per second": means["tokens"] / means["seconds"] if means["seconds"] > 0 else float("nan"),
                }
            )
    table = pd.DataFrame(rows)
    if table.empty or table[["Seconds", "Peak memory, GB", "Tokens"]].isna().all(axis=None):
        raise NothingToDraw("No run has recorded its cost.")
    return table if table["Trained on"].any() else table.drop(columns="Trained on")
