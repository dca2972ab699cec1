"""BEMA: the reference follows an average of the policy, led on along what the policy has moved from its start.

    loss = L; behind every `every`-th step t after `after`:
        average <- (1 - b) * average + b * policy,  b = max(least_share, (lag + multiplier * t)^-ema_power)
        reference <- average + (lag + multiplier * t)^-bias_power * (policy - start), weight by weight

Block, Zhang 2025, arXiv 2508.00180 (BEMA, the bias-corrected exponential moving average), whose authors take it for the model
that they hand out. As a reference: TRL's experimental BEMA callback with `update_ref_model`, the same arithmetic where it moves
the reference as often as the average. `average` and `start` are the policy's weights at its first step, or of step `after`.
Elsewhere: TRL calls lag, multiplier and least_share `lag`, `multiplier` and `min_ema_multiplier`, every and after `update_freq`
and `update_after`; an adapter is refused here.
Beware: as with `tr` a second model computes the reference in every step; average and start are two more copies of the weights,
in memory and in each checkpoint, where TRL has them on the processor. The lead is largest at first: with the defaults the first
move, at step 400, leads the reference by 0.3 of what the policy has moved. Held-out rewards and KL are measured against the
start model. With fewer steps than `every` it is the loss itself. It may stand anywhere around a loss, with the same result.

Reward: the inner loss's, against the reference of that step.
"""

from __future__ import annotations

from pobench.composed import Inner
from pobench.registry import Move, register_modifier
from pobench.types import LossOutput, NonNegative, Share, Steps, StepsOrNone


def moved(
    step: int,
    *,
    every: int,
    after: int,
    ema_power: float,
    bias_power: float,
    lag: int,
    multiplier: float,
    least_share: float,
) -> Move:
    if step == after:
        return Move(restarts=True)
    if step < after or (step - after) % every:
        return Move()
    age = lag + multiplier * step
    return Move(share=max(age**-ema_power, least_share), lead=age**-bias_power)


@register_modifier(
    "bema",
    title="BEMA",
    source="arXiv 2508.00180, as in TRL's experimental callback",
    units={
        "every": "steps",
        "after": "steps",
        "ema_power": "exponent",
        "bias_power": "exponent",
        "lag": "steps",
        "multiplier": "1",
        "least_share": "0 to 1",
    },
    meanings={
        "every": "steps from one update to the next",
        "after": "step at which average and start are taken anew",
        "ema_power": "how fast the policy's share in the average falls",
        "bias_power": "how fast the lead falls",
        "lag": "age at step 0",
        "multiplier": "age of a step",
        "least_share": "least share of the policy in the average",
    },
    defaults={
        "every": "TRL's `update_freq`",
        "after": "TRL's `update_after`",
        "ema_power": "TRL's `ema_power`",
        "bias_power": "TRL's `bias_power`",
        "lag": "TRL's `lag`",
        "multiplier": "TRL's `multiplier`",
        "least_share": "TRL's `min_ema_multiplier`",
    },
    moves=moved,
    leads=True,
)
def bema(
    loss: Inner,
    *,
    every: Steps = 400,
    after: StepsOrNone = 0,
    ema_power: NonNegative = 0.5,
    bias_power: NonNegative = 0.2,
    lag: Steps = 10,
    multiplier: NonNegative = 1.0,
    least_share: Share = 0.0,
) -> LossOutput:
    return loss()
