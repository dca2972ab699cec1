"""Each desirable answer against the one behind it, as the answers of pairs stand."""

from torch import Tensor

from pobench import AnswerOutput, SequenceLogps, register_loss


@register_loss("broken_answers_in_twos", source="a test")
def answers_in_twos(response: SequenceLogps, label: Tensor, *, beta: float = 2.0) -> AnswerOutput:
    reward = beta * response.mean
    chosen, rejected = reward.view(-1, 2).unbind(1)
    hinge = (1 - chosen + rejected).clamp(min=0)
    return AnswerOutput(hinge.repeat_interleave(2), reward.detach())
