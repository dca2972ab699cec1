"""REBEL: the difference of the log-ratios is fitted to the difference of the ratings by least squares.

    loss = ( ((chosen - reference_chosen) - (rejected - reference_rejected)) / eta - (score_chosen - score_rejected) )²

Gao et al. 2024, arXiv 2404.16767, Algorithm 1, of one round: the reference is the model that the answers came from.
Elsewhere: TRL has none. The authors' code has the square of d - eta * (difference of ratings): this times eta². Where all
ratings differ alike it is IPO.
Beware: the ratings' scale sets the target, in nats: eta times their difference. A pair beyond it is pulled back.

Gradient:
    chosen = 2 / eta * (d / eta - (score_chosen - score_rejected))
    rejected = -2 / eta * (d / eta - (score_chosen - score_rejected))
    d = chosen - reference_chosen - (rejected - reference_rejected)

Reward: log-ratio to the reference / eta, in the ratings' unit.
"""

from __future__ import annotations

from torch import Tensor

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "rebel",
    title="REBEL",
    colour="#669c13",
    marker="$R$",
    source="arXiv 2404.16767, Algorithm 1",
    units={"eta": "nats per rating"},
    meanings={"eta": "how far, in nats, one point of rating moves the policy"},
    defaults={"eta": "arXiv 2404.16767, the authors' repository"},
)
def rebel(policy: Pair, reference: Pair, scores: Tensor, *, eta: Positive = 1.0) -> LossOutput:
    chosen = (policy.chosen.total - reference.chosen.total) / eta
    rejected = (policy.rejected.total - reference.rejected.total) / eta
    miss = chosen - rejected - (scores[:, 0] - scores[:, 1])
    return LossOutput(miss**2, chosen.detach(), rejected.detach())
