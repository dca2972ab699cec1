"""f-DPO: another divergence than the reverse KL ties the policy to its reference.

    loss = L with g(log-ratio) in place of each log-ratio to the reference, g(x) = f'(exp(x)) - f'(1)
    reverse_kl     g(x) = x, the loss itself
    forward_kl     g(x) = 1 - exp(-x)
    jensen_shannon g(x) = log 2 - log(1 + exp(-x))
    alpha          g(x) = (1 - exp(-alpha * x)) / alpha; alpha -> 0: reverse_kl, 1: forward_kl

Wang et al. 2023, arXiv 2309.16240, Theorem 1, for DPO.
Elsewhere: TRL's `f_divergence_type`; its `f_alpha_divergence_coef` is 1 - alpha. The authors' code clamps nothing.
Beware: exp(-x) is huge for an answer that has become unlikely. Exponents end at 20, where g has no gradient any more.

Reward: the inner loss's, so beta * g for DPO.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.composed import Inner
from pobench.loss_math import exp_difference
from pobench.registry import register_modifier
from pobench.types import LossOutput, Pair, SequenceLogps, UnitInterval

LARGEST = 20.0  # of an exponent: e^20 is 5e8 nats, far beyond any difference that is still learned from


def only_what_is_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "alpha": settings["alpha"] if settings["divergence"] == "alpha" else None}


@register_modifier(
    "f_divergence",
    title="f",
    aliases=("f-DPO", "f_dpo"),
    source="arXiv 2309.16240, Theorem 1",
    meanings={"divergence": "which f", "alpha": "of the alpha-divergence; the others do not read it"},
    defaults={"divergence": "not published; the one that alpha bends", "alpha": "TRL's default, 1 - 0.5"},
    of_ratios=True,
    canonical=only_what_is_read,
)
def f_divergence(
    loss: Inner,
    policy: Pair,
    reference: Pair,
    *,
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"] = "alpha",
    alpha: UnitInterval = 0.5,
) -> LossOutput:
    def bent(response: SequenceLogps, base: SequenceLogps) -> SequenceLogps:
        return response._replace(total=base.total + slope(response.total - base.total, divergence, alpha))

    return loss(policy=Pair(bent(policy.chosen, reference.chosen), bent(policy.rejected, reference.rejected)))


def slope(ratio: Tensor, divergence: str, alpha: float) -> Tensor:
    """(pairs,) `f'(exp(ratio)) - f'(1)`; ratio: nats."""
    if divergence == "reverse_kl":
        return ratio
    if divergence == "jensen_shannon":
        return logsigmoid(ratio) + math.log(2)
    power = alpha if divergence == "alpha" else 1.0
    return exp_difference(torch.zeros_like(ratio), (-power * ratio).clamp(max=LARGEST)) / power
