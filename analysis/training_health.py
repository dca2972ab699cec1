"""Table `training-health`: signs of collapse in log-probabilities and answers."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import arms_of, score_of
from pobench.results.health import METRICS, alarms, both_sides
from pobench.types import Estimate


@register_table("training-health", title="Health of training and answers", chapter="training", order=205)
def training_health(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Shifts are policy minus start model on held-out answers, in nats per token. Moved apart: the chosen
    rose and the rejected fell; no gap: the rejected one gained on the chosen. A warning appears when answers are
    over 1.5 or under 0.5 times as long as the start model's, repeat 5 points more, are cut off 10 points more often,
    use 10 points fewer distinct bigrams, or when winners lost over 0.5 nats per token. These limits are our own
    rules of thumb."""
    arms = arms_of(runs)
    estimates = {arm.id: {m: score_of(scores, arm, m) for m in METRICS} for arm in arms}
    start = next((estimates[arm.id] for arm in arms if arm.is_start), {m: Estimate.missing() for m in METRICS})
    rows = [
        {
            "Loss": arm.label,
            "Warnings": "; ".join(alarm.words for alarm in ([] if arm.is_start else alarms(estimates[arm.id], start))),
            "Both sides": both_sides(estimates[arm.id]["chosen_logp_shift"], estimates[arm.id]["rejected_logp_shift"]),
            **estimates[arm.id],
        }
        for arm in arms
        if any(not math.isnan(e.value) for e in estimates[arm.id].values())
    ]
    if not rows:
        raise NothingToDraw("No run has been scored.")
    return pd.DataFrame(rows)
