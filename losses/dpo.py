"""DPO: the reward is the change of the log-probability from the reference's.

    loss = -log sigmoid( beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected) )

Rafailov et al. 2023, arXiv 2305.18290, Eq. 7. All four are sums over the response, so typical values of beta are 0.01 to 0.1.
SPIN (arXiv 2401.01335) is this loss on pairs of a human answer and one of the reference's own, round by round.
Elsewhere: TRL's default `loss_type="sigmoid"` of its DPO trainer and HALOs' are the same.
Beware: only the difference counts: the chosen response may become less likely as long as the rejected one falls faster.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(beta * (rejected - reference_rejected) - beta * (chosen - reference_chosen))

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "dpo",
    title="DPO",
    colour="#c05712",
    marker="s",
    source="arXiv 2305.18290, Eq. 7",
    units={"beta": "per nat"},
    ranges={"beta": (0.01, 0.05, 0.1)},
    defaults={"beta": "arXiv 2305.18290, Appendix B; the SimPO authors' tuned value is 0.01"},
    in_paper=True,
)
def dpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    return LossOutput(-logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())
