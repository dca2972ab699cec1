"""Signs of collapse: what training did to the likelihood of answers, and what it did to the answers themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from pobench.types import Estimate

# Metrics that the signs are read from.
METRICS = ("chosen_logp_shift", "rejected_logp_shift", "length_tokens", "repetition", "distinct_2", "unfinished")

# Limits of the alarms. Chosen by hand as changes that a reader would notice; not published, no test of significance.
LONGER, SHORTER = 1.5, 0.5  # times the start model's length
REPEATS, CUT, POORER = 0.05, 0.10, -0.10  # change of repetition, unfinished, distinct bigrams
DROP = -0.5  # nats per token on the winners: each of their tokens became 1.6 times less likely


class Alarm(NamedTuple):
    """A limit that is exceeded: the metric, and a phrase."""

    metric: str
    words: str


def alarms(estimates: Mapping[str, Estimate], start: Mapping[str, Estimate]) -> list[Alarm]:
    """An alarm for each limit that is exceeded. estimates, start: metric → estimate, of an arm and of the start model."""
    exceeded = []
    if (lost := estimates["chosen_logp_shift"].value) < DROP:
        exceeded.append(Alarm("chosen_logp_shift", f"winners lost {-lost:.2f} nats per token"))
    times = _divide(estimates["length_tokens"].value, start["length_tokens"].value)
    if times > LONGER or times < SHORTER:
        exceeded.append(Alarm("length_tokens", f"answers {times:.1f} times as long"))
    for metric, limit, words in (
        ("repetition", REPEATS, "more repetition"),
        ("unfinished", CUT, "more answers cut off"),
    ):
        if estimates[metric].value - start[metric].value > limit:
            exceeded.append(Alarm(metric, words))
    if estimates["distinct_2"].value - start["distinct_2"].value < POORER:
        exceeded.append(Alarm("distinct_2", "less varied words"))
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
