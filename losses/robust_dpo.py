"""Robust DPO (rDPO): DPO's loss, corrected for the bias of swapped labels.

    loss = ( -(1 - label_smoothing) * log sigmoid(m) + label_smoothing * log sigmoid(-m) ) / (1 - 2 * label_smoothing)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Chowdhury, Kini, Natarajan 2024, arXiv 2403.00409, Section 3.1. With a share `label_smoothing` of the pairs swapped at
random, the expected value of this loss equals DPO's loss on the correct pairs.
Elsewhere: TRL's `loss_type="robust"`. At 0 it is DPO.
Beware: it has no lower bound. It falls by label_smoothing / (1 - 2 * label_smoothing) for each unit of a large m, so a
value below 0 is no error. R-DPO is another loss.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = ((1 - label_smoothing) * sigmoid(-m) + label_smoothing * sigmoid(m)) / (1 - 2 * label_smoothing)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import FlipRate, LossOutput, Pair, Positive


@register_loss(
    "robust_dpo",
    title="Robust DPO",
    colour="#dc726f",
    marker="H",
    source="arXiv 2403.00409, Section 3.1",
    units={"beta": "per nat", "label_smoothing": "share of pairs, 0 to 0.5"},
    meanings={"label_smoothing": "the share of pairs that were swapped"},
    defaults={
        "beta": "TRL's default; arXiv 2403.00409, Appendix B, has 0.01",
        "label_smoothing": "arXiv 2403.00409, Section 6",
    },
    becomes={"dpo": {"label_smoothing": 0.0}},
)
def robust_dpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    right, wrong = -logsigmoid(chosen - rejected), -logsigmoid(rejected - chosen)
    loss = ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return LossOutput(loss, chosen.detach(), rejected.detach())
