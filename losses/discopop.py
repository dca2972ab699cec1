"""DiscoPOP: a blend of the logistic and the exponential loss that a language model found by searching programs.

    loss = (1 - sigmoid(m / tau)) * -log sigmoid(m) + sigmoid(m / tau) * exp(-m)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Lu et al. 2024, arXiv 2406.08414, Eq. 5 and Appendix E, "log ratio modulated loss".
Elsewhere: the discovered program blends by the log-ratio itself, which is m / tau at tau = beta; TRL's
`loss_type="discopop"` divides by `discopop_tau`, as here. The plain form gives inf * 0 at m = -1000; here the product is
computed as one exponential. tau at most 1 keeps it bounded.
Beware: it is not convex. Between m = -2.4 tau and m = 1.4 tau (at tau 0.05), where every pair starts, it rises with m:
a pair in that range is pushed to lower m.

Gradient:
    chosen = beta * s
    rejected = -beta * s
    s = up * down / tau * (exp(-m) - log1p(exp(-m))) - down * sigmoid(-m) - up * exp(-m)
    up = sigmoid(m / tau)
    down = sigmoid(-m / tau)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive, UnitInterval


@register_loss(
    "discopop",
    title="DiscoPOP",
    colour="#f80779",
    marker=(5, 1, 180),
    aliases=("LRML",),
    source="arXiv 2406.08414, Eq. 5",
    units={"beta": "per nat", "tau": "reward, above 0 and at most 1"},
    meanings={"tau": "how sharply the blend turns from the logistic loss to the exponential one"},
    defaults={
        "beta": "arXiv 2406.08414, Appendix B.1, by TRL's index of papers",
        "tau": "arXiv 2406.08414, Appendix E",
    },
)
def discopop(policy: Pair, reference: Pair, *, beta: Positive = 0.05, tau: UnitInterval = 0.05) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    margin = chosen - rejected
    logistic = -logsigmoid(margin) * logsigmoid(-margin / tau).exp()
    exponential = (logsigmoid(margin / tau) - margin).exp()
    return LossOutput(logistic + exponential, chosen.detach(), rejected.detach())
