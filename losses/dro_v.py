"""DRO-V: a rating must be the prompt's value plus tau times the log-ratio; a second model learns the value.

    loss = ( score - value - tau * (response - reference_response) )² / (2 * tau)

Richemond et al. 2024, arXiv 2405.19107 (Direct Reward Optimisation with a value): half the square, with two steps, each of
which holds the other model fixed; the policy's is divided by tau. So both slopes, by the response's log-probability and by
value, are -(score - value - tau * log-ratio). The loss here is the paper's divided by tau, and its slope by value is multiplied
by tau, which makes both exact.
A loss of single answers, whose mean is over answers. A pair is two of them, with the gradient below. `value` is V(prompt), by a
model that is trained beside the policy: it begins as its copy, with a linear head on the prompt's last token that begins at 0.
Its learning rate is `train.value_learning_rate`; by default the policy's, as public summaries of the paper give it. They also
say that two networks were better than a shared one. The paper's are encoder-decoders; what its head reads is not confirmed.
Elsewhere: a public fork of TRL (JanekDev/trl, `drov`) minimises half the square jointly and divides the policy's learning rate
by tau, which is another step under Adam. LLNL's ProteinTuneRL has the two slopes, of means over tokens unless told otherwise,
and without tau inside the policy's, which then is this one at tau = 1 alone.
Beware: tau is in points of rating per nat, so ratings from 1 to 10 pull ten times as far as ratings from 0 to 1. V begins at 0:
until it has learnt the mean rating, a step raises every answer whose rating is above 0, whatever its label. Ratings whose mean
is 0 avoid that. Held-out pairs have no value, so the loss is missing there.

Gradient:
    chosen = -(score_chosen - value - tau * (chosen - reference_chosen)) / 2
    rejected = -(score_rejected - value - tau * (rejected - reference_rejected)) / 2

Reward: tau * log-ratio to the reference.
"""

from __future__ import annotations

from torch import Tensor

from pobench.registry import register_loss
from pobench.types import AnswerOutput, Positive, SequenceLogps


@register_loss(
    "dro_v",
    title="DRO-V",
    colour="#8c5a14",
    marker="$V$",
    aliases=("dro",),
    source="arXiv 2405.19107",
    units={"tau": "points of rating per nat"},
    ranges={"tau": (0.1, 1.0, 5.0)},
    meanings={"tau": "what a nat of log-ratio is worth as a rating"},
    defaults={"tau": "arXiv 2405.19107: the best of its three, by a public summary"},
)
def dro_v(
    response: SequenceLogps, reference: SequenceLogps, scores: Tensor, value: Tensor, *, tau: Positive = 1.0
) -> AnswerOutput:
    reward = tau * (response.total - reference.total)
    fixed = value.detach()
    miss = scores - (fixed + tau * (value - fixed)) - reward  # its slope by value is -tau
    return AnswerOutput(miss**2 / (2 * tau), reward.detach())
