"""SLiC-HF: a hinge with a gap of delta between the summed log-probabilities, and a likelihood term as regulariser.

    loss = max(0, delta - chosen + rejected) - sft_weight * chosen

Zhao et al. 2023, arXiv 2305.10425; as printed in arXiv 2405.14734, Table 7, which calls delta "beta". All
log-probabilities are sums over the response; `sft_reduction: mean` takes each response's token mean in the last term.
Elsewhere: HALOs has the same hinge and calls delta `beta`. TRL's is `loss_type="hinge"` of its CPO trainer,
max(0, 1 - beta * (chosen - rejected)): beta times this hinge at delta = 1 / beta, with `cpo_alpha` for sft_weight and a
token mean over the micro-batch.
Beware: one nat on the chosen response changes its sum by 1 and its token mean by 1 / length, so an `sft_weight` does not
carry over from one reduction to the other.

Gradient:
    chosen = -hinge - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = hinge
    hinge = where(delta - chosen + rejected > 0, 1, 0)

Reward: summed log-probability, in nats.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Reduction


@register_loss(
    "slic_hf",
    title="SLiC-HF",
    colour="#539eaa",
    marker=(4, 1, 0),
    aliases=("SLiC",),
    source="arXiv 2305.10425",
    units={"delta": "nats", "sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    ranges={"delta": (0.1, 0.5, 1.0, 2.0), "sft_weight": (0.1, 0.5, 1.0, 10.0)},
    defaults={
        "delta": "HALOs' default; the tuned value is not published",
        "sft_weight": "HALOs' default, the smallest of arXiv 2405.14734, Table 7; the tuned value is not published",
        "sft_reduction": "as printed in arXiv 2405.14734, Table 7",
    },
    in_paper=True,
)
def slic_hf(
    policy: Pair, *, delta: NonNegative = 1.0, sft_weight: NonNegative = 0.1, sft_reduction: Reduction = "sum"
) -> LossOutput:
    chosen, rejected = policy.chosen.total, policy.rejected.total
    sft = sft_weight * response_nll(policy.chosen, sft_reduction)
    return LossOutput(relu(delta - chosen + rejected) + sft, chosen.detach(), rejected.detach())
