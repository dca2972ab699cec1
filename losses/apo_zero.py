"""APO-zero: raises the chosen answer above the reference and lowers the rejected one below it, independently.

    loss = 1 - sigmoid( beta * (chosen - reference_chosen) ) + sigmoid( beta * (rejected - reference_rejected) )

D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 7: for pairs whose chosen answers are better than the model's own.
Elsewhere: TRL's `loss_type="apo_zero"` and Liger's loss are the same, with the 1 that keeps the loss above 0. It is KTO
with z = 0 and both weights 1.
Beware: sigmoid saturates on both sides, so an answer far above or below the reference gets no gradient.

Gradient:
    chosen = -beta * sigmoid(r_chosen) * sigmoid(-r_chosen)
    rejected = beta * sigmoid(r_rejected) * sigmoid(-r_rejected)
    r_chosen = beta * (chosen - reference_chosen)
    r_rejected = beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "apo_zero",
    title="APO-zero",
    colour="#852ff5",
    marker=(3, 1, 90),
    source="arXiv 2408.06266, Eq. 7",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2408.06266, Section 5.2, by TRL's index of papers"},
)
def apo_zero(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    loss = logsigmoid(-chosen).exp() + logsigmoid(rejected).exp()  # sigmoid, its digits kept in both tails
    return LossOutput(loss, chosen.detach(), rejected.detach())
