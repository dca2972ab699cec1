"""SLiC of lists: a hinge on every pair of a ranked list, whose gap grows with the places between the two.

    loss = sum over pairs (i, j), i ranked above j, of max(0, delta * (place_j - place_i) - answer_i + answer_j)
         - sft_weight * best

Zhao et al. 2022, arXiv 2210.00045, the list-wise rank loss of its Eq. 1, which is BRIO's, with the regulariser of SLiC-HF: the
likelihood of the best answer. All log-probabilities are sums. A loss of lists of any length, best first. An answer's place is 1
more than the number of answers ranked above it. Of two answers it is SLiC-HF, which gives the gradient below. Tied answers do
not order each other; the last term is the mean over those tied for the best. `sft_reduction: mean` takes each answer's token
mean there.
Elsewhere: TRL has the hinge of pairs alone. The authors' code is not public; BRIO's authors take token means and the mean of
the hinges of each distance.
Beware: the paper's candidates are the model's own answers, ranked by likeness to a target, and the target is what its
regulariser raises. The gap between the best and the worst of k answers is delta * (k - 1).

Gradient:
    chosen = -hinge - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = hinge
    hinge = where(delta - chosen + rejected > 0, 1, 0)

Reward: summed log-probability, in nats.
"""

from __future__ import annotations

from torch.nn.functional import relu

from pobench.list_math import below, mean_of
from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import ListOutput, NonNegative, Reduction, Responses, SequenceLogps


@register_loss(
    "slic_list",
    title="SLiC of lists",
    colour="#00a33b",
    marker="$\\Sigma$",
    aliases=("SLiC of lists",),
    source="arXiv 2210.00045, Eq. 1",
    units={"delta": "nats", "sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    ranges={"delta": (0.1, 0.5, 1.0, 2.0), "sft_weight": (0.1, 0.5, 1.0, 10.0)},
    defaults={"delta": "SLiC-HF's", "sft_weight": "SLiC-HF's", "sft_reduction": "SLiC-HF's"},
    becomes={"slic_hf": {}},
)
def slic_list(
    responses: Responses,
    *,
    delta: NonNegative = 1.0,
    sft_weight: NonNegative = 0.1,
    sft_reduction: Reduction = "sum",
) -> ListOutput:
    total, lower = responses.total, below(-responses.rank, responses.mask)
    place = lower.sum(1).to(total)
    gap = delta * (place[:, None, :] - place[:, :, None])
    hinges = relu(gap - total[:, :, None] + total[:, None, :]).masked_fill(~lower, 0).sum((1, 2))
    nll = response_nll(SequenceLogps(total, responses.length), sft_reduction)
    sft = mean_of(responses.mask & ~lower.any(1), nll)
    return ListOutput(hinges + sft_weight * sft, total.detach())
