"""R-DPO: DPO with the difference of lengths in the margin, so that length alone earns nothing.

    loss = -log sigmoid( beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)
                         + alpha * (|chosen| - |rejected|) )

Park et al. 2024, arXiv 2403.19159; as printed in arXiv 2405.14734, Table 7.
Elsewhere: neither TRL nor HALOs has it; at alpha = 0 it is their DPO.
Beware: it saturates. At alpha = 0.05 and a length difference of 100 tokens the weight of a pair is 6.7e-3 at the first
step, at alpha = 0.5 and 50 tokens 1e-11. Watch the share of saturated pairs.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(beta * (rejected - reference_rejected) - beta * (chosen - reference_chosen) - longer)
    longer = alpha * (|chosen| - |rejected|)

Reward: beta * log-ratio to the reference; the length term is a margin of the pair, not a reward.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive


@register_loss(
    "rdpo",
    title="R-DPO",
    colour="#c64b61",
    marker="^",
    source="arXiv 2403.19159",
    units={"beta": "per nat", "alpha": "reward per token of length difference"},
    ranges={"beta": (0.01, 0.05, 0.1), "alpha": (0.05, 0.1, 0.5, 1.0)},
    meanings={"alpha": "what one token of length difference counts in the margin"},
    defaults={
        "beta": "DPO's, the largest of arXiv 2405.14734, Table 7; the tuned value is not published",
        "alpha": "the smallest of arXiv 2405.14734, Table 7; the tuned value is not published",
    },
    in_paper=True,
    becomes={"dpo": {"alpha": 0.0}},
)
def rdpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1, alpha: NonNegative = 0.05) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    longer = (policy.chosen.length - policy.rejected.length).to(chosen.dtype)
    return LossOutput(-logsigmoid(chosen - rejected + alpha * longer), chosen.detach(), rejected.detach())
