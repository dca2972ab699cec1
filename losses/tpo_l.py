"""TPO-L: of three answers, the best is learnt by its likelihood; SimPO's contrast is between the others.

    loss = -log sigmoid( beta * (second / |second| - worst / |worst|) - gamma ) - sft_weight * best

Saeidi et al. 2024, arXiv 2405.16681: TPO with mean log-probabilities and a target margin. A loss of lists: best, second and
worst are the authors' gold, chosen and rejected answers, by their recipe for UltraFeedback. Of two answers the best is the
second, too: that is SimPO with SFT, which gives the gradient below. Where answers tie, each term is the mean over them; the
second is better than the worst, or else it is the best.
Elsewhere: TRL's experimental TPO trainer has this formula as `loss_type="tpo-l"`, with `tpo_l_gamma` in reward units, as here,
and the last term's mean over the tokens of a micro-batch, as the authors' code has.
Beware: of more than three answers, those between the second and the worst are not read. TRL's default of beta, 0.01, is
TPO's, and with means it leaves the contrast flat.

Gradient:
    chosen = -beta * s / |chosen| - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = beta * s / |rejected|
    s = sigmoid(gamma - beta * (chosen / |chosen| - rejected / |rejected|))

Reward: beta * mean log-probability.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.list_math import Triple, below, mean_of
from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import ListOutput, NonNegative, Positive, Reduction, Responses, SequenceLogps


@register_loss(
    "tpo_l",
    title="TPO-L",
    colour="#f02b99",
    marker="$\\Theta$",
    source="arXiv 2405.16681",
    units={
        "beta": "per (nat per token)",
        "gamma": "reward, absolute",
        "sft_weight": "per nat (sum) or per (nat per token) (mean)",
    },
    ranges={"beta": (2.0, 2.5, 10.0), "gamma": (0.3, 0.5, 1.5, 1.6, 3.0, 10.0), "sft_weight": (0.05, 1.0)},
    defaults={
        "beta": "arXiv 2405.16681, the authors' repository: Mistral-Base",
        "gamma": "arXiv 2405.16681, the authors' repository: Mistral-Base",
        "sft_weight": "arXiv 2405.16681, the authors' repository: Mistral-Base",
        "sft_reduction": "TRL and the authors' repository, of one micro-batch",
    },
    becomes={"simpo_sft": {}},
)
def tpo_l(
    responses: Responses,
    *,
    beta: Positive = 2.0,
    gamma: NonNegative = 1.6,
    sft_weight: NonNegative = 0.05,
    sft_reduction: Reduction = "mean",
) -> ListOutput:
    reward = beta * responses.mean
    three = Triple.of(below(-responses.rank, responses.mask), responses.mask)
    contrast = mean_of(three.pairs, -logsigmoid(reward[:, :, None] - reward[:, None, :] - gamma))
    nll = response_nll(SequenceLogps(responses.total, responses.length), sft_reduction)
    return ListOutput(contrast + sft_weight * mean_of(three.best, nll), reward.detach())
