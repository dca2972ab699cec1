"""AlphaPO: SimPO with a power of the mean probability, set by alpha, in place of its logarithm.

    loss = -log sigmoid( r(chosen / |chosen|) - r(rejected / |rejected|) - gamma )
    r(a) = beta * (1 - exp(-alpha * a)) / alpha

Gupta et al. 2025, arXiv 2501.03884. At alpha = 0 the reward is beta * a and the loss SimPO's. Above 0 the
gradient of an unlikely answer is larger than SimPO's, below 0 smaller. `gamma` is absolute, in reward units;
`gamma_beta_ratio` is gamma / beta, by default 0.04. Give one of them.
Elsewhere: TRL's CPO trainer, `loss_type="alphapo"`, has the same reward; with TRL's other losses `alpha` is applied
to sums, which overflow.
Beware: the reward grows like exp(alpha * surprise): at alpha = 1 an answer of 10 nats a token counts 22000 beta. The
exponent is clamped at 80, beyond which the gradient is 0; in fp32 it would overflow at 88.

Gradient:
    chosen = -beta * s * exp(-alpha * chosen / |chosen|) / |chosen|
    rejected = beta * s * exp(-alpha * rejected / |rejected|) / |rejected|
    s = sigmoid(gamma - m)
    m = where(alpha == 0, beta * (chosen / |chosen| - rejected / |rejected|), beta * bent / alpha)
    bent = exp(-alpha * rejected / |rejected|) - exp(-alpha * chosen / |chosen|)

Reward: beta * (1 - p^-alpha) / alpha of the mean probability p.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from pobench.loss_math import GAMMA_NAMES, absolute_gamma, exp_difference, spell_out_gamma
from pobench.registry import register_loss
from pobench.types import Finite, LossOutput, NonNegative, Pair, Positive

LARGEST_EXPONENT = 80.0


@register_loss(
    "alphapo",
    title="AlphaPO",
    colour="#2f55f3",
    marker=(5, 0, 90),
    source="arXiv 2501.03884",
    units={
        "alpha": "1 / (nat per token)",
        "beta": "per (nat per token)",
        "gamma": "reward, absolute; by default beta / 25",
        "gamma_beta_ratio": "nats per token at alpha 0; gamma = ratio * beta",
    },
    meanings={"alpha": "how the reward bends: 0 is SimPO's"},
    defaults={
        "alpha": "arXiv 2501.03884, Table 3: Mistral-Instruct",
        "beta": "arXiv 2501.03884, Table 3: Mistral-Instruct",
        "gamma": "0.1 at beta 2.5: arXiv 2501.03884, Table 3: Mistral-Instruct",
        "gamma_beta_ratio": "0.04 where neither is given: arXiv 2501.03884, Table 3: Mistral-Instruct",
    },
    alternatives=GAMMA_NAMES,
    canonical=spell_out_gamma(0.04),
    becomes={"simpo": {"alpha": 0.0}},
)
def alphapo(
    policy: Pair,
    *,
    alpha: Finite = 0.25,
    beta: Positive = 2.5,
    gamma: NonNegative | None = None,
    gamma_beta_ratio: NonNegative | None = None,
) -> LossOutput:
    if alpha == 0:
        chosen, rejected = beta * policy.chosen.mean, beta * policy.rejected.mean
        reward_margin = chosen - rejected
    else:
        a, b = ((-alpha * side.mean).clamp(max=LARGEST_EXPONENT) for side in policy)
        chosen, rejected = (-beta / alpha * torch.expm1(side) for side in (a, b))
        reward_margin = beta / alpha * exp_difference(b, a)  # chosen - rejected, with all its digits
    margin = absolute_gamma(beta, gamma, gamma_beta_ratio, default_ratio=0.04)
    return LossOutput(-logsigmoid(reward_margin - margin), chosen.detach(), rejected.detach())
