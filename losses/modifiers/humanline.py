"""Humanline: a token whose log-ratio to the reference is far out counts as one at the limit, and is not learned from.

    loss = L with y' in place of each sum of the policy: the reference's plus sum_t clamp(y_t - r_t, low, high)

Liu, Muennighoff, Ethayarajh 2025, arXiv 2509.24207, as their code has it: HALOs' `humanline`, with `log_epsilon_P` for low and
`log_epsilon_R` for high. They also move the reference after every few steps, which here is `tr`'s: `tr(humanline(dpo))`.
Elsewhere: an earlier version of HALOs drew tokens to reject from Beta distributions of their ratio.
Beware: a token beyond a limit has no gradient, so an answer all of whose tokens are beyond has none. KTO's kl is not clamped.

Reward: the inner loss's, of the clamped sums.
"""

from __future__ import annotations

from pobench.composed import Inner
from pobench.registry import register_modifier
from pobench.types import LossOutput, NonNegative, NonPositive, Pair, TokenLogps


@register_modifier(
    "humanline",
    title="Humanline",
    source="arXiv 2509.24207; HALOs, its authors' code",
    units={"low": "nats per token", "high": "nats per token"},
    meanings={"low": "the least that a token's log-ratio counts", "high": "the most that it counts"},
    defaults={"low": "HALOs' log_epsilon_P", "high": "HALOs' log_epsilon_R"},
    of_ratios=True,
)
def humanline(
    loss: Inner, policy: Pair, reference: Pair, tokens: TokenLogps, *, low: NonPositive = -1.0, high: NonNegative = 1.5
) -> LossOutput:
    assert tokens.reference is not None
    ratios = (tokens.policy - tokens.reference).clamp(low, high)  # (pairs, 2, tokens), 0 at the pads
    sides = zip(policy, reference, ratios.sum(-1).unbind(1), strict=True)
    clamped = Pair(*(side._replace(total=base.total + moved) for side, base, moved in sides))
    return loss(policy=clamped, tokens=tokens._replace(policy=tokens.reference + ratios))
