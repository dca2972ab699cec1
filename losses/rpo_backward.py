"""Reward-aware preference optimization, backward KL: the policy's preference is fitted to the ratings' one, as a cross-entropy.

    loss = KL( (p, 1 - p) || (q, 1 - q) )
    p = sigmoid(reward_scale * (score_chosen - score_rejected))
    q = sigmoid( beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected) )

Adler et al. 2024 (Nemotron-4 340B), arXiv 2406.11704, as NeMo-Aligner's `rpo_bwd_kl`. Where all ratings differ
alike it is cDPO less a constant.
Elsewhere: TRL has none. NeMo-Aligner is the authors' own program, and the one source of the formula.
Beware: a pair whose ratings differ little has a target near 0 nats, and is pulled back beyond it.

Gradient:
    chosen = beta * (sigmoid(d) - sigmoid(t))
    rejected = -beta * (sigmoid(d) - sigmoid(t))
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
    "rpo_backward",
    title="RPO backward KL",
    colour="#516f36",
    marker="$B$",
    aliases=("rpo_bwd_kl", "RPO backward KL"),
    source="arXiv 2406.11704, NeMo-Aligner",
    units={"beta": "per nat", "reward_scale": "reward per rating"},
    meanings={"reward_scale": "how sure one point of rating makes the target"},
    defaults={"beta": "NeMo-Aligner", "reward_scale": "NeMo-Aligner"},
)
def rpo_backward(
    policy: Pair, reference: Pair, scores: Tensor, *, beta: Positive = 0.2, reward_scale: NonNegative = 1.0
) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    margin, target = chosen - rejected, reward_scale * (scores[:, 0] - scores[:, 1])
    won = target.sigmoid() * (logsigmoid(target) - logsigmoid(margin))
    lost = (-target).sigmoid() * (logsigmoid(-target) - logsigmoid(-margin))
    return LossOutput(won + lost, chosen.detach(), rejected.detach())
