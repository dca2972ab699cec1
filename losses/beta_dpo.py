"""β-DPO: beta follows the batch: larger where its pairs have moved further than usual; and the oddest pairs are left out.

    loss = -log sigmoid( beta_batch * d ), a mean over the pairs that are kept
    beta_batch = max(0.001, beta * (1 + strength * (mean of kept d - mean)))
    d = (chosen - reference_chosen) - (rejected - reference_rejected)

Wu et al. 2024, arXiv 2407.08639: mean and spread of d are moving averages over steps, with weight 0.9 on the past, from 0.
Four pairs in five are kept, drawn without replacement with weights exp(-((d - mean) / spread)² / 2).
Elsewhere: TRL has none. As in the authors' code, the averages start at 0 and are not corrected; here they, and the draw, are
of whole optimiser batches, and the draw of a step is the same in every run. The spread is 0.001 nats at least, since before
the first step it is rounding alone.
Beware: a pair that is left out has loss and gradient 0 in that step. The batch size is a setting of the objective.

Reward: beta * log-ratio to the reference, with beta as it is set.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import Batch, LossOutput, NonNegative, Pair, Positive, State

LEAST = 1e-3  # nats: of the spread, which is rounding alone before the first step


def averages(batch: Batch) -> State:
    """Moving averages of the batch's mean gap and of its spread, in nats, and the number of steps."""
    return {**batch.averages(gaps_of(batch)), "steps": batch.state.get("steps", 0) + 1}


@register_loss(
    "beta_dpo",
    title="β-DPO",
    colour="#946716",
    marker="$b$",
    aliases=("β-DPO",),
    source="arXiv 2407.08639",
    units={"beta": "per nat", "strength": "per nat"},
    meanings={"strength": "how much beta follows the batch"},
    defaults={"beta": "DPO's", "strength": "arXiv 2407.08639, the authors' repository"},
    update=averages,
)
def beta_dpo(
    policy: Pair, reference: Pair, batch: Batch, *, beta: Positive = 0.1, strength: NonNegative = 0.6
) -> LossOutput:
    gaps, kept = gaps_of(batch), kept_of(batch)
    ours = max(0.001, beta * (1 + strength * (float(gaps[kept].mean()) - batch.state["mean"])))
    chosen = policy.chosen.total - reference.chosen.total
    rejected = policy.rejected.total - reference.rejected.total
    weight = torch.zeros_like(gaps).index_fill(0, kept, len(gaps) / len(kept))[batch.place]
    loss = weight * -logsigmoid(ours * (chosen - rejected))
    return LossOutput(loss, beta * chosen.detach(), beta * rejected.detach())


def gaps_of(batch: Batch) -> Tensor:
    """(pairs in the batch,) nats: how far each pair has moved from the reference."""
    assert batch.reference is not None
    chosen = batch.policy.chosen.total - batch.reference.chosen.total
    return chosen - (batch.policy.rejected.total - batch.reference.rejected.total)


def kept_of(batch: Batch) -> Tensor:
    """The places of the pairs that are kept: the largest of log-weight + Gumbel noise, a draw without replacement."""
    gaps = gaps_of(batch)
    noise = torch.rand(len(gaps), generator=torch.Generator().manual_seed(batch.state["steps"]), dtype=torch.float64)
    odd = ((gaps.cpu().double() - batch.state["mean"]) / max(batch.state["spread"], LEAST)) ** 2 / 2
    order = (-odd - (-noise.log()).log()).argsort(descending=True, stable=True)
    return order[: max(1, round(0.8 * len(gaps)))].to(gaps.device)
