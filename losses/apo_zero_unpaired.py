"""APO-zero of single answers: a desirable one is raised above the reference and an undesirable one lowered below it.

    loss = 1 - sigmoid( reward )  of a desirable answer
           sigmoid( reward )      of an undesirable one
    reward = beta * (response - reference_response)

D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 7, by answer. A loss of single answers, whose mean is over answers. A pair is
two of them, and gives half of what APO-zero gives, with the gradient below.
Elsewhere: `loss_type="apo_zero_unpaired"` of TRL's KTO trainer, which can weigh the two kinds; it is KTO at z = 0.
Beware: with more answers of one kind than of the other, that kind decides the direction; `kto_unpaired` has weights.

Gradient:
    chosen = -beta * sigmoid(r_chosen) * sigmoid(-r_chosen) / 2
    rejected = beta * sigmoid(r_rejected) * sigmoid(-r_rejected) / 2
    r_chosen = beta * (chosen - reference_chosen)
    r_rejected = beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import AnswerOutput, Positive, SequenceLogps


@register_loss(
    "apo_zero_unpaired",
    title="APO-zero unpaired",
    colour="#ca4769",
    marker="$0$",
    source="arXiv 2408.06266, Eq. 7",
    units={"beta": "per nat"},
    defaults={"beta": "APO-zero's"},
)
def apo_zero_unpaired(
    response: SequenceLogps, label: Tensor, reference: SequenceLogps, *, beta: Positive = 0.1
) -> AnswerOutput:
    reward = beta * (response.total - reference.total)
    risk = logsigmoid(torch.where(label, -reward, reward)).exp()  # exact in both tails
    return AnswerOutput(risk, reward.detach())
