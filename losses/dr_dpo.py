"""Dr. DPO: DPO made robust to wrong pairs: of a batch, the pairs with a small loss count more.

    loss = -robustness * log mean_batch exp( log sigmoid(m) / robustness )
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Wu et al. 2024, arXiv 2407.07880: the worst case over distributions of pairs near the data's, whose size beta' is
`robustness`. For large robustness it is DPO; at 1 it is -log of the mean probability.
Elsewhere: TRL has none. The authors' code takes the mean over a micro-batch; here it runs over the whole optimiser batch.
Beware: a pair that is wrong early is believed to be labelled wrongly, and pulls little.

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import Batch, LossOutput, Pair, Positive


@register_loss(
    "dr_dpo",
    title="Dr. DPO",
    colour="#f41647",
    marker="$r$",
    aliases=("Dr. DPO",),
    source="arXiv 2407.07880",
    units={"beta": "per nat", "robustness": "nats of loss"},
    meanings={"robustness": "the loss at which a pair begins to be doubted"},
    defaults={"beta": "DPO's", "robustness": "arXiv 2407.07880, the authors' repository"},
)
def dr_dpo(
    policy: Pair, reference: Pair, batch: Batch, *, beta: Positive = 0.1, robustness: Positive = 1.0
) -> LossOutput:
    def objective(of_batch: Pair) -> Tensor:
        assert batch.reference is not None
        chosen = of_batch.chosen.total - batch.reference.chosen.total
        rejected = of_batch.rejected.total - batch.reference.rejected.total
        known = logsigmoid(beta * (chosen - rejected)) / robustness
        return -robustness * (known.logsumexp(0) - math.log(len(known)))

    chosen = beta * (policy.chosen.total - reference.chosen.total).detach()
    rejected = beta * (policy.rejected.total - reference.rejected.total).detach()
    return LossOutput(batch.share(objective, policy), chosen, rejected)
