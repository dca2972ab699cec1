"""LiPO-λ: DPO's loss on every pair of a rated list; a pair weighs by what swapping the two would cost the ranking.

    loss = sum over pairs (i, j), i rated above j, of |gain_i - gain_j| * |1 / D_i - 1 / D_j| * -log sigmoid( r_i - r_j )
    r = beta * (answer - reference_answer)
    gain = 2^(rating_scale * rating) - 1;  D = log(1 + place), place 1 for the largest r, without gradient

Liu et al. 2024, arXiv 2402.01878, Eq. 8. A loss of rated lists of any length. Of two answers it is DPO times a constant of the
pair, which gives the gradient below. Rewards that are equal to a thousandth of a nat, as all are before the first step, are
placed by rating. Answers of equal rating do not order each other.
Elsewhere: TRL has none, and no authors' code was found. Third-party programs take the sum or the mean over pairs, some scale
each list's ratings to [0, 1], and they break ties by the order in which the answers are written.
Beware: gains double with each point, so ratings up to 10 make gains up to 1023 and steps as large: with `rating_scale` 0.1 they
are at most 1. A scaled rating above 64 counts as 64. The ratings order the answers, not the labels of pairs.

Gradient:
    chosen = -beta * w * s
    rejected = beta * w * s
    s = sigmoid(beta * (rejected - reference_rejected) - beta * (chosen - reference_chosen))
    w = (gain_chosen - gain_rejected) * (1 / log(2) - 1 / log(3))
    gain_chosen = exp(log(2) * min(64, rating_scale * score_chosen))
    gain_rejected = exp(log(2) * min(64, rating_scale * score_rejected))

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.list_math import below
from pobench.registry import register_loss
from pobench.types import ListOutput, NonNegative, Positive, Responses


@register_loss(
    "lipo_lambda",
    title="LiPO-λ",
    colour="#4c8087",
    marker="$\\Lambda$",
    aliases=("LiPO-λ", "LiPO"),
    source="arXiv 2402.01878, Eq. 8",
    units={"beta": "per nat", "rating_scale": "per rating"},
    meanings={"rating_scale": "what the ratings are multiplied by"},
    defaults={"beta": "DPO's", "rating_scale": "not published; the ratings as they are"},
)
def lipo_lambda(
    responses: Responses,
    reference: Responses,
    scores: Tensor,
    *,
    beta: Positive = 0.1,
    rating_scale: NonNegative = 1.0,
) -> ListOutput:
    moved, mask = responses.total - reference.total, responses.mask
    level, lower = moved.detach().round(decimals=3), below(scores, mask)
    ahead = below(level, mask) | (lower & (level[:, :, None] == level[:, None, :]))
    discount = 1 / (1 + ahead.sum(1)).to(moved).log1p()
    gain = (rating_scale * scores.masked_fill(~mask, 0)).clamp(max=64).exp2()
    weight = (gain[:, :, None] - gain[:, None, :]) * (discount[:, :, None] - discount[:, None, :]).abs()
    reward = beta * moved
    loss = weight * -logsigmoid(reward[:, :, None] - reward[:, None, :])
    return ListOutput(loss.masked_fill(~lower, 0).sum((1, 2)), reward.detach())
