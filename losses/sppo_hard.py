"""SPPO with hard labels: each log-ratio is regressed on its own target, 1 / (2 beta) for chosen and -1 / (2 beta) for rejected.

    loss = (chosen - reference_chosen - 1 / (2 * beta))^2 + (rejected - reference_rejected + 1 / (2 * beta))^2

Wu et al. 2024, arXiv 2405.00675, Eq. 4.7, with a win probability of 1 for the chosen answer and 0 for the rejected one;
beta is one over the paper's eta. The paper scores several samples of a prompt with a preference model; a data set of
pairs has only these two probabilities.
Elsewhere: TRL's `loss_type="sppo_hard"` is the same sum; the authors' trainer takes half of it.
Beware: it is in squared nats, 500000 at the first step by default: do not compare its values, and clip gradients. Past
its target each answer is pulled back.

Gradient:
    chosen = 2 * (chosen - reference_chosen - 1 / (2 * beta))
    rejected = 2 * (rejected - reference_rejected + 1 / (2 * beta))

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "sppo_hard",
    title="SPPO",
    colour="#068307",
    marker=(6, 1, 30),
    aliases=("SPPO",),
    source="arXiv 2405.00675, Eq. 4.7",
    units={"beta": "1 / nat; the targets are ±1 / (2 beta)"},
    meanings={"beta": "one over the distance between the two targets"},
    defaults={"beta": "arXiv 2405.00675: eta = 1000"},
)
def sppo_hard(policy: Pair, reference: Pair, *, beta: Positive = 0.001) -> LossOutput:
    chosen = policy.chosen.total - reference.chosen.total
    rejected = policy.rejected.total - reference.rejected.total
    target = 1 / (2 * beta)
    loss = (chosen - target) ** 2 + (rejected + target) ** 2
    return LossOutput(loss, beta * chosen.detach(), beta * rejected.detach())
