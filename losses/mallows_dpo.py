"""Mallows-DPO: DPO, with a scale for each prompt: large where the reference is sure of the next tokens, small where it is not.

    loss = -log sigmoid( beta * certainty * (x_chosen - x_rejected) )
    certainty = -dispersion_scale * log( entropy )
    entropy = mean of the two responses' mean entropies of the next token under the reference / log |vocabulary|
    x = log-ratio to the reference; a token's mean if `average`; the log-probability itself if `reference_free`

Chen et al. 2024, arXiv 2405.14953 (MallowsPO), as their code has it. The paper's second model of rankings, by Kendall's
distance, is in no public code, and not here.
Elsewhere: TRL has none. The authors' code is the same; by default it has `average` and `reference_free` on, and beta 10.
Beware: `dispersion_scale` is a constant of the data, which brings the certainty to about 1 on average; on other data it is
another. Entropies are held at a millionth of their largest, where the authors' code is infinite. The reference model runs
beside the policy in every step.

Gradient:
    chosen = -slope * s / where(average, |chosen|, 1)
    rejected = slope * s / where(average, |rejected|, 1)
    s = sigmoid(slope * (x_rejected - x_chosen))
    slope = -beta * dispersion_scale * log(entropy)
    x_chosen = (chosen - where(reference_free, 0, reference_chosen)) / where(average, |chosen|, 1)
    x_rejected = (rejected - where(reference_free, 0, reference_rejected)) / where(average, |rejected|, 1)

Reward: beta * x, without the certainty.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.dispersion import certainty, relative_logps
from pobench.registry import register_loss
from pobench.types import Entropy, LossOutput, Pair, Positive


@register_loss(
    "mallows_dpo",
    title="Mallows-DPO",
    colour="#b03a5b",
    marker="$M$",
    aliases=("MallowsPO",),
    source="arXiv 2405.14953, the authors' repository",
    units={"beta": "per nat", "dispersion_scale": "per nat of certainty"},
    meanings={
        "dispersion_scale": "factor of the certainty",
        "reference_free": "whether the policy's log-probability stands for the log-ratio",
    },
    defaults={
        "beta": "DPO's; the authors' repository has 10 for its means",
        "dispersion_scale": "arXiv 2405.14953, the authors' repository: UltraFeedback, Llama-3",
        "average": "arXiv 2405.14953, the objective as printed",
        "reference_free": "arXiv 2405.14953, the objective as printed",
    },
)
def mallows_dpo(
    policy: Pair,
    reference: Pair,
    entropy: Entropy,
    *,
    beta: Positive = 0.1,
    dispersion_scale: Positive = 0.29,
    average: bool = False,
    reference_free: bool = False,
) -> LossOutput:
    chosen, rejected = relative_logps(policy, None if reference_free else reference, average)
    margin = certainty(entropy, policy, dispersion_scale) * (chosen - rejected)
    return LossOutput(-logsigmoid(beta * margin), beta * chosen.detach(), beta * rejected.detach())
