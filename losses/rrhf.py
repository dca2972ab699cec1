"""RRHF: a hinge ranks the mean log-probabilities; a likelihood term keeps the chosen response likely.

    loss = max(0, rejected / |rejected| - chosen / |chosen|) - sft_weight * chosen

Yuan et al. 2023, arXiv 2304.05302, for two responses; as printed in arXiv 2405.14734, Table 7. `sft_reduction: mean`
takes each response's token mean in the last term.
Elsewhere: neither TRL nor HALOs has it. The authors rank several responses to a prompt and apply this hinge to every pair.
Beware: the last term is printed with the sum over the response and then outweighs the hinge by about the response's
length.

Gradient:
    chosen = -hinge / |chosen| - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = hinge / |rejected|
    hinge = where(rejected / |rejected| > chosen / |chosen|, 1, 0)

Reward: mean log-probability, in nats per token.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Reduction


@register_loss(
    "rrhf",
    title="RRHF",
    colour="#2a7c5c",
    marker=">",
    source="arXiv 2304.05302",
    units={"sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    ranges={"sft_weight": (0.1, 0.5, 1.0, 10.0)},
    defaults={
        "sft_weight": "arXiv 2304.05302: the two terms are added as they stand; the tuned value is not published",
        "sft_reduction": "as printed in arXiv 2405.14734, Table 7",
    },
    in_paper=True,
    becomes={"repo": {"sft_weight": 0.0, "repo.gamma": 0.0}},
)
def rrhf(policy: Pair, *, sft_weight: NonNegative = 1.0, sft_reduction: Reduction = "sum") -> LossOutput:
    chosen, rejected = policy.chosen.mean, policy.rejected.mean
    sft = sft_weight * response_nll(policy.chosen, sft_reduction)
    return LossOutput(relu(rejected - chosen) + sft, chosen.detach(), rejected.detach())
