"""A hinge of single answers that asks for the density ratios of their prompts and weighs nothing by them."""

import torch
from torch import Tensor

from pobench import AnswerOutput, SequenceLogps, register_loss


@register_loss("broken_unused_density_ratio", source="a fixture")
def unused_density_ratio(
    response: SequenceLogps, label: Tensor, reference: SequenceLogps, density_ratio: Tensor, *, beta: float = 0.1
) -> AnswerOutput:
    reward = beta * (response.total - reference.total)
    return AnswerOutput((1 - torch.where(label, reward, -reward)).clamp(min=0), reward.detach())
