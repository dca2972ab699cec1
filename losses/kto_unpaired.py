"""KTO of single answers: each, labelled desirable or not, is scored against z, the mean log-ratio of mismatched pairs.

    loss = desirable_weight   * (1 - sigmoid( reward - z ))  of a desirable answer
           undesirable_weight * (1 - sigmoid( z - reward ))  of an undesirable one
    reward = beta * (response - reference_response)
    z      = max(0, beta * kl)

Ethayarajh et al. 2024, arXiv 2402.01306. A loss of single answers, whose mean is over answers. A pair is two of them, and gives
half of what the loss `kto` gives, with the gradient below. z carries no gradient.
Elsewhere: TRL and HALOs have this mean over answers, with kl of each micro-batch.
Beware: with more answers of one kind than of the other, weigh the rarer kind more. TRL's documentation advises weights by which
the desirable answers count 1 to 4/3 times as much as the undesirable ones.

Gradient:
    chosen = -desirable_weight * beta * sigmoid(r_chosen - z) * sigmoid(z - r_chosen) / 2
    rejected = undesirable_weight * beta * sigmoid(r_rejected - z) * sigmoid(z - r_rejected) / 2
    r_chosen = beta * (chosen - reference_chosen)
    r_rejected = beta * (rejected - reference_rejected)
    z = max(0, beta * kl)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import AnswerOutput, NonNegative, Positive, SequenceLogps


@register_loss(
    "kto_unpaired",
    title="KTO unpaired",
    colour="#dd09b8",
    marker="$T$",
    source="arXiv 2402.01306",
    units={"beta": "per nat", "desirable_weight": "loss per chosen", "undesirable_weight": "loss per rejected"},
    ranges={"beta": (0.01, 0.05, 0.1)},
    meanings={
        "desirable_weight": "weight of a desirable answer",
        "undesirable_weight": "weight of an undesirable answer",
    },
    defaults={"beta": "KTO's", "desirable_weight": "KTO's", "undesirable_weight": "KTO's"},
)
def kto_unpaired(
    response: SequenceLogps,
    label: Tensor,
    reference: SequenceLogps,
    kl: Tensor,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> AnswerOutput:
    reward = beta * (response.total - reference.total)
    z = (beta * kl.detach()).clamp(min=0)
    risk = logsigmoid(
        torch.where(label, z - reward, reward - z)
    ).exp()  # 1 - sigmoid(x) = sigmoid(-x), exact in both tails
    return AnswerOutput(torch.where(label, desirable_weight * risk, undesirable_weight * risk), reward.detach())
