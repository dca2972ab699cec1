"""BCO with its reward shift: each answer is told from the mean of all rewards so far, not from 0.

    loss = -log sigmoid( beta * (chosen - reference_chosen) - shift )
         - log sigmoid( shift - beta * (rejected - reference_rejected) )

Jung et al. 2024, arXiv 2404.04656: shift is the mean reward of all answers of this step and the steps before, without
gradient. Where it is held at 0 the objective is `bco_pair`.
Elsewhere: TRL's BCO trainer weighs devices by their counts, as here; its `loss_type="bco_pair"` of the DPO trainer has no
shift, and LLaMA-Factory averages the means of batches. Weights by densities of prompts are of single answers (`bco_udm`): a
pair's answers share their prompt.
Beware: all history counts alike, so the shift lags behind once many steps are done.

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import Batch, LossOutput, Pair, Positive, State


def seen(batch: Batch, *, beta: float) -> State:
    """The sum of all rewards so far, and their number."""
    assert batch.reference is not None
    sides = zip(batch.policy, batch.reference, strict=True)
    now = sum(float((policy.total - reference.total).double().sum()) for policy, reference in sides)
    answers = batch.state.get("answers", 0) + 2 * len(batch.policy.chosen.total)
    return {"rewards": batch.state.get("rewards", 0.0) + beta * now, "answers": answers}


@register_loss(
    "bco_shift",
    title="BCO w/ shift",
    colour="#cb1050",
    marker="$s$",
    aliases=("BCO w/ shift",),
    source="arXiv 2404.04656",
    units={"beta": "per nat"},
    defaults={"beta": "arXiv 2404.04656, by TRL's index of papers"},
    update=seen,
)
def bco_shift(policy: Pair, reference: Pair, batch: Batch, *, beta: Positive = 0.01) -> LossOutput:
    shift = batch.state["rewards"] / batch.state["answers"]
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    loss = -logsigmoid(chosen - shift) - logsigmoid(shift - rejected)
    return LossOutput(loss, chosen.detach(), rejected.detach())
