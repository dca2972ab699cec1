"""Mallows-IPO: IPO, with a scale for each prompt: large where the reference is sure of the next tokens.

    loss = ( certainty * (x_chosen - x_rejected) - 1 / (2 * tau) )²
    certainty = -dispersion_scale * log( entropy )
    entropy = mean of the two responses' mean entropies of the next token under the reference / log |vocabulary|
    x = log-ratio to the reference; a token's mean if `average`; the log-probability itself if `reference_free`

Chen et al. 2024, arXiv 2405.14953 (MallowsPO), as their code has it, which calls tau beta.
Elsewhere: TRL has none. The authors' code is the same; by default it has `average` and `reference_free` on, and tau 10. A
follow-up of theirs (RainbowPO) writes (tau * certainty * difference - 1/2)²: this times tau².
Beware: as of Mallows-DPO; and a pair beyond its target, 1 / (2 * tau * certainty), is pulled back.

Gradient:
    chosen = 2 * miss * certainty / where(average, |chosen|, 1)
    rejected = -2 * miss * certainty / where(average, |rejected|, 1)
    miss = certainty * (x_chosen - x_rejected) - 1 / (2 * tau)
    certainty = -dispersion_scale * log(entropy)
    x_chosen = (chosen - where(reference_free, 0, reference_chosen)) / where(average, |chosen|, 1)
    x_rejected = (rejected - where(reference_free, 0, reference_rejected)) / where(average, |rejected|, 1)

Reward: x, without the certainty.
"""

from __future__ import annotations

from pobench.dispersion import certainty, relative_logps
from pobench.registry import register_loss
from pobench.types import Entropy, LossOutput, Pair, Positive


@register_loss(
    "mallows_ipo",
    title="Mallows-IPO",
    colour="#6d8f2b",
    marker="$I$",
    source="arXiv 2405.14953, the authors' repository",
    units={"tau": "1 / nat; the target is 1 / (2 tau)", "dispersion_scale": "per nat of certainty"},
    meanings={
        "dispersion_scale": "factor of the certainty",
        "reference_free": "whether the policy's log-probability stands for the log-ratio",
    },
    defaults={
        "tau": "IPO's; the authors' repository has 10 for its means",
        "dispersion_scale": "arXiv 2405.14953, the authors' repository: UltraFeedback, Llama-3",
        "average": "arXiv 2405.14953, the objective as printed",
        "reference_free": "arXiv 2405.14953, the objective as printed",
    },
)
def mallows_ipo(
    policy: Pair,
    reference: Pair,
    entropy: Entropy,
    *,
    tau: Positive = 0.1,
    dispersion_scale: Positive = 0.29,
    average: bool = False,
    reference_free: bool = False,
) -> LossOutput:
    chosen, rejected = relative_logps(policy, None if reference_free else reference, average)
    miss = certainty(entropy, policy, dispersion_scale) * (chosen - rejected) - 1 / (2 * tau)
    return LossOutput(miss**2, chosen.detach(), rejected.detach())
