"""RRHF of lists: a hinge on the mean log-probabilities of every pair of a ranked list, and a likelihood term on the best.

    loss = sum over pairs (i, j), i ranked above j, of max(0, mean_j - mean_i) - sft_weight * best
    mean = answer / |answer|

Yuan et al. 2023, arXiv 2304.05302. A loss of lists of any length, best first. Of two answers it is RRHF of pairs, which gives
the gradient below. Tied answers do not order each other; the last term is the mean over those tied for the best.
`sft_reduction: mean` takes each answer's token mean there.
Elsewhere: TRL has none. The authors weigh the hinge, by 100 by default and 1 in their scripts, and not the likelihood, which
is a mean over the padded length; they take the first of tied answers for the best.
Beware: there is no margin, so answers in the right order have no gradient but that of the last term. The sum has
k (k - 1) / 2 hinges, so a step on long lists is larger.

Gradient:
    chosen = -hinge / |chosen| - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = hinge / |rejected|
    hinge = where(rejected / |rejected| > chosen / |chosen|, 1, 0)

Reward: mean log-probability, in nats per token.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.list_math import below, mean_of
from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import ListOutput, NonNegative, Reduction, Responses, SequenceLogps


@register_loss(
    "rrhf_list",
    title="RRHF of lists",
    colour="#a70cf6",
    marker="$\\rho$",
    aliases=("RRHF of lists",),
    source="arXiv 2304.05302",
    units={"sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    ranges={"sft_weight": (0.1, 0.5, 1.0, 10.0)},
    defaults={"sft_weight": "RRHF's", "sft_reduction": "RRHF's"},
    becomes={"rrhf": {}},
)
def rrhf_list(responses: Responses, *, sft_weight: NonNegative = 1.0, sft_reduction: Reduction = "sum") -> ListOutput:
    mean, lower = responses.mean, below(-responses.rank, responses.mask)
    hinges = relu(mean[:, None, :] - mean[:, :, None]).masked_fill(~lower, 0).sum((1, 2))
    nll = response_nll(SequenceLogps(responses.total, responses.length), sft_reduction)
    sft = mean_of(responses.mask & ~lower.any(1), nll)
    return ListOutput(hinges + sft_weight * sft, mean.detach())
