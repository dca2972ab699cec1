"""CPO: DPO's contrast without the reference, with a likelihood term on the chosen response.

    loss = -log sigmoid( beta * chosen - beta * rejected ) - sft_weight * chosen

Xu et al. 2024, arXiv 2401.08417; as printed in arXiv 2405.14734, Table 7. Both terms are printed with the sum
over the response; `sft_reduction: mean` takes each response's token mean in the second.
Elsewhere: TRL takes the mean over all tokens of a micro-batch in the second term (weight `cpo_alpha`), which changes
with how the batch is split; for one pair it is `sft_reduction: mean`.
Beware: as a sum, the likelihood term outweighs the contrast, whose slope is at most beta.

Gradient:
    chosen = -beta * s - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = beta * s
    s = sigmoid(beta * rejected - beta * chosen)

Reward: beta * summed log-probability.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive, Reduction


@register_loss(
    "cpo",
    title="CPO",
    colour="#a3457f",
    marker="*",
    source="arXiv 2401.08417",
    units={"beta": "per nat", "sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    ranges={"beta": (0.01, 0.05, 0.1), "sft_weight": (1.0,)},
    defaults={
        "beta": "TRL's default, the largest of arXiv 2405.14734, Table 7; the tuned value is not published",
        "sft_weight": "arXiv 2405.14734, Table 7: the only value",
        "sft_reduction": "as printed in arXiv 2405.14734, Table 7",
    },
    in_paper=True,
    becomes={"simpo_no_ln": {"sft_weight": 0.0, "simpo_no_ln.gamma": 0.0}},
)
def cpo(
    policy: Pair, *, beta: Positive = 0.1, sft_weight: NonNegative = 1.0, sft_reduction: Reduction = "sum"
) -> LossOutput:
    chosen = beta * policy.chosen.total
    rejected = beta * policy.rejected.total
    sft = sft_weight * response_nll(policy.chosen, sft_reduction)
    return LossOutput(-logsigmoid(chosen - rejected) + sft, chosen.detach(), rejected.detach())
