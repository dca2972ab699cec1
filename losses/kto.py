"""KTO: scores each response alone, against z, the mean log-ratio of mismatched pairs.

    loss = desirable_weight   * (1 - sigmoid( beta * (chosen - reference_chosen) - z ))
         + undesirable_weight * (1 - sigmoid( z - beta * (rejected - reference_rejected) ))
    z    = max(0, beta * kl)

Ethayarajh et al. 2024, arXiv 2402.01306. `kl` is the mean log-ratio over mismatched prompts and responses of the whole
optimiser batch, unclamped; the clamp comes last, and z carries no gradient. The terms of a pair are added: 1.0
before the first step.
Elsewhere: TRL and HALOs take kl over each micro-batch and the mean over responses: with as many chosen as rejected ones
their loss is half of this. The SimPO paper's table prints `+ sigmoid(z - reward)` for the second side, a sign error that
would raise the rejected response.
Beware: kl from a small micro-batch is noise, and a batch of one has no mismatched pair.

Gradient:
    chosen = -desirable_weight * beta * sigmoid(r_chosen - z) * sigmoid(z - r_chosen)
    rejected = undesirable_weight * beta * sigmoid(r_rejected - z) * sigmoid(z - r_rejected)
    r_chosen = beta * (chosen - reference_chosen)
    r_rejected = beta * (rejected - reference_rejected)
    z = max(0, beta * kl)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "kto",
    title="KTO",
    colour="#7c70a5",
    marker="h",
    source="arXiv 2402.01306",
    units={"beta": "per nat", "desirable_weight": "loss per chosen", "undesirable_weight": "loss per rejected"},
    ranges={"beta": (0.01, 0.05, 0.1), "desirable_weight": (1.0,), "undesirable_weight": (1.0,)},
    defaults={
        "beta": "TRL's default, the largest of arXiv 2405.14734, Table 7; the tuned value is not published",
        "desirable_weight": "arXiv 2405.14734, Table 7: the only value",
        "undesirable_weight": "arXiv 2405.14734, Table 7: the only value",
    },
    in_paper=True,
)
def kto(
    policy: Pair,
    reference: Pair,
    kl: Tensor,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    z = (beta * kl.detach()).clamp(min=0)
    # 1 - sigmoid(x) = sigmoid(-x) = exp(logsigmoid(-x)): value and gradient then keep their digits in both tails
    loss = desirable_weight * logsigmoid(z - chosen).exp() + undesirable_weight * logsigmoid(rejected - z).exp()
    return LossOutput(loss, chosen.detach(), rejected.detach())
