"""Losses of a user who asks for more than the pair's sums; a plug-in of the tests."""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench import LossOutput, Pair, register_loss


@register_loss("t_offset", source="arXiv 2402.10571, ODPO's offset without its logarithm")
def t_offset(policy: Pair, reference: Pair, scores, *, beta: float = 0.1, alpha: float = 0.5) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    offset = alpha * (scores[:, 0] - scores[:, 1])
    return LossOutput(-logsigmoid(chosen - rejected - offset), chosen.detach(), rejected.detach())
