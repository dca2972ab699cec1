"""RPO: DPO with a likelihood term on the chosen answer.

    loss = -log sigmoid( beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected) )
         - sft_weight * chosen / |chosen|

Pang et al. 2024, arXiv 2404.19733, Eq. 1 (iterative reasoning preference optimization): the likelihood is each
response's token mean. Liu et al. 2024, arXiv 2405.16436, reach the same sum as regularized preference optimization,
with the likelihood as a sum over the response and a weight of 0.005: `sft_reduction: sum`.
Elsewhere: TRL's `loss_type=["sigmoid", "sft"]` takes the mean over all tokens of a micro-batch, which changes with how
the batch is split; LLaMA-Factory's `pref_ftx` takes each response's mean, as here. At 0 it is DPO.
Beware: with a mean the weight is per nat per token; the same weight on a sum counts the response's length times more.

Gradient:
    chosen = -beta * d - sft_weight / where(sft_reduction == "sum", 1, |chosen|)
    rejected = beta * d
    d = sigmoid(beta * (rejected - reference_rejected) - beta * (chosen - reference_chosen))

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive, Reduction


@register_loss(
    "rpo",
    title="RPO",
    colour="#74674e",
    marker=(4, 0, 22),
    aliases=("DPO w/ SFT", "DPO w/ NLL"),
    source="arXiv 2404.19733, Eq. 1",
    units={"beta": "per nat", "sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    defaults={
        "beta": "TRL's default",
        "sft_weight": "arXiv 2404.19733, as TRL's documentation advises",
        "sft_reduction": "as printed in arXiv 2404.19733",
    },
    becomes={"dpo": {"sft_weight": 0.0}},
)
def rpo(
    policy: Pair,
    reference: Pair,
    *,
    beta: Positive = 0.1,
    sft_weight: NonNegative = 1.0,
    sft_reduction: Reduction = "mean",
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    sft = sft_weight * response_nll(policy.chosen, sft_reduction)
    return LossOutput(-logsigmoid(chosen - rejected) + sft, chosen.detach(), rejected.detach())
