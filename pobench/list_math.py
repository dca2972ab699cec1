"""What losses of lists share: which answers stand below which, and sums over some answers of each list."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def below(worth: Tensor, mask: Tensor) -> Tensor:
    """(prompts, k, k) bool: whether the second answer is worth less than the first. Equal worth: neither; pads: never.

    worth: (prompts, k), larger is better, such as negated ranks or ratings. mask: (prompts, k) bool, True at answers.
    """
    return mask[:, :, None] & mask[:, None, :] & (worth[:, None, :] < worth[:, :, None])


def mean_of(chosen: Tensor, values: Tensor) -> Tensor:
    """(prompts,) the mean of each list's chosen values, 0 where none is.

    chosen: (prompts, …) bool. values: of the same shape.
    """
    chosen, values = chosen.flatten(1), values.flatten(1)
    return values.masked_fill(~chosen, 0).sum(1) / chosen.sum(1).clamp(min=1)


def log_choices(level: Tensor, others: Tensor) -> Tensor:
    """(prompts, k) nats, at most 0: the log of each answer's share, by softmax, among itself and others; 0 where none is.

    level: (prompts, k), or (prompts, k, k) by how much the second answer's exceeds the first's. others: (prompts, k, k) bool,
    whether the first answer is chosen among the second.
    """
    lead = level[:, None, :] - level[:, :, None] if level.ndim == 2 else level
    alone = ~others.any(2)
    behind = lead.masked_fill(~others, -math.inf).masked_fill(alone[:, :, None], 0).logsumexp(2)
    return logsigmoid(-behind).masked_fill(alone, 0)  # keeps its digits where a share is nearly 1


def log_shares(level: Tensor, mask: Tensor) -> Tensor:
    """(prompts, k) the log of each answer's share in its list, softmax(level); 0 at pads. Arguments: (prompts, k) each."""
    itself = torch.eye(level.shape[1], dtype=torch.bool, device=level.device)
    return log_choices(level, mask[:, :, None] & mask[:, None, :] & ~itself)


class Triple(NamedTuple):
    """What a list gives a loss of three answers: the best, and a pair of the second best and the worst.

    best: (prompts, k) bool. pairs: (prompts, k, k) bool, of a better and a worse answer. Ties make several of either.
    """

    best: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, lower: Tensor, mask: Tensor) -> Triple:
        """lower: from `below`. mask: (prompts, k) bool. Where the second best is the worst too, as in a list of two, the best
        takes its place; in a list whose answers all tie there is no pair."""
        above, beneath = lower.sum(1), lower.sum(2)
        best = mask & (above == 0)
        second = mask & (above <= 1) & (beneath < mask.sum(1, keepdim=True) - 1) & (beneath > 0)
        chosen = second | (best & ~second.any(1, keepdim=True))
        return cls(best, chosen[:, :, None] & (beneath == 0)[:, None, :] & lower)
