"""NCA of lists: each answer of a rated list is told from the reference's own answers, as often as its rating says.

    loss = sum over the answers of -p * log sigmoid(r) - log sigmoid(-r) / k
    r = beta * (answer - reference_answer);  p = softmax( rating / rating_temperature )

Chen et al. 2024, arXiv 2402.05369: noise-contrastive estimation with rewards; k is the number of answers. A loss of rated
lists of any length. Of two answers at a low temperature, the one rated above the other takes all of p, and the loss is NCA of
pairs. Equal ratings have equal shares.
Elsewhere: TRL has the form of pairs alone. The authors' code adds 0.01 to the rating of the answer that it takes for the best.
Its temperature_alpha, the inverse of the paper's alpha, is 0.0001 by default, where ratings a hundredth apart give all of p to
the best and only the order of the ratings counts.
Beware: each answer has an optimum of its own at r = log(k p) and is pulled back past it, up and down.

Gradient:
    chosen = beta * (sigmoid(r_chosen) / 2 - p * sigmoid(-r_chosen))
    rejected = beta * (sigmoid(r_rejected) / 2 - (1 - p) * sigmoid(-r_rejected))
    r_chosen = beta * (chosen - reference_chosen)
    r_rejected = beta * (rejected - reference_rejected)
    p = sigmoid((score_chosen - score_rejected) / rating_temperature)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.list_math import log_shares
from pobench.registry import register_loss
from pobench.types import ListOutput, Positive, Responses


@register_loss(
    "nca_list",
    title="NCA of lists",
    colour="#ff1c0f",
    marker="$\\Psi$",
    aliases=("NCA of lists",),
    source="arXiv 2402.05369, the authors' repository",
    units={"beta": "per nat", "rating_temperature": "ratings"},
    meanings={"rating_temperature": "how far ratings are apart whose shares are e to 1"},
    defaults={
        "beta": "arXiv 2402.05369, the authors' repository",
        "rating_temperature": "not published; the ratings as they are",
    },
    becomes={"nca_pair": {"rating_temperature": 1e-4}},
)
def nca_list(
    responses: Responses,
    reference: Responses,
    scores: Tensor,
    *,
    beta: Positive = 0.01,
    rating_temperature: Positive = 1.0,
) -> ListOutput:
    reward, mask = beta * (responses.total - reference.total), responses.mask
    target = log_shares(scores / rating_temperature, mask).exp()
    loss = -target * logsigmoid(reward) - logsigmoid(-reward) / mask.sum(1, keepdim=True)
    return ListOutput(loss.masked_fill(~mask, 0).sum(1), reward.detach())
