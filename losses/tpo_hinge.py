"""TPO with a hinge: of three answers, the best is learnt by its likelihood; a hinge without reference is between the others.

    loss = max(0, 1 - beta * second + beta * worst) - sft_weight * best

TPO (Saeidi et al. 2024, arXiv 2405.16681) with a hinge for its logistic loss, as TRL's experimental TPO trainer has it with
`loss_type="hinge"`; no paper defines it. All log-probabilities in the contrast are sums; `sft_reduction` is of the last term. A
loss of lists, read as TPO reads them. Of two answers the best is the second, too: that is beta times SLiC-HF's hinge at
delta = 1 / beta, and its likelihood term, which gives the gradient below.
Elsewhere: TRL takes the last term's mean over the tokens of a micro-batch.
Beware: at TRL's default of beta, 0.01, the hinge asks for 100 nats. Of more than three answers, those between the second and
the worst are not read.

Gradient:
    chosen = -beta * hinge - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = beta * hinge
    hinge = where(1 - beta * chosen + beta * rejected > 0, 1, 0)

Reward: beta * summed log-probability.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.list_math import Triple, below, mean_of
from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import ListOutput, NonNegative, Positive, Reduction, Responses, SequenceLogps


@register_loss(
    "tpo_hinge",
    title="TPO hinge",
    colour="#5f8f00",
    marker="$4$",
    source="arXiv 2405.16681, as in TRL's experimental TPO trainer, `hinge`",
    units={"beta": "per nat", "sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    meanings={"beta": "the scale of the margin, and one over the gap that is asked for"},
    defaults={
        "beta": "TPO's",
        "sft_weight": "TPO's",
        "sft_reduction": "TPO's",
    },
    becomes={"slic_hf": {"beta": 1.0, "slic_hf.delta": 1.0}},
)
def tpo_hinge(
    responses: Responses,
    *,
    beta: Positive = 0.01,
    sft_weight: NonNegative = 1.0,
    sft_reduction: Reduction = "mean",
) -> ListOutput:
    reward = beta * responses.total
    three = Triple.of(below(-responses.rank, responses.mask), responses.mask)
    contrast = mean_of(three.pairs, relu(1 - (reward[:, :, None] - reward[:, None, :])))
    nll = response_nll(SequenceLogps(responses.total, responses.length), sft_reduction)
    return ListOutput(contrast + sft_weight * mean_of(three.best, nll), reward.detach())
