"""The first answer of a list taken for the best and the last for the worst, as they stand in pairs."""

import torch
from torch.nn.functional import logsigmoid

from pobench import ListOutput, Responses, register_loss


@register_loss("broken_list_by_place", source="a test")
def list_by_place(responses: Responses, *, beta: float = 2.0) -> ListOutput:
    reward = beta * responses.mean
    last = responses.mask.sum(1, keepdim=True) - 1
    gap = reward[:, 0] - torch.gather(reward, 1, last)[:, 0]
    return ListOutput(-logsigmoid(gap), reward.detach())
