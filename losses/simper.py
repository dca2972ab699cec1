"""SimPER: raises the chosen answer's inverse perplexity and lowers the rejected one's; it has no setting.

    loss = exp(rejected / |rejected|) - exp(chosen / |chosen|)

Xiao et al. 2025, arXiv 2502.00883. The exponential of a mean log-probability is one over the perplexity, a number
between 0 and 1: no reference, no beta, no margin.
Elsewhere: the authors' trainer has this formula and reports the mean log-probability as the reward. TRL does not have it.
Beware: the loss lies in (-1, 1) and its slope is the inverse perplexity over the length: an unlikely answer hardly
moves. Means are clamped at 0, the largest log-probability.

Gradient:
    chosen = -exp(chosen / |chosen|) / |chosen|
    rejected = exp(rejected / |rejected|) / |rejected|

Reward: inverse perplexity, between 0 and 1.
"""

from __future__ import annotations

from pobench.loss_math import exp_difference
from pobench.registry import register_loss
from pobench.types import LossOutput, Pair


@register_loss("simper", title="SimPER", colour="#087faf", marker=(4, 1, 22), source="arXiv 2502.00883")
def simper(policy: Pair) -> LossOutput:
    chosen, rejected = policy.chosen.mean.clamp(max=0), policy.rejected.mean.clamp(max=0)
    return LossOutput(exp_difference(rejected, chosen), chosen.detach().exp(), rejected.detach().exp())
