"""Table `heldout-by-source`: the held-out pairs of each data set, where several are mixed (`data.sources`)."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results import pair_values, stats
from pobench.results.arms import arms_of, of_arm
from pobench.results.groups import prompts_of
from pobench.results.rows import Rows
from pobench.types import Estimate


@register_table("heldout-by-source", title="Held-out pairs by source", chapter="results", order=41)
def heldout_by_source(runs: pd.DataFrame, heldout: Rows) -> pd.DataFrame:
    """Reward accuracy and margin on the held-out pairs of each source, by each loss's own reward. Held-out pairs are not
    weighed: a mean over all of them gives every source the weight of its number of pairs."""
    seeds, rows = runs.set_index("run")["seed"], []
    for arm in arms_of(runs):
        held = of_arm(heldout, arm)
        if arm.is_start or "source" not in held:
            continue
        for source, of_source in held.groupby("source"):  # without pairs that name none
            rows.append({"Loss": arm.label, "Source": source, **_estimates(of_source, of_source["run"].map(seeds))})
    if not rows:
        raise NothingToDraw("The held-out pairs of these runs come from one source each.")
    return pd.DataFrame(rows)


def _estimates(held: pd.DataFrame, seeds: pd.Series) -> dict[str, Estimate | int]:
    pairs = held["pair"]
    accuracy = pair_values.accuracy(held) / 100
    groups = prompts_of(pairs)
    return {
        "Pairs": pairs.nunique(),
        "reward_accuracy": stats.mean(accuracy, pairs, seeds, groups, bounds=stats.UNIT),
        "margin": stats.mean(pair_values.margin(held), pairs, seeds, groups),
    }
