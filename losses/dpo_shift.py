"""DPO-Shift: the rejected answer counts a little less, so that the chosen one's likelihood falls less.

    loss = -log sigmoid( beta * (chosen - reference_chosen) - shift * beta * (rejected - reference_rejected) )

Yang et al. 2025, arXiv 2502.07599, with a fixed factor. Their schedules, which move it in a straight line between 0.95 and 1
over the steps, are not offered.
Elsewhere: TRL has none. At shift = 1 it is DPO.
Beware: the loss's margin is not the difference of the rewards, so a pair that is ranked right
may still have a loss above log 2.

Gradient:
    chosen = -beta * s
    rejected = shift * beta * s
    s = sigmoid(shift * beta * (rejected - reference_rejected) - beta * (chosen - reference_chosen))

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive, UnitInterval


@register_loss(
    "dpo_shift",
    title="DPO-Shift",
    colour="#a55201",
    marker="$F$",
    source="arXiv 2502.07599, the authors' repository",
    units={"beta": "per nat", "shift": "above 0, at most 1"},
    ranges={"shift": (0.55, 0.75, 0.95)},
    meanings={"shift": "how much the rejected answer's reward counts in the loss"},
    defaults={"beta": "DPO's", "shift": "the authors' repository, the largest of its fixed values"},
    becomes={"dpo": {"shift": 1.0}},
)
def dpo_shift(policy: Pair, reference: Pair, *, beta: Positive = 0.1, shift: UnitInterval = 0.95) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    return LossOutput(-logsigmoid(chosen - shift * rejected), chosen.detach(), rejected.detach())
