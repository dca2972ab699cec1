"""α-DPO: SimPO with a margin of each pair's own: larger where the policy has moved the pair further than usual.

    loss = -log sigmoid( beta * (d - gamma_beta_ratio - alpha * z) )
    d = chosen / |chosen| - rejected / |rejected|
    z = (d - reference_d - mean) / spread, without gradient

Wu et al. 2024, arXiv 2410.10148: mean and spread of d - reference_d are moving averages over steps, with weight 0.9 on the
past, from 0. At alpha = 0 it is SimPO.
Elsewhere: TRL has none. As in the authors' code, the averages start at 0 and are not corrected, so z is up to ten times too
large in the first steps; here they are of whole optimiser batches, and the spread is 0.001 nats per token at least, since
before the first step it is rounding alone.
Beware: it needs a reference, which SimPO does not. The batch size is a setting of the objective.

Reward: beta * mean log-probability.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import Batch, LossOutput, NonNegative, Pair, Positive, State

LEAST = 1e-3  # nats per token: of the spread, which is rounding alone before the first step


def moved(batch: Batch) -> Tensor:
    """(pairs in the batch,) nats per token: how far each pair has moved from the reference."""
    assert batch.reference is not None
    policy, reference = batch.policy, batch.reference
    return policy.chosen.mean - policy.rejected.mean - reference.chosen.mean + reference.rejected.mean


def averages(batch: Batch) -> State:
    """Moving averages of how far the batch's pairs have moved, in nats per token, and of their spread."""
    return batch.averages(moved(batch))


@register_loss(
    "alpha_dpo",
    title="α-DPO",
    colour="#c364d3",
    marker="$a$",
    aliases=("α-DPO",),
    source="arXiv 2410.10148",
    units={"beta": "per (nat per token)", "gamma_beta_ratio": "nats per token", "alpha": "nats per token"},
    ranges={"alpha": (0.05, 0.1, 0.2)},
    meanings={"alpha": "how much a pair's margin follows how far it has moved"},
    defaults={
        "beta": "arXiv 2410.10148, the authors' repository: 2.5 to 10",
        "gamma_beta_ratio": "arXiv 2410.10148, the authors' repository: 0.15 to 0.6",
        "alpha": "arXiv 2410.10148, the authors' repository: 0.05 to 0.2",
    },
    update=averages,
    becomes={"simpo": {"alpha": 0.0}},
)
def alpha_dpo(
    policy: Pair,
    reference: Pair,
    batch: Batch,
    *,
    beta: Positive = 2.5,
    gamma_beta_ratio: NonNegative = 0.3,
    alpha: NonNegative = 0.1,
) -> LossOutput:
    chosen, rejected = policy.chosen.mean, policy.rejected.mean
    margin = gamma_beta_ratio + alpha * (moved(batch)[batch.place] - batch.state["mean"]) / max(
        batch.state["spread"], LEAST
    )
    loss = -logsigmoid(beta * (chosen - rejected - margin))
    return LossOutput(loss, beta * chosen.detach(), beta * rejected.detach())
