"""SimPO without length normalisation: the reward is the summed log-probability.

    loss = -log sigmoid( beta * chosen - beta * rejected - gamma )

Meng, Xia, Chen 2024, arXiv 2405.14734, Section 4.2 (ablation); its beta and gamma are not published. `gamma` is
absolute, in reward units; `gamma_beta_ratio` is gamma / beta in nats, by default 10. Give one of them.
Elsewhere: neither TRL nor HALOs has it; TRL's CPO without its SFT term is the same at gamma = 0.
Beware: beta multiplies sums over all tokens, so it needs values on DPO's scale, not SimPO's: at beta = 2 nearly every
pair is saturated.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(beta * rejected - beta * chosen + gamma)

Reward: beta * summed log-probability.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.loss_math import GAMMA_NAMES, absolute_gamma, spell_out_gamma
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "simpo_no_ln",
    title="SimPO w/o LN",
    colour="#6795d8",
    marker="d",
    aliases=("SimPO w/o LN",),
    source="arXiv 2405.14734, Section 4.2",
    units={
        "beta": "per nat",
        "gamma": "reward, absolute; by default 10 * beta",
        "gamma_beta_ratio": "nats; gamma = ratio * beta",
    },
    defaults={
        "beta": "not published; CPO's, whose scale it shares",
        "gamma": "not published; follows the ratio",
        "gamma_beta_ratio": "10 where neither is given: not published",
    },
    in_paper=True,
    alternatives=GAMMA_NAMES,
    canonical=spell_out_gamma(10.0),
)
def simpo_no_ln(
    policy: Pair,
    *,
    beta: Positive = 0.1,
    gamma: NonNegative | None = None,
    gamma_beta_ratio: NonNegative | None = None,
) -> LossOutput:
    chosen = beta * policy.chosen.total
    rejected = beta * policy.rejected.total
    margin = absolute_gamma(beta, gamma, gamma_beta_ratio, default_ratio=10.0)
    return LossOutput(-logsigmoid(chosen - rejected - margin), chosen.detach(), rejected.detach())
