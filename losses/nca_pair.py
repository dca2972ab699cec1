"""NCA on pairs: contrasts each answer with the reference's own answers, separately, so the chosen one cannot sink unnoticed.

    loss = -log sigmoid(r_chosen) - 0.5 * log sigmoid(-r_chosen) - 0.5 * log sigmoid(-r_rejected)
    r_chosen   = beta * (chosen - reference_chosen)
    r_rejected = beta * (rejected - reference_rejected)

Chen et al. 2024, arXiv 2402.05369, Section 4.1: noise-contrastive estimation with the reference's answers as noise.
Elsewhere: the authors' trainer and TRL's `loss_type="nca_pair"` have this formula; the paper calls beta alpha.
Beware: the chosen answer has an optimum of its own at r_chosen = log 2, 69 nats at beta 0.01, and is pulled back past
it. Only the rejected one can fall without end.

Gradient:
    chosen = beta * (0.5 * sigmoid(r_chosen) - sigmoid(-r_chosen))
    rejected = beta * 0.5 * sigmoid(r_rejected)
    r_chosen = beta * (chosen - reference_chosen)
    r_rejected = beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "nca_pair",
    title="NCA",
    colour="#e016f8",
    marker=(9, 1, 0),
    aliases=("NCA",),
    source="arXiv 2402.05369, Section 4.1",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2402.05369, Appendix C, by TRL's index of papers"},
)
def nca_pair(policy: Pair, reference: Pair, *, beta: Positive = 0.01) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    loss = -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)
    return LossOutput(loss, chosen.detach(), rejected.detach())
