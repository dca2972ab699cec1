"""ORPO: supervised fine-tuning on the chosen response, with a penalty on the odds ratio.

    loss = -a_chosen - odds_weight * log sigmoid( odds(a_chosen) - odds(a_rejected) )
    odds(a) = a - log(1 - exp(a)),   a = log-probability / |response|

Hong, Lee, Thorne 2024, arXiv 2403.07691, Eq. 6 and 7. The likelihood term is a per-token mean over the response.
Elsewhere: TRL counts the prompt's tokens in the likelihood term too, takes its mean over the tokens of a micro-batch,
reports the mean log-probability as the reward, and calls odds_weight `beta`.
Beware: an answer of probability 1 would have infinite odds in fp32. So in the odds, a is clamped at -1e-6, beyond which
the gradient is 0, and log(1 - exp(a)) is computed by expm1 or log1p.

Gradient:
    chosen = -(1 + odds_weight * s / -expm1(a_chosen)) / |chosen|
    rejected = odds_weight * s / -expm1(a_rejected) / |rejected|
    s = sigmoid(a_rejected - log(-expm1(a_rejected)) - a_chosen + log(-expm1(a_chosen)))
    a_chosen = chosen / |chosen|
    a_rejected = rejected / |rejected|

Reward: log-odds of the mean log-probability.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.loss_math import log_odds
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair


@register_loss(
    "orpo",
    title="ORPO",
    colour="#a8915b",
    marker="<",
    source="arXiv 2403.07691, Eq. 6-7",
    units={"odds_weight": "nats per token, per unit of -log sigmoid"},
    ranges={"odds_weight": (0.1, 0.5, 1.0, 2.0)},
    defaults={
        "odds_weight": "TRL's default, the smallest of arXiv 2405.14734, Table 7; the tuned value is not published",
    },
    in_paper=True,
)
def orpo(policy: Pair, *, odds_weight: NonNegative = 0.1) -> LossOutput:
    chosen, rejected = log_odds(policy.chosen.mean), log_odds(policy.rejected.mean)
    loss = -policy.chosen.mean - odds_weight * logsigmoid(chosen - rejected)
    return LossOutput(loss, chosen.detach(), rejected.detach())
