"""BCO on pairs: the reward is a classifier's logit, 1 for the chosen answer and 0 for the rejected one.

    loss = -log sigmoid( beta * (chosen - reference_chosen) ) - log sigmoid( -beta * (rejected - reference_rejected) )

Jung et al. 2024, arXiv 2404.04656, Section 4: the binary cross-entropy that bounds DPO's loss from above.
Elsewhere: TRL's `loss_type="bco_pair"` is the same; so is the "biased" loss of the NCA authors' trainer.
Beware: the paper's full method subtracts the running mean of the rewards over training from both rewards. This loss, like
TRL's of this name, has no such shift and keeps no state, so the split of a batch changes nothing. LLaMA-Factory's has it.

Gradient:
    chosen = -beta * sigmoid(-beta * (chosen - reference_chosen))
    rejected = beta * sigmoid(beta * (rejected - reference_rejected))

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "bco_pair",
    title="BCO",
    colour="#b506bc",
    marker=(12, 1, 0),
    aliases=("BCO",),
    source="arXiv 2404.04656, Section 4",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2404.04656, Appendix C, by TRL's index of papers"},
)
def bco_pair(policy: Pair, reference: Pair, *, beta: Positive = 0.01) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    return LossOutput(-logsigmoid(chosen) - logsigmoid(-rejected), chosen.detach(), rejected.detach())
