"""Reward-aware preference optimization, forward KL: the policy's preference stays where the ratings' one has its mass.

    loss = KL( (q, 1 - q) || (p, 1 - p) )
    p = sigmoid(reward_scale * (score_chosen - score_rejected))
    q = sigmoid( beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected) )

Adler et al. 2024 (Nemotron-4 340B), arXiv 2406.11704, as NeMo-Aligner's `rpo_fwd_kl`. Where all ratings differ
alike it is `exo_pair`.
Elsewhere: TRL has none. NeMo-Aligner is the authors' own program, and the one source of the formula.
Beware: its gradient fades on both sides far from 0, so a pair that is very wrong hardly moves.

Gradient:
    chosen = beta * sigmoid(d) * sigmoid(-d) * (d - t)
    rejected = -beta * sigmoid(d) * sigmoid(-d) * (d - t)
    d = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
    t = reward_scale * (score_chosen - score_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "rpo_forward",
    title="RPO forward KL",
    colour="#905b6f",
    marker="$K$",
    aliases=("rpo_fwd_kl", "RPO forward KL"),
    source="arXiv 2406.11704, NeMo-Aligner",
    units={"beta": "per nat", "reward_scale": "reward per rating"},
    meanings={"reward_scale": "how sure one point of rating makes the target"},
    defaults={"beta": "NeMo-Aligner", "reward_scale": "NeMo-Aligner"},
)
def rpo_forward(
    policy: Pair, reference: Pair, scores: Tensor, *, beta: Positive = 0.2, reward_scale: NonNegative = 1.0
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    margin, target = chosen - rejected, reward_scale * (scores[:, 0] - scores[:, 1])
    log_q, log_rest = logsigmoid(margin), logsigmoid(-margin)  # their exponentials keep the digits of small slopes
    won, lost = log_q.exp() * (log_q - logsigmoid(target)), log_rest.exp() * (log_rest - logsigmoid(-target))
    return LossOutput(won + lost, chosen.detach(), rejected.detach())
