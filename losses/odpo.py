"""ODPO: the better answer must win by an offset that grows with the difference of the ratings.

    loss = -log sigmoid( m - alpha * log(max(score_chosen - score_rejected, 1e-6)) )
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Amini, Vieira, Cotterell 2024, arXiv 2402.10571. DPO with an offset. At alpha = 0 it is DPO.
Elsewhere: TRL has none. The authors' code takes the bare logarithm, which is no number where the rejected answer is rated
higher; another program adds 1e-6 to it. Their repository can also take the quotient of the ratings.
Beware: a difference below 1 gives a negative offset. On ratings of 0 to 1 every pair may lose a little; scale them first.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(alpha * log(max(score_chosen - score_rejected, 1e-6)) - m)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "odpo",
    title="ODPO",
    colour="#c71b77",
    marker="$O$",
    source="arXiv 2402.10571",
    units={"beta": "per nat", "alpha": "reward per log of a rating"},
    meanings={"alpha": "how much the offset grows with the ratings' difference"},
    defaults={"beta": "DPO's", "alpha": "arXiv 2402.10571, the authors' repository"},
    becomes={"dpo": {"alpha": 0.0}},
)
def odpo(
    policy: Pair, reference: Pair, scores: Tensor, *, beta: Positive = 0.1, alpha: NonNegative = 1.0
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    offset = alpha * (scores[:, 0] - scores[:, 1]).clamp(min=1e-6).log()
    return LossOutput(-logsigmoid(chosen - rejected - offset), chosen.detach(), rejected.detach())
