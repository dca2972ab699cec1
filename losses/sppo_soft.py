"""SPPO with graded preferences: each answer's log-ratio is fitted to how much more often than not it wins.

    loss = (u - (score_chosen - 1/2) / beta)² + (v - (score_rejected - 1/2) / beta)²
    u = chosen - reference_chosen
    v = rejected - reference_rejected

Wu et al. 2024, arXiv 2405.00675: the scores are probabilities of winning against the reference's answers, by a
preference model, stored with the data. With 1 and 0 it is `sppo_hard`; beta is the paper's 1 / eta.
Elsewhere: the authors' repository halves the sum. TRL has the hard form alone.
Beware: scores outside 0 to 1 are no probabilities, and set targets as they stand.

Gradient:
    chosen = 2 * (u - (score_chosen - 0.5) / beta)
    rejected = 2 * (v - (score_rejected - 0.5) / beta)
    u = chosen - reference_chosen
    v = rejected - reference_rejected

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "sppo_soft",
    title="SPPO soft",
    colour="#1caa03",
    marker="$W$",
    source="arXiv 2405.00675",
    units={"beta": "1 / nat; the targets are ±1 / (2 beta)"},
    defaults={"beta": "arXiv 2405.00675, the authors' repository: 1 / eta"},
)
def sppo_soft(policy: Pair, reference: Pair, scores: Tensor, *, beta: Positive = 0.001) -> LossOutput:
    chosen = policy.chosen.total - reference.chosen.total
    rejected = policy.rejected.total - reference.rejected.total
    target = (scores - 0.5) / beta
    loss = (chosen - target[:, 0]) ** 2 + (rejected - target[:, 1]) ** 2
    return LossOutput(loss, beta * chosen.detach(), beta * rejected.detach())
