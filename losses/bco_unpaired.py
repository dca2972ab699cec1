"""BCO of single answers: a classifier's logit tells desirable from undesirable ones, from the mean of all rewards so far.

    loss = -log sigmoid( reward - shift )  of a desirable answer
           -log sigmoid( shift - reward )  of an undesirable one
    reward = beta * (response - reference_response)

Jung et al. 2024, arXiv 2404.04656: shift is the mean reward of all answers of this step and the steps before, whatever their
label, without gradient. A loss of single answers, whose mean is over answers. A pair is two of them, and gives half of what the
loss `bco_shift` gives.
Elsewhere: TRL's BCO trainer has this formula and this mean of all history, by the answers of a micro-batch. It can weigh
undesirable answers by how like a desirable answer's their prompt is: `bco_udm`. LLaMA-Factory averages the means of batches.
Beware: all history counts alike, so the shift lags behind once many steps are done, and with more answers of one kind it
follows that kind.

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import AnswerBatch, AnswerOutput, Positive, SequenceLogps, State


def seen(batch: AnswerBatch, *, beta: float) -> State:
    """The sum of all rewards so far, and their number."""
    assert batch.reference is not None
    now = float((batch.policy.total - batch.reference.total).double().sum())
    answers = batch.state.get("answers", 0) + len(batch.policy.total)
    return {"rewards": batch.state.get("rewards", 0.0) + beta * now, "answers": answers}


@register_loss(
    "bco_unpaired",
    title="BCO unpaired",
    colour="#3b9e61",
    marker="$\\beta$",
    aliases=("BCO unpaired",),
    source="arXiv 2404.04656",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2404.04656, by TRL's index of papers"},
    update=seen,
)
def bco_unpaired(
    response: SequenceLogps,
    label: Tensor,
    reference: SequenceLogps,
    batch: AnswerBatch,
    *,
    beta: Positive = 0.01,
) -> AnswerOutput:
    reward = beta * (response.total - reference.total)
    ahead = reward - batch.state["rewards"] / batch.state["answers"]
    return AnswerOutput(-logsigmoid(torch.where(label, ahead, -ahead)), reward.detach())
