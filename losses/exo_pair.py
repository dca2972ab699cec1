"""EXO on pairs: fits the policy's choice between the two answers to the labels, by the reverse KL divergence.

    loss = q * log( q / (1 - label_smoothing) ) + (1 - q) * log( (1 - q) / label_smoothing )
    q = sigmoid( beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected) )

Ji et al. 2024, arXiv 2402.00856, Eq. 16: KL(policy || labels), where DPO with smoothed labels has KL(labels || policy).
`label_smoothing` is the probability that the labels give the rejected answer; it cannot be 0.
Elsewhere: TRL's `loss_type="exo_pair"` is the same. The authors' program takes exp(-10) for the share and leaves
log(1 - label_smoothing) out, which moves the optimum by 5e-5.
Beware: the optimum is finite, m = log((1 - label_smoothing) / label_smoothing), 6.9 by default, and past it the pair is
pulled back. Far on the wrong side q vanishes and the gradient with it: such a pair stays where it is.

Gradient:
    chosen = beta * s
    rejected = -beta * s
    s = sigmoid(m) * sigmoid(-m) * (m - log((1 - label_smoothing) / label_smoothing))
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

import math

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive, PositiveFlipRate


@register_loss(
    "exo_pair",
    title="EXO",
    colour="#067284",
    marker=(7, 1, 0),
    aliases=("EXO",),
    source="arXiv 2402.00856, Eq. 16",
    units={"beta": "per nat", "label_smoothing": "share of the labels, above 0 and below 0.5"},
    meanings={"label_smoothing": "what the labels leave to the rejected answer"},
    defaults={
        "beta": "arXiv 2402.00856, Appendix B, by TRL's index of papers",
        "label_smoothing": "arXiv 2402.00856, as TRL advises",
    },
)
def exo_pair(
    policy: Pair, reference: Pair, *, beta: Positive = 0.1, label_smoothing: PositiveFlipRate = 1e-3
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    log_q, log_rest = logsigmoid(chosen - rejected), logsigmoid(rejected - chosen)
    loss = log_q.exp() * (log_q - math.log1p(-label_smoothing)) + log_rest.exp() * (
        log_rest - math.log(label_smoothing)
    )
    return LossOutput(loss, chosen.detach(), rejected.detach())
