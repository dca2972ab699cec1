"""GPO's exponential loss: DPO with an exponential in place of the logistic loss, so a wrong pair weighs ever more.

    loss = exp(-m), and in a straight line beyond m = -20
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Tang et al. 2024, arXiv 2402.05749, generalized preference optimization: any convex function of DPO's margin. Its logistic form
is `dpo`, its hinge `rso`; its square (1 - m)² is `ipo` at tau = beta / 2, times beta².
Elsewhere: TRL has it as a part of DiscoPOP alone. No code of the authors was found; the formula is the paper's.
Beware: a mislabelled pair soon outweighs a batch. The line beyond -20 keeps it finite: its slope is exp(20).

Gradient:
    chosen = where(m < -20, -beta * exp(20), -beta * exp(-m))
    rejected = where(m < -20, beta * exp(20), beta * exp(-m))
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair, Positive

LARGEST = 20.0  # of the exponent


@register_loss(
    "gpo_exponential",
    title="GPO exponential",
    colour="#cb0c0e",
    marker="$E$",
    source="arXiv 2402.05749",
    units={"beta": "per nat"},
    defaults={"beta": "not published for this form; DPO's"},
)
def gpo_exponential(policy: Pair, reference: Pair, *, beta: Positive = 0.1) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    wrong = rejected - chosen
    loss = wrong.clamp(max=LARGEST).exp() * (1 + (wrong - LARGEST).clamp(min=0))
    return LossOutput(loss, chosen.detach(), rejected.detach())
