"""TDPO2: DPO, held back where the rejected response's divergence from the reference outgrows the chosen one's.

    loss = -log sigmoid( beta * (ratio_chosen - ratio_rejected) - alpha * beta * (kl_rejected - kl_chosen) )
    ratio = log-ratio to the reference
    kl = sum over the response's tokens of KL( reference || policy ) of the next token; kl_chosen without gradient

Zeng et al. 2024, arXiv 2404.11999 (TDPO). The divergence is that from the reference to the policy, over the whole vocabulary,
before each token of the response. The rejected response's carries gradient to the policy, beside that by the two sums below.
Elsewhere: TRL has none. The authors' code is the same; it logs TDPO1's reward for both, as here.
Beware: the reference model runs beside the policy in every step. The loss's margin is not the difference of the rewards.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(beta * (rejected - reference_rejected - chosen + reference_chosen + alpha * (kl_rejected - kl_chosen)))

Reward: beta * (log-ratio to the reference + divergence).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "tdpo2",
    title="TDPO2",
    colour="#a65fa6",
    marker="$2$",
    source="arXiv 2404.11999",
    units={"beta": "per nat", "alpha": "nats per nat of divergence"},
    meanings={"alpha": "how much the difference of the two divergences counts"},
    defaults={
        "beta": "arXiv 2404.11999, the authors' repository",
        "alpha": "arXiv 2404.11999, the authors' repository",
    },
    becomes={"dpo": {"alpha": 0.0}},
)
def tdpo2(
    policy: Pair, reference: Pair, forward_kl: Tensor, *, beta: Positive = 0.1, alpha: NonNegative = 0.5
) -> LossOutput:
    kl_chosen, kl_rejected = forward_kl.sum(-1).unbind(1)
    chosen = policy.chosen.total - reference.chosen.total
    rejected = policy.rejected.total - reference.rejected.total
    margin = beta * (chosen - rejected - alpha * (kl_rejected - kl_chosen.detach()))
    return LossOutput(
        -logsigmoid(margin), beta * (chosen + kl_chosen).detach(), beta * (rejected + kl_rejected).detach()
    )
