"""SamPO: of the longer response count as many tokens as the shorter one has, drawn at random, and anew in every step.

    loss = L of the pair of min(|chosen|, |rejected|) tokens each: all of the shorter, as many drawn ones of the longer

Lu et al. 2024, arXiv 2406.10957, for DPO. Where the two are equally long, it is the loss itself.
Elsewhere: the authors' code draws the policy's tokens and the reference's separately, so that the two sums are of different
tokens; here they are of the same. Its IPO divides by the whole lengths; here means are over the tokens that count.
Beware: the loss of a step is a draw. The draw depends on seed, step and pair alone, not on how a batch is cut.

Reward: the inner loss's, of the drawn tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pobench.composed import Inner
from pobench.registry import register_modifier
from pobench.types import LossOutput, Pair, SequenceLogps, TokenLogps


@register_modifier(
    "sampo",
    title="SamPO",
    aliases=("down_sampled",),
    source="arXiv 2406.10957; the authors' code",
)
def sampo(loss: Inner, tokens: TokenLogps) -> LossOutput:
    lengths = tokens.mask.sum(-1)  # (pairs, 2)
    counted = lengths.amin(-1)
    places = torch.zeros(*lengths.shape, int(counted.max()), dtype=torch.long)
    for pair, (of_pair, count, seed) in enumerate(zip(lengths.tolist(), counted.tolist(), tokens.seeds(), strict=True)):
        for side, length in enumerate(of_pair):
            places[pair, side, :count] = drawn(length, count, seed)
    places = places.to(tokens.policy.device)
    mask = (torch.arange(places.shape[-1], device=places.device) < counted[:, None])[:, None].expand_as(places)

    def taken(logps: Tensor) -> Tensor:
        return torch.where(mask, logps.gather(-1, places), 0.0)

    def sums(logps: Tensor) -> Pair:
        return Pair(*(SequenceLogps(total, counted) for total in logps.sum(-1).unbind(1)))

    policy, known = taken(tokens.policy), None if tokens.reference is None else taken(tokens.reference)
    given = {"policy": sums(policy), "tokens": tokens._replace(policy=policy, reference=known, mask=mask)}
    return loss(**given) if known is None else loss(**given, reference=sums(known))


def drawn(length: int, count: int, seed: int) -> Tensor:
    """(count,) places of `length` tokens, in their order; all of them where as many count."""
    if count == length:
        return torch.arange(length)
    draw = torch.Generator().manual_seed(seed)
    return torch.randperm(length, generator=draw)[:count].sort().values
