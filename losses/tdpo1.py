"""TDPO1: DPO, with the divergence from the reference along each response added to its log-ratio.

    loss = -log sigmoid( beta * (chosen - reference_chosen + kl_chosen) - beta * (rejected - reference_rejected + kl_rejected) )
    kl = sum over the response's tokens of KL( reference || policy ) of the next token

Zeng et al. 2024, arXiv 2404.11999 (TDPO). The divergence is that from the reference to the policy, over the whole vocabulary,
before each token of the response. It carries gradient to the policy, beside that by the two sums below.
Elsewhere: TRL has none. The authors' code is the same; its configuration has this form on, and TDPO2 off.
Beware: the reference model runs beside the policy in every step. A response's divergence raises its reward, so the loss falls
as the policy leaves the reference along the chosen response.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(beta * (rejected - reference_rejected + kl_rejected) - beta * (chosen - reference_chosen + kl_chosen))

Reward: beta * (log-ratio to the reference + divergence).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "tdpo1",
    title="TDPO1",
    colour="#3d8c8c",
    marker="$1$",
    source="arXiv 2404.11999",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2404.11999, the authors' repository"},
)
def tdpo1(policy: Pair, reference: Pair, forward_kl: Tensor, *, beta: Positive = 0.1) -> LossOutput:
    kl_chosen, kl_rejected = forward_kl.sum(-1).unbind(1)
    chosen = beta * (policy.chosen.total - reference.chosen.total + kl_chosen)
    rejected = beta * (policy.rejected.total - reference.rejected.total + kl_rejected)
    return LossOutput(-logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())
