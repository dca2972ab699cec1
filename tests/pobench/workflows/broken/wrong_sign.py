"""SimPO with the two answers exchanged.

loss = -log sigmoid( beta * rejected / |rejected| - beta * chosen / |chosen| )
"""

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair


@register_loss("broken_wrong_sign", source="a fixture")
def wrong_sign(policy: Pair, *, beta: float = 2.0) -> LossOutput:
    chosen, rejected = beta * policy.chosen.mean, beta * policy.rejected.mean
    return LossOutput(-logsigmoid(rejected - chosen), chosen.detach(), rejected.detach())
