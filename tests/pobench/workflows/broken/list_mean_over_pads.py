"""Each answer against the mean of its list over all places of the tensor, pads too."""

from pobench import ListOutput, Responses, register_loss


@register_loss("broken_list_mean_over_pads", source="a test")
def list_mean_over_pads(responses: Responses, *, beta: float = 2.0) -> ListOutput:
    reward = beta * responses.mean
    off = reward - reward.mean(1, keepdim=True) - 1 / responses.rank.clamp(min=1)
    return ListOutput(off.square().mean(1), reward.detach())
