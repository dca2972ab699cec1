"""SimPO: the reward is the mean log-probability, and a pair must clear a target margin.

    loss = -log sigmoid( beta * chosen / |chosen| - beta * rejected / |rejected| - gamma )

Meng, Xia, Chen 2024, arXiv 2405.14734, Eq. 6. `gamma` is absolute, in reward units; `gamma_beta_ratio` is
gamma / beta, in nats per token. Give one; left alone, the ratio is 0.5, where the SimPO repository advises to start.
Elsewhere: the paper, TRL and LLaMA-Factory print gamma, the SimPO repository and HALOs configure the ratio. TRL has it
as `loss_type="simpo"` of its CPO trainer, with an SFT term that is on unless `cpo_alpha` is 0.
Beware: beta multiplies per-token means: DPO's 0.1 is twenty times too small here.

Gradient:
    chosen = -beta * s / |chosen|
    rejected = beta * s / |rejected|
    s = sigmoid(beta * rejected / |rejected| - beta * chosen / |chosen| + gamma)

Reward: beta * mean log-probability.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.loss_math import GAMMA_NAMES, absolute_gamma, spell_out_gamma
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "simpo",
    title="SimPO",
    colour="#3a73ff",
    marker="D",
    source="arXiv 2405.14734, Eq. 6",
    units={
        "beta": "per (nat per token)",
        "gamma": "reward, absolute; by default beta / 2",
        "gamma_beta_ratio": "nats per token; gamma = ratio * beta",
    },
    ranges={"beta": (2.0, 2.5), "gamma": (0.3, 0.5, 1.0, 1.2, 1.4, 1.6)},
    defaults={
        "beta": "arXiv 2405.14734, Table 8: Mistral-Base, Llama-3-Base",
        "gamma": "arXiv 2405.14734, Table 8: Llama-3-Base",
        "gamma_beta_ratio": "0.5 where neither is given: the SimPO repository's ratio to start from",
    },
    in_paper=True,
    alternatives=GAMMA_NAMES,
    canonical=spell_out_gamma(0.5),
)
def simpo(
    policy: Pair,
    *,
    beta: Positive = 2.0,
    gamma: NonNegative | None = None,
    gamma_beta_ratio: NonNegative | None = None,
) -> LossOutput:
    chosen = beta * policy.chosen.mean
    rejected = beta * policy.rejected.mean
    margin = absolute_gamma(beta, gamma, gamma_beta_ratio, default_ratio=0.5)
    return LossOutput(-logsigmoid(chosen - rejected - margin), chosen.detach(), rejected.detach())
