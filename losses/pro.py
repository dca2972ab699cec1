"""PRO: the best answer of a rated list is chosen before the others, then the next one; rating gaps are temperatures.

    loss = sum over the answers of log(1 + sum over those rated below it of exp( gap * mean_below - largest_gap * mean ))
         - sft_weight * (k - 1)^2 * best
    mean = answer / |answer|
    gap = the answer's rating - that of the answer below it; largest_gap: the answer's largest one

Song et al. 2023, arXiv 2306.17492, as the authors' code has it; k is the number of answers. A loss of rated lists of any
length. Of two answers it is -log sigmoid( gap * (mean - mean_below) ) - sft_weight * best, which gives the gradient below.
Answers of equal rating do not order each other; the last term is the mean over those rated best. `sft_reduction: mean` takes
each answer's token mean there.
Elsewhere: TRL has none. The authors rate by a reward model and let the first of equally rated answers choose before the
others. Third-party copies put mean log-probabilities in the place of ratings, with gradient: another objective.
Beware: the ratings' scale is a setting of the objective, as beta is elsewhere. The ratings order the answers, not the labels
of pairs. The last term grows with the square of the list's length, so it outweighs the others on long lists.

Gradient:
    chosen = -gap * s / |chosen| - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = gap * s / |rejected|
    s = sigmoid(gap * (rejected / |rejected| - chosen / |chosen|))
    gap = score_chosen - score_rejected

Reward: mean log-probability, in nats per token.
"""

from __future__ import annotations

from torch import Tensor

from pobench.list_math import below, log_choices, mean_of
from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import ListOutput, NonNegative, Reduction, Responses, SequenceLogps


@register_loss(
    "pro",
    title="PRO",
    colour="#fe436b",
    marker="$\\Pi$",
    source="arXiv 2306.17492, the authors' repository",
    units={"sft_weight": "per nat (sum) or per (nat per token) (mean)"},
    defaults={
        "sft_weight": "arXiv 2306.17492, the authors' script for HH",
        "sft_reduction": "arXiv 2306.17492, the authors' repository",
    },
)
def pro(
    responses: Responses, scores: Tensor, *, sft_weight: NonNegative = 0.05, sft_reduction: Reduction = "sum"
) -> ListOutput:
    mean, scores = responses.mean, scores.masked_fill(~responses.mask, 0)
    lower, gap = below(scores, responses.mask), scores[:, :, None] - scores[:, None, :]
    largest = gap.masked_fill(~lower, 0).amax(2)
    ranking = -log_choices(gap * mean[:, None, :] - (largest * mean)[:, :, None], lower).sum(1)
    nll = response_nll(SequenceLogps(responses.total, responses.length), sft_reduction)
    best = responses.mask & ~lower.any(1)
    weight = sft_weight * (responses.mask.sum(1) - 1).to(mean) ** 2
    return ListOutput(ranking + weight * mean_of(best, nll), mean.detach())
