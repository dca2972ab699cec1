"""IPO: the difference of log-ratios is regressed on a fixed target, so it cannot grow without end.

    loss = ( (chosen - reference_chosen) - (rejected - reference_rejected) - 1 / (2 * tau) )^2

Azar et al. 2023, arXiv 2310.12036, Eq. 17. The paper prints sums over the response, which is the default here.
Elsewhere: TRL, HALOs and LLaMA-Factory divide each log-ratio by its own length (`average: true`), which changes what
tau means: the target is then in nats per token. TRL calls tau `beta`.
Beware: past the target the loss rises again. It is in squared nats and can be far larger than a logistic loss. In one
published comparison the choice of `average` alone reversed the ranking of DPO, IPO and KTO.

Gradient:
    chosen = 2 * gap / n_chosen
    rejected = -2 * gap / n_rejected
    gap = (chosen - reference_chosen) / n_chosen - (rejected - reference_rejected) / n_rejected - 1 / (2 * tau)
    n_chosen = where(average, |chosen|, 1)
    n_rejected = where(average, |rejected|, 1)

Reward: log-ratio to the reference, in nats (per token with `average`).
"""

from __future__ import annotations

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive


@register_loss(
    "ipo",
    title="IPO",
    colour="#089a7c",
    marker="v",
    source="arXiv 2310.12036, Eq. 17",
    units={"tau": "1 / nat; the target is 1 / (2 tau)", "average": "log-ratios per token"},
    ranges={"tau": (0.01, 0.1, 0.5, 1.0)},
    defaults={
        "tau": "TRL's and HALOs' default; the tuned value is not published",
        "average": "as printed in arXiv 2310.12036 and in arXiv 2405.14734, Table 7",
    },
    in_paper=True,
)
def ipo(policy: Pair, reference: Pair, *, tau: Positive = 0.1, average: bool = False) -> LossOutput:
    chosen = policy.chosen.total - reference.chosen.total
    rejected = policy.rejected.total - reference.rejected.total
    if average:
        chosen, rejected = chosen / policy.chosen.length, rejected / policy.rejected.length
    return LossOutput((chosen - rejected - 1 / (2 * tau)) ** 2, chosen.detach(), rejected.detach())
