"""GPO's truncated square: a squared hinge on DPO's margin; the pull fades out as the pair nears the margin.

    loss = max(0, 1 - m)²
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Tang et al. 2024, arXiv 2402.05749, "truncated quadratic".
Elsewhere: TRL has none; its hinge is `rso`. No code of the authors was found; the formula is the paper's.
Beware: the gap that is asked for is 1 / beta, in nats. Beyond it the gradient is exactly 0.

Gradient:
    chosen = where(m < 1, -2 * beta * (1 - m), 0)
    rejected = where(m < 1, 2 * beta * (1 - m), 0)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "gpo_squared_hinge",
    title="GPO squared hinge",
    colour="#7e9674",
    marker="$Q$",
    aliases=("GPO truncated quadratic",),
    source="arXiv 2402.05749",
    units={"beta": "per nat"},
    meanings={"beta": "the scale of the margin, and one over the gap that is asked for"},
    defaults={"beta": "not published for this form; DPO's"},
)
def gpo_squared_hinge(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    return LossOutput(relu(1 - (chosen - rejected)) ** 2, chosen.detach(), rejected.detach())
