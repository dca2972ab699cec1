"""Length-desensitised: the tokens that the longer response has more than the shorter one count less.

    loss = L with y' in place of each sum: the tokens up to the shorter response's length, plus alpha times the rest

Liu et al. 2024, arXiv 2409.06411 (LD-DPO), for DPO. At alpha = 1, or where the two are equally long, it is the loss itself.
Elsewhere: TRL's `ld_alpha` weighs the reference's tokens alike, as here; LLaMA-Factory and ms-swift leave the reference whole,
so that the longer response starts with a bonus before any training. No code of the authors was found.
Beware: lengths stay as they are, so a loss of means divides by the whole length.

Reward: the inner loss's, of the weighed sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pobench.composed import Inner
from pobench.registry import register_modifier
from pobench.types import LossOutput, Pair, Share, TokenLogps


@register_modifier(
    "ld",
    title="LD",
    aliases=("length_desensitized",),
    source="arXiv 2409.06411",
    units={"alpha": "0 to 1"},
    meanings={"alpha": "how much a token beyond the shorter response's length counts"},
    defaults={"alpha": "not published as one value; the middle of TRL's range"},
)
def ld(loss: Inner, policy: Pair, tokens: TokenLogps, *, alpha: Share = 0.5) -> LossOutput:
    common = tokens.mask.all(dim=1, keepdim=True)  # (pairs, 1, tokens)

    def weighed(logps: Tensor) -> Tensor:
        return torch.where(common, logps, alpha * logps)

    def sums(logps: Tensor) -> Pair:
        chosen, rejected = logps.sum(-1).unbind(1)
        return Pair(policy.chosen._replace(total=chosen), policy.rejected._replace(total=rejected))

    ours, known = weighed(tokens.policy), None if tokens.reference is None else weighed(tokens.reference)
    given = {"policy": sums(ours), "tokens": tokens._replace(policy=ours, reference=known)}
    return loss(**given) if known is None else loss(**given, reference=sums(known))
