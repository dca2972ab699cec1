"""γ-PO on DPO: a pair's target moves up where its gap is larger than others', and down where it is in doubt.

    loss = -log sigmoid( m - (gamma_i - gamma) )
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
    gamma_i = gamma * N * p_i, without gradient
    p = argmin of mean_j -log sigmoid( m_j - gamma_j ) + tau * KL(p || 1 / N), over N gaps m_j

Sun et al. 2025, arXiv 2506.03690, in the form of the authors' code, where the mean target is 0. p is found by 20 steps of
mirror descent from 1 / N, of size 0.5 / tau, at most 1. For large tau, and at gamma 0, it is DPO. The N gaps are the batch's
and those of the steps just before, 256 in all.
Elsewhere: TRL has none. The authors' code adds gaps drawn at random from the last 2048 to a micro-batch's, up to 256 in all,
starts its memory with 8 normal draws, and does not use its twentieth step. Here the latest take the place of the draws and the
memory starts empty, so that a run is the same each time and however its batches are cut.
Beware: a batch of 256 pairs or more is alone. At the first step, in a batch of one pair, it is DPO. The batch size is a
setting of the objective.

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.shared_margins import latest_gaps, margins_of
from pobench.types import Batch, LossOutput, NonNegative, Pair, Positive, State


def latest(batch: Batch, *, beta: float) -> State:
    assert batch.reference is not None
    policy, reference = batch.policy, batch.reference
    moved = policy.chosen.total - reference.chosen.total - (policy.rejected.total - reference.rejected.total)
    return latest_gaps(batch, beta * moved)


@register_loss(
    "gamma_po_dpo",
    title="γ-PO on DPO",
    colour="#b8741c",
    marker="$G$",
    aliases=("γ-PO on DPO", "γ-DPO"),
    source="arXiv 2506.03690",
    units={
        "beta": "per nat",
        "gamma": "reward, absolute",
        "tau": "loss per nat of KL",
    },
    ranges={"tau": (3.0, 10.0, 20.0)},
    meanings={
        "gamma": "the mean of the margins that are shared out, which is taken off again",
        "tau": "how much the margins resist becoming unequal",
    },
    defaults={
        "beta": "DPO's",
        "gamma": "not published",
        "tau": "arXiv 2506.03690, the authors' repository: Mistral, Llama-3, on SimPO",
    },
    update=latest,
)
def gamma_po_dpo(
    policy: Pair,
    reference: Pair,
    batch: Batch,
    *,
    beta: Positive = 0.1,
    gamma: NonNegative = 1.0,
    tau: Positive = 10.0,
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    shift = (margins_of(batch, gamma, tau) - gamma).to(chosen)
    return LossOutput(-logsigmoid(chosen - rejected - shift), chosen.detach(), rejected.detach())
