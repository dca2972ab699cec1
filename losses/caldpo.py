"""Cal-DPO: DPO's contrast, with each log-ratio regressed on a target, so that the chosen answer cannot sink with the other.

    loss = -log sigmoid( d_chosen - d_rejected )
         + calibration_weight * ( (d_chosen - 1 / (2 * beta))^2 + (d_rejected + 1 / (2 * beta))^2 )
    d_chosen   = chosen - reference_chosen
    d_rejected = rejected - reference_rejected

Xiao et al. 2024, arXiv 2412.14516, Eq. 10 (weight 1). beta sets only the targets; the contrast has no beta.
Elsewhere: the authors' trainer weights the squares by 0.5 and takes their mean over the micro-batch, as the paper's
listing does; this loss adds the squares of each pair, which has the same mean. TRL does not have it.
Beware: the squares (in squared nats) dominate: the contrast's slope is at most 1, that of the squares 500 at the first
step by default. Past its target each answer is pulled back.

Gradient:
    chosen = -s + 2 * calibration_weight * (chosen - reference_chosen - 1 / (2 * beta))
    rejected = s + 2 * calibration_weight * (rejected - reference_rejected + 1 / (2 * beta))
    s = sigmoid(rejected - reference_rejected - chosen + reference_chosen)

Reward: log-ratio to the reference, in nats.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "caldpo",
    title="Cal-DPO",
    colour="#0f7850",
    marker=(3, 0, 315),
    source="arXiv 2412.14516, Eq. 10",
    units={"beta": "1 / nat; the targets are ±1 / (2 beta)", "calibration_weight": "loss per squared nat"},
    meanings={"beta": "one over the distance between the two targets", "calibration_weight": "what the squares count"},
    defaults={
        "beta": "the authors' repository, Zephyr on UltraFeedback",
        "calibration_weight": "as printed in arXiv 2412.14516; the authors' repository has 0.5",
    },
    becomes={"dpo": {"calibration_weight": 0.0, "dpo.beta": 1.0}},
)
def caldpo(
    policy: Pair, reference: Pair, *, beta: Positive = 0.002, calibration_weight: NonNegative = 1.0
) -> LossOutput:
    chosen = policy.chosen.total - reference.chosen.total
    rejected = policy.rejected.total - reference.rejected.total
    target = 1 / (2 * beta)
    calibration = (chosen - target) ** 2 + (rejected + target) ** 2
    loss = -logsigmoid(chosen - rejected) + calibration_weight * calibration
    return LossOutput(loss, chosen.detach(), rejected.detach())
