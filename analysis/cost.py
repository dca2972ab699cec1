"""Table `cost`: time, memory and tokens of training each loss."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import arms_of, of_arm


@register_table("cost", title="Cost of training", chapter="methods", order=430)
def cost(runs: pd.DataFrame) -> pd.DataFrame:
    """Wall time of training alone, peak memory of the process or device, and useful tokens (padding not counted); the
    mean over seeds. Comparable only between runs on the same, otherwise idle machine."""
    rows = []
    for arm in arms_of(runs):
        if arm.is_start:
            continue
        means = (
            of_arm(runs, arm)[["seconds", "peak_memory", "tokens", "pairs"]]
            .apply(pd.to_numeric, errors="coerce")
            .mean()
        )
        rows.append(
            {
                "Loss": arm.label,
                "Seconds": means["seconds"],
                "Peak memory, GB": means["peak_memory"] / 1e9,
                "Tokens": means["tokens"],
                "Tokens per second": means["tokens"] / means["seconds"] if means["seconds"] > 0 else float("nan"),
            }
        )
    table = pd.DataFrame(rows)
    if table.empty or table.drop(columns="Loss").isna().all(axis=None):
        raise NothingToDraw("No run has recorded its cost.")
    return table
