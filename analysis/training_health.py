"""Did a model collapse? What training did to both sides of a pair, and to the answers."""

from __future__ import annotations

import math

import pandas as pd

from pobench import stats
from pobench.plot import NothingToDraw
from pobench.registry import register_table
from pobench.types import Estimate

METRICS = ["chosen_logp_shift", "rejected_logp_shift", "length_tokens", "repetition", "distinct_2", "unfinished"]

# When to speak up. Chosen by hand as "a reader would notice": not published, and no test of significance.
LONGER, SHORTER = 1.5, 0.5  # times the start model's length
REPEATS, CUT, POORER = 0.05, 0.10, -0.10  # change of repetition, unfinished, distinct bigrams
DROP = -0.5  # nats per token on the winners: each of their tokens became 1.6 times less likely


@register_table("training-health", title="Health of training and answers", order=205)
def training_health(runs: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Shifts are policy minus start model on held-out answers, in nats per token. The last column says what to look at;
    it speaks up when answers are over 1.5 or under 0.5 times as long as the start model's, repeat 5 points more, are cut
    off 10 points more often, use 10 points fewer distinct bigrams, or when winners lost over 0.5 nats per token. These
    limits are rules of thumb of ours."""
    arms = stats.arms(runs)
    found = {arm.id: {m: stats.score_of(scores, arm, m) for m in METRICS} for arm in arms}
    start = next((found[arm.id] for arm in arms if arm.is_start), {m: Estimate.missing() for m in METRICS})
    rows = [
        {"Loss": arm.label, **found[arm.id], "What to look at": "" if arm.is_start else remark(found[arm.id], start)}
        for arm in arms
        if any(not math.isnan(e.value) for e in found[arm.id].values())
    ]
    if not rows:
        raise NothingToDraw("No run has been scored.")
    return pd.DataFrame(rows)


def remark(ours: dict[str, Estimate], start: dict[str, Estimate]) -> str:
    """What happened to both sides, and each limit that was passed."""
    said = [both_sides(ours["chosen_logp_shift"], ours["rejected_logp_shift"])]
    if ours["chosen_logp_shift"].value < DROP:
        said.append(f"winners lost {-ours['chosen_logp_shift'].value:.2f} nats per token")
    times = _divide(ours["length_tokens"].value, start["length_tokens"].value)
    if times > LONGER or times < SHORTER:
        said.append(f"answers {times:.1f} times as long")
    for metric, limit, words in (("repetition", REPEATS, "more repetition"), ("unfinished", CUT, "more answers cut off")):
        if ours[metric].value - start[metric].value > limit:
            said.append(words)
    if ours["distinct_2"].value - start["distinct_2"].value < POORER:
        said.append("less varied words")
    return "; ".join(s for s in said if s)


def both_sides(chosen: Estimate, rejected: Estimate) -> str:
    """What training did to the likelihood of both answers, in words."""
    up, down = chosen.value, rejected.value
    if math.isnan(up) or math.isnan(down):
        return ""
    if up < 0 and down < 0:
        return "both fell, the rejected more" if down < up else "both fell, the chosen more: no gap was learned"
    if up >= 0 and down >= 0:
        return "both rose, the chosen more" if up > down else "both rose, the rejected more: no gap was learned"
    return "chosen rose, rejected fell" if up >= 0 else "chosen fell, rejected rose: the wrong way"


def _divide(a: float, b: float) -> float:
    return a / b if b and not math.isnan(b) else math.nan
