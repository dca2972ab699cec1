"""A margin divided by its own size: 0 / 0 where the two answers are alike."""

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair


@register_loss("broken_nan_on_equal", source="a fixture")
def nan_on_equal(policy: Pair, *, beta: float = 2.0) -> LossOutput:
    chosen, rejected = beta * policy.chosen.mean, beta * policy.rejected.mean
    margin = chosen - rejected
    return LossOutput(-logsigmoid(margin + margin / margin.abs()), chosen.detach(), rejected.detach())
