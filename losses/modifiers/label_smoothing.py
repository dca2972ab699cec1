"""Label smoothing: a share of the pairs is taken to be the wrong way round.

    loss = (1 - rate) * L(chosen, rejected) + rate * L(rejected, chosen)

Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO", for DPO, of which it makes cDPO.
Elsewhere: `label_smoothing` of TRL's CPO trainer and of the SimPO repository, which turn sigmoid's whole argument round, so
that SimPO's margin changes sides too; here the swapped pair must clear the margin as any pair.
Beware: around a loss with a likelihood term, the rejected answer's likelihood is raised too, `rate` times.

Reward: the inner loss's, of the pair as it is labelled.
"""

from __future__ import annotations

from pobench.composed import Inner
from pobench.registry import register_modifier
from pobench.types import FlipRate, LossOutput


@register_modifier(
    "label_smoothing",
    title="Smoothed",
    source="arXiv 2403.00409, Section 3.1, for DPO",
    units={"rate": "share of pairs, 0 to 0.5"},
    meanings={"rate": "how many pairs are taken to be the wrong way round"},
    defaults={"rate": "arXiv 2403.00409, Section 6: its flip rate"},
)
def label_smoothing(loss: Inner, *, rate: FlipRate = 0.1) -> LossOutput:
    labelled, swapped = loss(), loss.swapped()
    return labelled._replace(loss=(1 - rate) * labelled.loss + rate * swapped.loss)
