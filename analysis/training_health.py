"""Table `training-health`: signs of collapse in log-probabilities and answers."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import arms_of, score_of
from pobench.types import Estimate

METRICS = ["chosen_logp_shift", "rejected_logp_shift", "length_tokens", "repetition", "distinct_2", "unfinished"]

# Limits of the warnings. Chosen by hand as changes that a reader would notice; not published, no test of significance.
LONGER, SHORTER = 1.5, 0.5  # times the start model's length
REPEATS, CUT, POORER = 0.05, 0.10, -0.10  # change of repetition, unfinished, distinct bigrams
DROP = -0.5  # nats per token on the winners: each of their tokens became 1.6 times less likely


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
            "Warnings": "; ".join([] if arm.is_start else warnings(estimates[arm.id], start)),
            "Both sides": both_sides(estimates[arm.id]["chosen_logp_shift"], estimates[arm.id]["rejected_logp_shift"]),
            **estimates[arm.id],
        }
        for arm in arms
        if any(not math.isnan(e.value) for e in estimates[arm.id].values())
    ]
    if not rows:
        raise NothingToDraw("No run has been scored.")
    return pd.DataFrame(rows)


def warnings(estimates: dict[str, Estimate], start: dict[str, Estimate]) -> list[str]:
    """A phrase for each limit that is exceeded. estimates, start: metric → estimate, of the arm and of the start model."""
    exceeded = []
    if estimates["chosen_logp_shift"].value < DROP:
        exceeded.append(f"winners lost {-estimates['chosen_logp_shift'].value:.2f} nats per token")
    times = _divide(estimates["length_tokens"].value, start["length_tokens"].value)
    if times > LONGER or times < SHORTER:
        exceeded.append(f"answers {times:.1f} times as long")
    for metric, limit, words in (
        ("repetition", REPEATS, "more repetition"),
        ("unfinished", CUT, "more answers cut off"),
    ):
        if estimates[metric].value - start[metric].value > limit:
            exceeded.append(words)
    if estimates["distinct_2"].value - start["distinct_2"].value < POORER:
        exceeded.append("less varied words")
    return exceeded


def both_sides(chosen: Estimate, rejected: Estimate) -> str:
    """What training did to the likelihood of both answers: `no gap` where the rejected one gained on the chosen."""
    up, down = chosen.value, rejected.value
    if math.isnan(up) or math.isnan(down):
        return ""
    if up < 0 and down < 0:
        return "both fell" if down < up else "both fell, no gap"
    if up >= 0 and down >= 0:
        return "both rose" if up > down else "both rose, no gap"
    return "moved apart" if up >= 0 else "wrong way"


def _divide(a: float, b: float) -> float:
    return a / b if b and not math.isnan(b) else math.nan
