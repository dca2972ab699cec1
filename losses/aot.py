"""AOT: the gaps between the answers, sorted over the batch, must exceed the reference's sorted gaps: a whole distribution wins.

    loss = -log sigmoid( beta * (gap - reference_gap') )
    gap = chosen - rejected; reference_gap' is the reference's gap of the same rank in the batch

Melnyk et al. 2024, arXiv 2406.05882, alignment via optimal transport, paired. In a batch of one pair it is DPO.
Elsewhere: TRL's `loss_type="aot"` sorts the micro-batch of one device; here the whole optimiser batch is sorted, however it
is cut. TRL can smooth the labels: `label_smoothing(dpo)` is that in a batch of one.
Beware: a pair's loss depends on the pairs beside it, so the batch size is a setting of the objective.

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import Batch, LossOutput, Pair, Positive


@register_loss(
    "aot",
    title="AOT",
    colour="#1071f6",
    marker="$A$",
    source="arXiv 2406.05882",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2406.05882, by TRL's index of papers"},
)
def aot(policy: Pair, reference: Pair, batch: Batch, *, beta: Positive = 0.01) -> LossOutput:
    assert batch.reference is not None
    gaps, reference_gaps = (pair.chosen.total - pair.rejected.total for pair in (batch.policy, batch.reference))
    rank = gaps.argsort(stable=True).argsort()[batch.place]
    gap = policy.chosen.total - policy.rejected.total
    chosen = beta * (policy.chosen.total - reference.chosen.total).detach()
    rejected = beta * (policy.rejected.total - reference.rejected.total).detach()
    return LossOutput(-logsigmoid(beta * (gap - reference_gaps.sort().values[rank])), chosen, rejected)
