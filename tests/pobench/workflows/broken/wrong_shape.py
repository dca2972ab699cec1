"""The mean taken by the loss itself."""

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair


@register_loss("broken_wrong_shape", source="a fixture")
def wrong_shape(policy: Pair, *, beta: float = 2.0) -> LossOutput:
    chosen, rejected = beta * policy.chosen.mean, beta * policy.rejected.mean
    return LossOutput(-logsigmoid(chosen - rejected).mean(), chosen.detach(), rejected.detach())
