"""Trust region: the reference follows the policy, so that the policy is never tied to where it began.

    loss = L; after every `every`-th step: reference <- alpha * policy + (1 - alpha) * reference, weight by weight

Gorbatovski et al. 2024, arXiv 2404.09656 (TR-DPO): a soft update mixes often, a hard one (alpha 1) copies seldom.
Elsewhere: TRL's `sync_ref_model` with `ref_model_mixup_alpha` and `ref_model_sync_steps`, the same arithmetic; with an adapter
it is refused there, as here. turbo-alignment copies in every step unless told otherwise.
Beware: stored reference sums belong to the start model, so a second model computes the reference in every step, whatever
`train.reference` says. Held-out rewards and KL are measured against the start model, as for all losses. At alpha 0, or with
fewer steps than `every`, it is the loss itself. It may stand anywhere around a loss, with the same result.

Reward: the inner loss's, against the reference of that step.
"""

from __future__ import annotations

from pobench.composed import Inner
from pobench.registry import register_modifier
from pobench.types import LossOutput, Share, Steps


def taken(step: int, *, alpha: float, every: int) -> float:
    return 0.0 if step % every else alpha


@register_modifier(
    "tr",
    title="TR",
    aliases=("TR-DPO", "trust_region"),
    source="arXiv 2404.09656",
    units={"alpha": "0 to 1", "every": "steps"},
    meanings={"alpha": "share of the policy in the new reference", "every": "steps from one update to the next"},
    defaults={"alpha": "TRL's `ref_model_mixup_alpha`", "every": "TRL's `ref_model_sync_steps`"},
    moves=taken,
)
def tr(loss: Inner, *, alpha: Share = 0.6, every: Steps = 512) -> LossOutput:
    return loss()
