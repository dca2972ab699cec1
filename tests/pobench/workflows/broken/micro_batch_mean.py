"""CPO's likelihood term as a mean over all tokens of whatever batch it is handed."""

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import LossOutput, Pair


@register_loss("broken_micro_batch_mean", source="a fixture")
def micro_batch_mean(policy: Pair, *, beta: float = 0.1) -> LossOutput:
    chosen, rejected = beta * policy.chosen.total, beta * policy.rejected.total
    sft = -policy.chosen.total.sum() / policy.chosen.length.sum()
    return LossOutput(-logsigmoid(chosen - rejected) + sft, chosen.detach(), rejected.detach())
