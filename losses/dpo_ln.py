"""DPO with length normalisation: each log-ratio is divided by its own response's length.

    loss = -log sigmoid( beta * (chosen - reference_chosen) / |chosen|
                         - beta * (rejected - reference_rejected) / |rejected| )

Meng, Xia, Chen 2024, arXiv 2405.14734, Table 15 (ablation); its beta is not published.
Elsewhere: TRL has it as `loss_type="sigmoid_norm"` of its DPO trainer, the same function.
Beware: per-token log-ratios are fractions of a nat: at DPO's beta of 0.01 to 0.1 this objective is almost flat.
Published length-normalised recipes use beta near 5.

Gradient:
    chosen = -beta * s / |chosen|
    rejected = beta * s / |rejected|
    s = sigmoid(beta * (rejected - reference_rejected) / |rejected| - beta * (chosen - reference_chosen) / |chosen|)

Reward: beta * log-ratio to the reference per token.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "dpo_ln",
    title="DPO w/ LN",
    colour="#e67000",
    marker="P",
    aliases=("DPO w/ LN", "LN-DPO", "dpo_norm", "sigmoid_norm"),
    source="arXiv 2405.14734, Table 15",
    units={"beta": "per (nat per token)"},
    defaults={
        "beta": "not published for this ablation; length-normalised DPO of Tulu 3, arXiv 2411.15124, uses 5",
    },
    in_paper=True,
)
def dpo_ln(policy: Pair, reference: Pair, *, beta: Positive = 5.0) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total) / policy.chosen.length
    rejected = beta * (policy.rejected.total - reference.rejected.total) / policy.rejected.length
    return LossOutput(-logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())
