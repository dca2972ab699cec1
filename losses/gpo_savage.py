"""GPO's Savage loss: bounded, so that pairs which stay wrong are given up.

    loss = 1 / (1 + exp(m))²
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Tang et al. 2024, arXiv 2402.05749, who take it from Masnadi-Shirazi and Vasconcelos 2008.
Elsewhere: TRL has none. The loss of 2008 has exp(2m); here, as in GPO, the 2 is in beta. No code of the authors was found.
Beware: not convex. A pair far on the wrong side (m below -2 or so) is pulled less, not more: robust, and slow to turn it.

Gradient:
    chosen = -2 * beta * sigmoid(-m) * sigmoid(-m) * sigmoid(m)
    rejected = 2 * beta * sigmoid(-m) * sigmoid(-m) * sigmoid(m)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "gpo_savage",
    title="GPO Savage",
    colour="#c06afd",
    marker="$S$",
    source="arXiv 2402.05749",
    units={"beta": "per nat"},
    defaults={"beta": "not published for this form; DPO's"},
)
def gpo_savage(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    return LossOutput((2 * logsigmoid(rejected - chosen)).exp(), chosen.detach(), rejected.detach())
