"""TPO: of three answers, the best is learnt by its likelihood; DPO's contrast without the reference is between the others.

    loss = -log sigmoid( beta * second - beta * worst ) - sft_weight * best

Saeidi et al. 2024, arXiv 2405.16681. All log-probabilities in the contrast are sums; `sft_reduction` is of the last term. A
loss of lists: best, second and worst are the authors' gold, chosen and rejected answers, by their recipe for UltraFeedback. Of
two answers the best is the second, too: that is CPO, which gives the gradient below. Where answers tie, each term is the mean
over them; the second is better than the worst, or else it is the best.
Elsewhere: TRL's experimental TPO trainer has this formula on rows of three answers, with the last term's mean over the tokens
of a micro-batch, as the authors' code has.
Beware: of more than three answers, those between the second and the worst are not read.

Gradient:
    chosen = -beta * s - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = beta * s
    s = sigmoid(beta * rejected - beta * chosen)

Reward: beta * summed log-probability.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.list_math import Triple, below, mean_of
from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import ListOutput, NonNegative, Positive, Reduction, Responses, SequenceLogps


@register_loss(
    "tpo",
    title="TPO",
    colour="#b93cef",
    marker="$3$",
    source="arXiv 2405.16681",
    units={"beta": "per nat", "sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    ranges={"sft_weight": (0.05, 1.0)},
    defaults={
        "beta": "arXiv 2405.16681, the authors' repository",
        "sft_weight": "arXiv 2405.16681, the authors' repository: base models",
        "sft_reduction": "TRL and the authors' repository, of one micro-batch",
    },
    becomes={"cpo": {}},
)
def tpo(
    responses: Responses,
    *,
    beta: Positive = 0.01,
    sft_weight: NonNegative = 1.0,
    sft_reduction: Reduction = "mean",
) -> ListOutput:
    reward = beta * responses.total
    three = Triple.of(below(-responses.rank, responses.mask), responses.mask)
    contrast = mean_of(three.pairs, -logsigmoid(reward[:, :, None] - reward[:, None, :]))
    nll = response_nll(SequenceLogps(responses.total, responses.length), sft_reduction)
    return ListOutput(contrast + sft_weight * mean_of(three.best, nll), reward.detach())
