"""χPO: DPO that also pays for the χ² divergence, so that an answer far above the reference brings little more.

    loss = -log sigmoid( clip(phi(chosen - reference_chosen) - phi(rejected - reference_rejected), ±2 * reward_bound) )
    phi(x) = beta * (x + exp(x))

Huang et al. 2024, arXiv 2407.13399, Algorithm 1: the link function of the mixed χ² and KL divergence; reward_bound is R_max.
Elsewhere: TRL has none. No code of the authors was found; programs clip each side, or the
difference as the algorithm does. Here exponents end at 20, far beyond where the clip holds.
Beware: beyond the clip a pair has no gradient, on the wrong side too. There it is given up.

Gradient:
    chosen = where(abs(d) < 2 * reward_bound, -sigmoid(-d) * beta * (1 + up), 0)
    rejected = where(abs(d) < 2 * reward_bound, sigmoid(-d) * beta * (1 + down), 0)
    d = beta * (u + exp(min(u, 20))) - beta * (v + exp(min(v, 20)))
    up = where(u < 20, exp(min(u, 20)), 0)
    down = where(v < 20, exp(min(v, 20)), 0)
    u = chosen - reference_chosen
    v = rejected - reference_rejected

Reward: phi of the log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive

LARGEST = 20.0  # of the exponent


@register_loss(
    "chipo",
    title="χPO",
    colour="#7363a2",
    marker="$X$",
    aliases=("χPO", "chi-PO"),
    source="arXiv 2407.13399, Algorithm 1",
    units={"beta": "per nat", "reward_bound": "reward"},
    meanings={"reward_bound": "half of the largest difference of rewards that counts"},
    defaults={
        "beta": "arXiv 2407.13399, the larger of its two",
        "reward_bound": "arXiv 2407.13399, the smaller of its two",
    },
)
def chipo(policy: Pair, reference: Pair, *, beta: Positive = 0.05, reward_bound: Positive = 1.0) -> LossOutput:
    def link(ratio: Tensor) -> Tensor:
        return beta * (ratio + ratio.clamp(max=LARGEST).exp())

    chosen = link(policy.chosen.total - reference.chosen.total)
    rejected = link(policy.rejected.total - reference.rejected.total)
    difference = (chosen - rejected).clamp(-2 * reward_bound, 2 * reward_bound)
    return LossOutput(-logsigmoid(difference), chosen.detach(), rejected.detach())
