"""IPO without a reference: the difference of mean log-probabilities is regressed on a fixed target.

    loss = ( chosen / |chosen| - rejected / |rejected| - 1 / (2 * tau) )^2 - sft_weight * chosen / |chosen|

IPO (Azar et al. 2023, arXiv 2310.12036, Eq. 17) without its reference and with CPO's likelihood term, as TRL's CPO trainer has
it; no paper defines it. `sft_reduction: sum` takes the response's sum in the last term.
Elsewhere: TRL's `loss_type="ipo"` of its CPO trainer, which calls tau `beta` and takes the last term's mean over the tokens of
a micro-batch. Its TPO trainer's `ipo` has the likelihood of a third response there, as `tpo_ipo`.
Beware: past the target the loss rises again. The target is in nats per token: TRL's default of tau, 0.1, asks for 5 of them.

Gradient:
    chosen = 2 * gap / |chosen| - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = -2 * gap / |rejected|
    gap = chosen / |chosen| - rejected / |rejected| - 1 / (2 * tau)

Reward: mean log-probability, in nats per token.
"""

from __future__ import annotations

from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair, Positive, Reduction


@register_loss(
    "ipo_no_reference",
    title="IPO w/o reference",
    colour="#968f42",
    marker="$\\Delta$",
    aliases=("IPO w/o reference",),
    source="arXiv 2310.12036, Eq. 17, as in TRL's CPO trainer",
    units={
        "tau": "1 / (nat per token); the target is 1 / (2 tau)",
        "sft_weight": "per nat (sum) or per (nat per token) (mean)",
    },
    defaults={
        "tau": "not published; a target of 1 nat per token",
        "sft_weight": "TRL's default of cpo_alpha",
        "sft_reduction": "TRL, of one micro-batch",
    },
)
def ipo_no_reference(
    policy: Pair, *, tau: Positive = 0.5, sft_weight: NonNegative = 1.0, sft_reduction: Reduction = "mean"
) -> LossOutput:
    chosen, rejected = policy.chosen.mean, policy.rejected.mean
    sft = sft_weight * response_nll(policy.chosen, sft_reduction)
    return LossOutput((chosen - rejected - 1 / (2 * tau)) ** 2 + sft, chosen.detach(), rejected.detach())
