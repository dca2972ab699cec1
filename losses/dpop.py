"""DPOP (DPO-Positive): DPO with a penalty inside the sigmoid while the chosen answer is less likely than it was.

    loss = -log sigmoid( beta * ( (chosen - reference_chosen) - (rejected - reference_rejected)
                                  - penalty_weight * max(0, reference_chosen - chosen) ) )

Pal et al. 2024, arXiv 2402.13228, Eq. 3; penalty_weight is the paper's lambda.
Elsewhere: PaddleNLP has the penalty inside the sigmoid, as here; programs that add it outside, to the loss, train
another objective. TRL does not have it. At 0 it is DPO.
Beware: beta multiplies the penalty: at 0.3 and 50 a chosen answer one nat under its reference counts 15, as much as
a margin of 50 nats wins. Training starts on the kink: while policy and reference differ by rounding alone, rounding
decides for each pair whether its slope is 51 times as steep, so first steps repeat only on the same arithmetic.

Gradient:
    chosen = -beta * s * where(chosen < reference_chosen, 1 + penalty_weight, 1)
    rejected = beta * s
    s = sigmoid(-beta * (d_chosen - d_rejected - penalty_weight * max(0, -d_chosen)))
    d_chosen = chosen - reference_chosen
    d_rejected = rejected - reference_rejected

Reward: beta * log-ratio to the reference; the penalty is a margin of the pair, not a reward.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid, relu

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "dpop",
    title="DPOP",
    colour="#f8602a",
    marker=(3, 0, 45),
    aliases=("DPO-Positive",),
    source="arXiv 2402.13228, Eq. 3",
    units={"beta": "per nat", "penalty_weight": "nats of margin per nat that the chosen answer lost"},
    ranges={"penalty_weight": (5.0, 50.0, 500.0)},
    meanings={"penalty_weight": "what one nat lost by the chosen answer takes off the margin"},
    defaults={
        "beta": "arXiv 2402.13228, training details",
        "penalty_weight": "arXiv 2402.13228, Section 5.2: the middle of the values tried",
    },
    becomes={"dpo": {"penalty_weight": 0.0}},
)
def dpop(policy: Pair, reference: Pair, *, beta: Positive = 0.3, penalty_weight: NonNegative = 50.0) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    loss = -logsigmoid(chosen - rejected - penalty_weight * relu(-chosen))
    return LossOutput(loss, chosen.detach(), rejected.detach())
