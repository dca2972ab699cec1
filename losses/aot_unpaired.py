"""AOT, unpaired: the chosen answers' log-ratios, sorted over the batch, must exceed the rejected ones' of the same rank.

    loss = -log sigmoid( beta * (sorted chosen log-ratios - sorted rejected log-ratios) ), a mean over ranks

Melnyk et al. 2024, arXiv 2406.05882, alignment via optimal transport, unpaired. In a batch of one pair it is DPO.
Elsewhere: TRL's `loss_type="aot_unpaired"` sorts the micro-batch of one device; here the whole optimiser batch is sorted. An
older TRL called this one aot_pair.
Beware: which answer belongs to which prompt is not read. The batch size is a setting of the objective.

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import Batch, LossOutput, Pair, Positive


@register_loss(
    "aot_unpaired",
    title="AOT unpaired",
    colour="#774dcd",
    marker="$U$",
    aliases=("AOT unpaired",),
    source="arXiv 2406.05882",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2406.05882, by TRL's index of papers"},
)
def aot_unpaired(policy: Pair, reference: Pair, batch: Batch, *, beta: Positive = 0.01) -> LossOutput:
    def objective(of_batch: Pair) -> Tensor:
        assert batch.reference is not None
        chosen = of_batch.chosen.total - batch.reference.chosen.total
        rejected = of_batch.rejected.total - batch.reference.rejected.total
        return -logsigmoid(beta * (chosen.sort(stable=True).values - rejected.sort(stable=True).values))

    chosen = beta * (policy.chosen.total - reference.chosen.total).detach()
    rejected = beta * (policy.rejected.total - reference.rejected.total).detach()
    return LossOutput(batch.share(objective, policy), chosen, rejected)
