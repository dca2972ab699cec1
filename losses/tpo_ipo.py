"""TPO with IPO's square: the best of three answers is learnt by its likelihood, and the others' difference has a fixed target.

    loss = ( second / |second| - worst / |worst| - 1 / (2 * tau) )^2 - sft_weight * best

TPO (Saeidi et al. 2024, arXiv 2405.16681) with the square of IPO (Azar et al. 2023, arXiv 2310.12036, Eq. 17) and no reference,
as TRL's experimental TPO trainer has it with `loss_type="ipo"`; no paper defines it. A loss of lists, read as TPO reads them.
Of two answers the best is the second, too: that is IPO without a reference, which gives the gradient below.
Elsewhere: TRL calls tau `beta`, and takes the last term's mean over the tokens of a micro-batch.
Beware: past the target the loss rises again. The target is in nats per token: TRL's default of tau, 0.01, asks for 50 of them.
Of more than three answers, those between the second and the worst are not read.

Gradient:
    chosen = 2 * gap / |chosen| - sft_weight * where(sft_reduction == "sum", 1, 1 / |chosen|)
    rejected = -2 * gap / |rejected|
    gap = chosen / |chosen| - rejected / |rejected| - 1 / (2 * tau)

Reward: mean log-probability, in nats per token.
"""

from __future__ import annotations

from pobench.list_math import Triple, below, mean_of
from pobench.loss_math import response_nll
from pobench.registry import register_loss
from pobench.types import ListOutput, NonNegative, Positive, Reduction, Responses, SequenceLogps


@register_loss(
    "tpo_ipo",
    title="TPO IPO",
    colour="#d1499b",
    marker="$5$",
    source="arXiv 2405.16681, as in TRL's experimental TPO trainer, `ipo`",
    units={
        "tau": "1 / (nat per token); the target is 1 / (2 tau)",
        "sft_weight": "per nat (sum) or per (nat per token) (mean)",
    },
    defaults={
        "tau": "as of IPO without a reference: a target of 1 nat per token, not published",
        "sft_weight": "TPO's",
        "sft_reduction": "TPO's",
    },
    becomes={"ipo_no_reference": {}},
)
def tpo_ipo(
    responses: Responses,
    *,
    tau: Positive = 0.5,
    sft_weight: NonNegative = 1.0,
    sft_reduction: Reduction = "mean",
) -> ListOutput:
    mean = responses.mean
    three = Triple.of(below(-responses.rank, responses.mask), responses.mask)
    contrast = mean_of(three.pairs, (mean[:, :, None] - mean[:, None, :] - 1 / (2 * tau)) ** 2)
    nll = response_nll(SequenceLogps(responses.total, responses.length), sft_reduction)
    return ListOutput(contrast + sft_weight * mean_of(three.best, nll), mean.detach())
