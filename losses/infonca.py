"""InfoNCA: the policy's share of each answer of a rated list is fitted to the share that the ratings give it.

    loss = - sum over the answers of p * log q
    q = softmax( beta * (answer - reference_answer) );  p = softmax( rating / rating_temperature )

Chen et al. 2024, arXiv 2402.05369. A loss of rated lists of any length. Of two answers it is cDPO, with the flip rate that
their ratings give, and has the gradient below; at a low temperature the answer rated above the other takes all of p, and the
loss is DPO. Equal ratings have equal shares.
Elsewhere: TRL has none. The authors' code adds 0.01 to the rating of the answer that it takes for the best. Its
temperature_alpha, the inverse of the paper's alpha, is 0.0001 by default, where ratings a hundredth apart give all of p to the
best and only the order of the ratings counts.
Beware: an answer that already has the share p is held there: a step may lower the best answer.

Gradient:
    chosen = beta * (q - p)
    rejected = beta * (p - q)
    q = sigmoid(beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected))
    p = sigmoid((score_chosen - score_rejected) / rating_temperature)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor

from pobench.list_math import log_shares
from pobench.registry import register_loss
from pobench.types import ListOutput, Positive, Responses


@register_loss(
    "infonca",
    title="InfoNCA",
    colour="#8666fb",
    marker="$\\Phi$",
    source="arXiv 2402.05369, the authors' repository",
    units={"beta": "per nat", "rating_temperature": "ratings"},
    meanings={"rating_temperature": "how far ratings are apart whose shares are e to 1"},
    defaults={
        "beta": "arXiv 2402.05369, the authors' repository",
        "rating_temperature": "not published; the ratings as they are",
    },
    becomes={"dpo": {"rating_temperature": 1e-4}},
)
def infonca(
    responses: Responses,
    reference: Responses,
    scores: Tensor,
    *,
    beta: Positive = 0.01,
    rating_temperature: Positive = 1.0,
) -> ListOutput:
    reward = beta * (responses.total - reference.total)
    target = log_shares(scores / rating_temperature, responses.mask).exp()
    return ListOutput(-(target * log_shares(reward, responses.mask)).sum(1), reward.detach())
