"""γ-PO on SimPO: of a shared sum of margins, a pair gets more where its gap is larger, and less where it is in doubt.

    loss = -log sigmoid( beta * (chosen / |chosen| - rejected / |rejected|) - gamma_i )
    gamma_i = beta * gamma_beta_ratio * N * p_i, without gradient
    p = argmin of mean_j -log sigmoid( gap_j - gamma_j ) + tau * KL(p || 1 / N), over N gaps

Sun et al. 2025, arXiv 2506.03690: p is found by 20 steps of mirror descent from 1 / N, of size 0.5 / tau, at most 1. For large
tau it is SimPO. The N gaps are the batch's and those of the steps just before, 256 in all.
Elsewhere: TRL has none. The authors' code adds gaps drawn at random from the last 2048 to a micro-batch's, up to 256 in all,
starts its memory with 8 normal draws, and does not use its twentieth step. Here the latest take the place of the draws and the
memory starts empty, so that a run is the same each time and however its batches are cut.
Beware: a batch of 256 pairs or more is alone. At the first step, in a batch of one pair, it is SimPO. The batch size is a
setting of the objective.

Reward: beta * mean log-probability.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.shared_margins import latest_gaps, margins_of
from pobench.types import Batch, LossOutput, NonNegative, Pair, Positive, State


def latest(batch: Batch, *, beta: float) -> State:
    return latest_gaps(batch, beta * (batch.policy.chosen.mean - batch.policy.rejected.mean))


@register_loss(
    "gamma_po",
    title="γ-PO",
    colour="#3f7fc4",
    marker="$g$",
    aliases=("γ-PO",),
    source="arXiv 2506.03690",
    units={
        "beta": "per (nat per token)",
        "gamma_beta_ratio": "nats per token",
        "tau": "loss per nat of KL",
    },
    ranges={"beta": (2.5, 10.0), "gamma_beta_ratio": (0.15, 0.3, 0.4, 0.5), "tau": (3.0, 10.0, 20.0)},
    meanings={
        "tau": "how much the margins resist becoming unequal",
    },
    defaults={
        "beta": "arXiv 2506.03690, the authors' repository: Mistral",
        "gamma_beta_ratio": "arXiv 2506.03690, the authors' repository: Mistral",
        "tau": "arXiv 2506.03690, the authors' repository: Mistral, Llama-3",
    },
    update=latest,
)
def gamma_po(
    policy: Pair,
    batch: Batch,
    *,
    beta: Positive = 2.5,
    gamma_beta_ratio: NonNegative = 0.15,
    tau: Positive = 10.0,
) -> LossOutput:
    chosen, rejected = beta * policy.chosen.mean, beta * policy.rejected.mean
    margin = margins_of(batch, beta * gamma_beta_ratio, tau).to(chosen)
    return LossOutput(-logsigmoid(chosen - rejected - margin), chosen.detach(), rejected.detach())
