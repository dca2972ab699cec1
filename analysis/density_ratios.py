"""Table `density-ratios`: how well prompts of desirable answers are told from those of undesirable ones, and the weights that
follow."""

from __future__ import annotations

from typing import Any

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import START_EMBEDS, arms_of, json_object, of_arm


@register_table("density-ratios", title="Density ratios of prompts", chapter="methods", order=425)
def density_ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """Of losses that weigh undesirable answers by how much their prompts are like those of desirable ones: the classifier of
    prompts by its AUC and balanced accuracy on prompts that it has not seen (0.5: it cannot tell them apart), and quantiles of
    the ratios of undesirable answers, before the loss clips them. "Below 0.5" and "above 10" are the shares that BCO clips by
    default. A dash where every ratio is 1: with one kind of answer alone, or too few prompts."""
    rows = []
    for arm in arms_of(runs):
        for text in dict.fromkeys(of_arm(runs, arm).get("density_ratio", pd.Series(dtype=object)).dropna()):
            if facts := json_object(text):
                rows.append({"Loss": arm.label, **_row(facts)})
    if not rows:
        raise NothingToDraw("No loss read density ratios.")
    return pd.DataFrame(rows)


def _row(facts: dict[str, Any]) -> dict[str, Any]:
    nan = float("nan")
    names = ("5 %", "25 %", "Median", "75 %", "95 %")
    return {
        "Embedded by": facts.get("embedder") or START_EMBEDS,
        **{name.capitalize(): facts.get(name, nan) for name in ("desirable", "undesirable", "prompts")},
        **{"AUC": facts.get("auc", nan), "Balanced accuracy": facts.get("accuracy", nan)},
        **dict(zip(names, facts.get("quantiles", [nan] * len(names)), strict=True)),
        **{"Below 0.5, %": 100 * facts.get("below", nan), "Above 10, %": 100 * facts.get("above", nan)},
    }
