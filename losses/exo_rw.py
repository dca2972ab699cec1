"""EXO-rw: the policy's shares of a rated list are fitted to the shares that the ratings give, by the reverse KL divergence.

    loss = sum over the answers of q * (log q - log p)
    q = softmax( beta * (answer - reference_answer) );  p = softmax( rating / rating_temperature )

Ji et al. 2024, arXiv 2402.00856, with rewards; rating_temperature is the authors' beta_r, beta their beta_pi. A loss of rated
lists of any length. Of two answers it is RPO forward KL, whose reward_scale is 1 / rating_temperature, which gives the
gradient below. Equal ratings have equal shares.
Elsewhere: TRL has the form of labelled pairs alone. The authors' code has this formula.
Beware: where the policy gives an answer almost no share, its gradient vanishes, and the answer stays where it is. An answer
that already has the share p is held there.

Gradient:
    chosen = beta * s
    rejected = -beta * s
    s = sigmoid(m) * sigmoid(-m) * (m - (score_chosen - score_rejected) / rating_temperature)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor

from pobench.list_math import log_shares
from pobench.registry import register_loss
from pobench.types import ListOutput, Positive, Responses


@register_loss(
    "exo_rw",
    title="EXO-rw",
    colour="#2e9730",
    marker="$\\Xi$",
    source="arXiv 2402.00856, the authors' repository",
    units={"beta": "per nat", "rating_temperature": "ratings"},
    meanings={"rating_temperature": "how far ratings are apart whose shares are e to 1"},
    defaults={
        "beta": "arXiv 2402.00856, the authors' scripts",
        "rating_temperature": "arXiv 2402.00856, the authors' scripts",
    },
    becomes={"rpo_forward": {"rating_temperature": 0.5, "rpo_forward.reward_scale": 2.0}},
)
def exo_rw(
    responses: Responses,
    reference: Responses,
    scores: Tensor,
    *,
    beta: Positive = 0.5,
    rating_temperature: Positive = 0.5,
) -> ListOutput:
    reward = beta * (responses.total - reference.total)
    share = log_shares(reward, responses.mask)
    target = log_shares(scores / rating_temperature, responses.mask)
    return ListOutput((share.exp() * (share - target)).sum(1), reward.detach())
