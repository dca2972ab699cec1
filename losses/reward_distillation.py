"""Reward distillation: the policy's own reward difference is fitted to the ratings' by least squares.

    loss = ( m - reward_scale * (score_chosen - score_rejected) )²
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Fisch et al. 2024, arXiv 2405.19316, with a scale of 1; their pessimistic form over several reward models is not offered. It
is NeMo-Aligner's `rpo_sq`.
Elsewhere: TRL has none. At beta = 1 / eta, and a scale of 1, it is REBEL; the two differ in
what is held fixed while the other is searched.
Beware: ratings on another scale than the policy's rewards set targets that beta or reward_scale must make up for.

Gradient:
    chosen = 2 * beta * (d - t)
    rejected = -2 * beta * (d - t)
    d = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
    t = reward_scale * (score_chosen - score_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "reward_distillation",
    title="Reward distillation",
    colour="#af2d9d",
    marker="$D$",
    aliases=("rpo_sq",),
    source="arXiv 2405.19316, NeMo-Aligner",
    units={"beta": "per nat", "reward_scale": "reward per rating"},
    meanings={"reward_scale": "what one point of rating is worth as a reward"},
    defaults={"beta": "NeMo-Aligner", "reward_scale": "arXiv 2405.19316: the ratings are the rewards"},
    becomes={"rebel": {"beta": 1.0, "reward_scale": 1.0, "rebel.eta": 1.0}},
)
def reward_distillation(
    policy: Pair, reference: Pair, scores: Tensor, *, beta: Positive = 0.2, reward_scale: NonNegative = 1.0
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    miss = chosen - rejected - reward_scale * (scores[:, 0] - scores[:, 1])
    return LossOutput(miss**2, chosen.detach(), rejected.detach())
