"""SimPO that asks for a reference model and never looks at it."""

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair


@register_loss("broken_unused_reference", source="a fixture")
def unused_reference(policy: Pair, reference: Pair, *, beta: float = 2.0) -> LossOutput:
    chosen, rejected = beta * policy.chosen.mean, beta * policy.rejected.mean
    return LossOutput(-logsigmoid(chosen - rejected - 1.0), chosen.detach(), rejected.detach())
