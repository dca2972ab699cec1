"""RSO's hinge (hinge-norm): a hinge on DPO's margin; a pair beyond the margin gets no gradient.

    loss = max(0, 1 - ( beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected) ))

Liu et al. 2023, arXiv 2309.06657, "hinge-norm"; beta is the paper's gamma. The paper's other part, choosing pairs by
statistical rejection sampling, is done when the data is made.
Elsewhere: TRL's `loss_type="hinge"`, where it is also cited as SLiC, which has no reference; torchtune's `RSOLoss`.
Beware: the required gap is 1 / beta, in nats: 20 at beta = 0.05. Beyond it the gradient is exactly 0.

Gradient:
    chosen = where(m < 1, -beta, 0)
    rejected = where(m < 1, beta, 0)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "rso",
    title="RSO",
    colour="#72680e",
    marker=(5, 0, 180),
    aliases=("hinge", "hinge-norm"),
    source="arXiv 2309.06657",
    units={"beta": "per nat"},
    meanings={"beta": "the scale of the margin, and one over the gap that is asked for"},
    defaults={"beta": "arXiv 2309.06657, by TRL's index of papers"},
)
def rso(policy: Pair, reference: Pair, *, beta: Positive = 0.05) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    return LossOutput(relu(1 - (chosen - rejected)), chosen.detach(), rejected.detach())
