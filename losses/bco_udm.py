"""BCO with underlying-distribution matching: undesirable answers weigh by how much their prompts are like desirable ones'.

    loss = -log sigmoid( reward - shift )           of a desirable answer
           -weight * log sigmoid( shift - reward )  of an undesirable one
    reward = beta * (response - reference_response)
    weight = clip( density_ratio, min_ratio, max_ratio )

Jung et al. 2024, arXiv 2404.04656: density_ratio is p / (1 - p), p the probability, by a logistic regression on embeddings of
the prompts, that the prompt of an undesirable answer is one of a desirable answer; without gradient. shift is the mean reward
of all answers of this step and the steps before, whatever their label and weight, without gradient. A loss of single answers,
whose mean is over answers. The two answers of a pair share their prompt, so their ratio is 1, and what is measured on held-out
pairs has no weights.
Elsewhere: TRL's BCO trainer has this weight, clipping and shift, by the answers of a micro-batch. Its regression is fit once,
on at most 1024 prompts of each kind by default, and is also asked about those; here a prompt's ratio is that of a regression
which has not seen it.
Beware: the mean is over answers, not over their weights, so weights below 1 lower the part of undesirable answers in each step.

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
    "bco_udm",
    title="BCO w/ UDM",
    colour="#2f7fb8",
    marker="$\\Omega$",
    aliases=("BCO w/ UDM",),
    source="arXiv 2404.04656",
    units={"beta": "per nat", "min_ratio": "ratio of densities", "max_ratio": "ratio of densities"},
    meanings={
        "min_ratio": "smallest weight of an undesirable answer",
        "max_ratio": "largest weight of an undesirable answer",
    },
    defaults={
        "beta": "arXiv 2404.04656, by TRL's index of papers",
        "min_ratio": "TRL's BCO trainer",
        "max_ratio": "TRL's BCO trainer",
    },
    update=seen,
    becomes={"bco_unpaired": {"min_ratio": 1.0, "max_ratio": 1.0}},
)
def bco_udm(
    response: SequenceLogps,
    label: Tensor,
    reference: SequenceLogps,
    batch: AnswerBatch,
    density_ratio: Tensor,
    *,
    beta: Positive = 0.01,
    min_ratio: Positive = 0.5,
    max_ratio: Positive = 10.0,
) -> AnswerOutput:
    reward = beta * (response.total - reference.total)
    ahead = reward - batch.state["rewards"] / batch.state["answers"]
    weight = torch.where(label, 1.0, density_ratio.detach().clamp(min_ratio, max_ratio))
    return AnswerOutput(-weight * logsigmoid(torch.where(label, ahead, -ahead)), reward.detach())
