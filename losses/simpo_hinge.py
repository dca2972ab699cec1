"""SimPO with a hinge: the SimPO repository's other loss. A pair beyond the margin gets no gradient.

    loss = max(0, 1 + gamma - beta * chosen / |chosen| + beta * rejected / |rejected|)

The SimPO repository (of arXiv 2405.14734), `loss_type: hinge`, whose gamma is a ratio: 1 - beta * (difference - gamma / beta).
Elsewhere: TRL's "hinge" of the CPO trainer has sums and no gamma: `slic_hf`. Over beta it is RePO, whose gamma is
(1 + gamma) / beta.
Beware: beyond 1 + gamma the gradient is exactly 0; before it, every pair pulls alike.

Gradient:
    chosen = where(m < 1 + gamma, -beta / |chosen|, 0)
    rejected = where(m < 1 + gamma, beta / |rejected|, 0)
    m = beta * chosen / |chosen| - beta * rejected / |rejected|

Reward: beta * mean log-probability.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.loss_math import GAMMA_NAMES, absolute_gamma, spell_out_gamma
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "simpo_hinge",
    title="SimPO hinge",
    colour="#2699e5",
    marker="$H$",
    source="arXiv 2405.14734, its repository's loss_type: hinge",
    units={
        "beta": "per (nat per token)",
        "gamma": "reward, absolute; by default beta / 2",
        "gamma_beta_ratio": "nats per token; gamma = ratio * beta",
    },
    defaults={
        "beta": "SimPO's",
        "gamma": "SimPO's",
        "gamma_beta_ratio": "0.5 where neither is given: the SimPO repository's ratio to start from",
    },
    alternatives=GAMMA_NAMES,
    canonical=spell_out_gamma(0.5),
)
def simpo_hinge(
    policy: Pair,
    *,
    beta: Positive = 2.0,
    gamma: NonNegative | None = None,
    gamma_beta_ratio: NonNegative | None = None,
) -> LossOutput:
    chosen = beta * policy.chosen.mean
    rejected = beta * policy.rejected.mean
    margin = absolute_gamma(beta, gamma, gamma_beta_ratio, default_ratio=0.5)
    return LossOutput(relu(1 + margin - (chosen - rejected)), chosen.detach(), rejected.detach())
