"""RePO: a hinge on SimPO's margin; a pair beyond the margin gets no gradient.

    loss = max(0, gamma - ( chosen / |chosen| - rejected / |rejected| ))

Wu et al. 2025, arXiv 2503.07426: the limit of SimPO / beta for large beta. gamma is in nats per token, so it
corresponds to SimPO's gamma / beta, not to its gamma.
Elsewhere: the authors' trainer configures gamma as `gamma_beta_ratio`; its `beta` scales the reported rewards alone.
TRL's "hinge" of the CPO trainer asks for 1 / beta of the summed log-probabilities: another loss.
Beware: beyond gamma the gradient is exactly 0; watch the share of pairs that still count.

Gradient:
    chosen = where(m < gamma, -1 / |chosen|, 0)
    rejected = where(m < gamma, 1 / |rejected|, 0)
    m = chosen / |chosen| - rejected / |rejected|

Reward: mean log-probability, in nats per token.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.registry import register_loss
from pobench.types import LossOutput, NonNegative, Pair


@register_loss(
    "repo",
    title="RePO",
    colour="#7991c4",
    marker=(6, 0, 15),
    source="arXiv 2503.07426",
    units={"gamma": "nats per token"},
    defaults={"gamma": "the authors' repository, Llama-3-Instruct"},
    becomes={"simpo_hinge": {"gamma": 1.0, "simpo_hinge.beta": 1.0, "simpo_hinge.gamma": 0.0}},
)
def repo(policy: Pair, *, gamma: NonNegative = 0.6) -> LossOutput:
    chosen, rejected = policy.chosen.mean, policy.rejected.mean
    return LossOutput(relu(gamma - (chosen - rejected)), chosen.detach(), rejected.detach())
