"""DPO with SimPO's target margin.

    loss = -log sigmoid( beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected) - gamma )

Meng, Xia, Chen 2024, arXiv 2405.14734, Table 15 (ablation); its beta and gamma are not published. `gamma` is absolute,
in reward units; `gamma_beta_ratio` is gamma / beta in nats of the summed log-ratio, by default 10. Give one of them.
Elsewhere: neither TRL nor HALOs has it; at gamma = 0 it is their DPO.
Beware: SimPO's ratio of 0.5 is in nats per token; here a margin counts nats of a whole response.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(beta * (rejected - reference_rejected) - beta * (chosen - reference_chosen) + gamma)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.loss_math import GAMMA_NAMES, absolute_gamma, spell_out_gamma
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "dpo_gamma",
    title="DPO w/ γ",
    colour="#965234",
    marker="X",
    aliases=("DPO w/ γ", "DPO w/ gamma"),
    source="arXiv 2405.14734, Table 15",
    units={
        "beta": "per nat",
        "gamma": "reward, absolute; by default 10 * beta",
        "gamma_beta_ratio": "nats; gamma = ratio * beta",
    },
    defaults={
        "beta": "not published; the largest of DPO's range",
        "gamma": "not published; follows the ratio",
        "gamma_beta_ratio": "10 where neither is given: not published",
    },
    in_paper=True,
    alternatives=GAMMA_NAMES,
    canonical=spell_out_gamma(10.0),
    becomes={"dpo": {"gamma": 0.0}},
)
def dpo_gamma(
    policy: Pair,
    reference: Pair,
    *,
    beta: Positive = 0.1,
    gamma: NonNegative | None = None,
    gamma_beta_ratio: NonNegative | None = None,
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    margin = absolute_gamma(beta, gamma, gamma_beta_ratio, default_ratio=10.0)
    return LossOutput(-logsigmoid(chosen - rejected - margin), chosen.detach(), rejected.detach())
