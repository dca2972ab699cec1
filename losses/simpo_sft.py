"""SimPO with a likelihood term on the chosen response.

    loss = -log sigmoid( beta * chosen / |chosen| - beta * rejected / |rejected| - gamma ) - sft_weight * chosen

Meng, Xia, Chen 2024, arXiv 2405.14734, Appendix H (ablation); the weight is not published. `chosen` in the last term
is the sum over the response; `sft_reduction: mean` takes each response's token mean instead. `gamma` is absolute, in
reward units; `gamma_beta_ratio` is gamma / beta, by default 0.5. Give one of them.
Elsewhere: the SimPO repository (`sft_weight`) and TRL's CPO trainer (`cpo_alpha`) take the mean over all tokens of a
micro-batch in the last term, which changes with how the batch is split; for one pair it is `sft_reduction: mean`.
Beware: a weight tuned for a mean is about a response's length too large for a sum.

Gradient:
    chosen = -beta * s / |chosen| - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = beta * s / |rejected|
    s = sigmoid(beta * rejected / |rejected| - beta * chosen / |chosen| + gamma)

Reward: beta * mean log-probability.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.loss_math import GAMMA_NAMES, absolute_gamma, response_nll, spell_out_gamma
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive, Reduction


@register_loss(
    "simpo_sft",
    title="SimPO w/ SFT",
    colour="#5957bf",
    marker="p",
    aliases=("SimPO w/ SFT",),
    source="arXiv 2405.14734, Appendix H",
    units={
        "beta": "per (nat per token)",
        "gamma": "reward, absolute; by default beta / 2",
        "gamma_beta_ratio": "nats per token; gamma = ratio * beta",
        "sft_weight": "per nat (sum) or per (nat per token) (mean)",
    },
    defaults={
        "beta": "not published; SimPO's",
        "gamma": "not published; SimPO's",
        "gamma_beta_ratio": "0.5 where neither is given: not published; SimPO's",
        "sft_weight": "not published; a sum of some 100 nats then weighs about as much as the margin",
        "sft_reduction": "as printed in arXiv 2405.14734, Appendix H",
    },
    alternatives=GAMMA_NAMES,
    canonical=spell_out_gamma(0.5),
    becomes={"simpo": {"sft_weight": 0.0}},
)
def simpo_sft(
    policy: Pair,
    *,
    beta: Positive = 2.0,
    gamma: NonNegative | None = None,
    gamma_beta_ratio: NonNegative | None = None,
    sft_weight: NonNegative = 0.01,
    sft_reduction: Reduction = "sum",
) -> LossOutput:
    chosen = beta * policy.chosen.mean
    rejected = beta * policy.rejected.mean
    margin = absolute_gamma(beta, gamma, gamma_beta_ratio, default_ratio=0.5)
    sft = sft_weight * response_nll(policy.chosen, sft_reduction)
    return LossOutput(-logsigmoid(chosen - rejected - margin) + sft, chosen.detach(), rejected.detach())
