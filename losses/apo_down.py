"""APO-down: lowers both answers below the reference, the rejected one further.

    loss = sigmoid( beta * (chosen - reference_chosen) ) + 1 - sigmoid(m)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 8: for pairs whose chosen answers are worse than the model's own.
Elsewhere: TRL's `loss_type="apo_down"` and Liger's loss are the same, with the 1 that keeps the loss above 0.
Beware: it lowers the chosen answer by design wherever |r_chosen| < |m|, which does harm where the chosen answer is good.

Gradient:
    chosen = beta * (sigmoid(r_chosen) * sigmoid(-r_chosen) - sigmoid(m) * sigmoid(-m))
    rejected = beta * sigmoid(m) * sigmoid(-m)
    r_chosen = beta * (chosen - reference_chosen)
    m = r_chosen - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "apo_down",
    title="APO-down",
    colour="#f948be",
    marker=(3, 1, 270),
    source="arXiv 2408.06266, Eq. 8",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2408.06266, Section 5.2, by TRL's index of papers"},
)
def apo_down(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    loss = logsigmoid(chosen).exp() + logsigmoid(rejected - chosen).exp()  # sigmoid, its digits kept in both tails
    return LossOutput(loss, chosen.detach(), rejected.detach())
