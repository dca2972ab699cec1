"""Plackett-Luce DPO: the best answer of a list is chosen before the others, then the best of those that are left.

    loss = sum over the answers of log(1 + sum over the answers ranked below it of exp( reward_below - reward ))
    reward = beta * (answer - reference_answer)

Rafailov et al. 2023, arXiv 2305.18290, Appendix A.3. A loss of lists of any length, best first. A list of two is DPO's pair,
which gives the gradient below. Tied answers do not order each other: each is chosen among itself and those ranked below both.
Elsewhere: TRL has none, and the authors' code has pairs alone; the paper sets no rule for ties. A mean over the k - 1 choices
would weigh long lists less.
Beware: the sum has k - 1 terms, so a step on long lists is larger.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(beta * (rejected - reference_rejected) - beta * (chosen - reference_chosen))

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from pobench.list_math import below, log_choices
from pobench.registry import register_loss
from pobench.types import ListOutput, Positive, Responses


@register_loss(
    "plackett_luce",
    title="Plackett-Luce",
    aliases=("PL-DPO",),
    colour="#7a6a45",
    marker="$L$",
    source="arXiv 2305.18290, Appendix A.3",
    units={"beta": "per nat"},
    defaults={"beta": "DPO's"},
    becomes={"dpo": {}},
)
def plackett_luce(responses: Responses, reference: Responses, *, beta: Positive = 0.1) -> ListOutput:
    reward = beta * (responses.total - reference.total)
    choices = log_choices(reward, below(-responses.rank, responses.mask))
    return ListOutput(-choices.sum(1), reward.detach())
