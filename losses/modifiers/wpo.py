"""WPO: a pair counts by how likely the policy would be to write its two responses itself.

    loss = min(1, a(chosen) * a(rejected)) * L, the factor without gradient
    a(y) = exp( mean over the response's tokens of [ log p(token) - log sum_v p(v)² ] )

Zhou et al. 2024, arXiv 2406.11827, for DPO. p is the policy's distribution of the next token; sum_v p(v)² is what it gives to
its own samples on average, so that a response of its own weighs about 1.
Elsewhere: the authors' code is the same. TRL's `use_weighting` has no min, so that pairs likelier than the policy's own samples
weigh more than 1; open-instruct has neither the division by sum_v p(v)² nor `detach`, and sums instead of means.
Beware: the weights lower the loss and its gradient together, so rates that suit the loss alone are too low at first.

Reward: the inner loss's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pobench.composed import Inner
from pobench.registry import register_modifier
from pobench.types import LossOutput, Pair


@register_modifier("wpo", title="WPO", source="arXiv 2406.11827, the authors' repository", weighs=True)
def wpo(loss: Inner, policy: Pair, collision: Tensor) -> LossOutput:
    alignment = [
        side.mean.detach() - of_side.sum(-1) / side.length
        for side, of_side in zip(policy, collision.unbind(1), strict=True)
    ]
    output = loss()
    return output._replace(loss=output.loss * torch.exp((alignment[0] + alignment[1]).clamp(max=0)))
