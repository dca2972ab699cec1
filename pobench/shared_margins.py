"""The margins of γ-PO: a sum of target margins is shared out between gaps, more to the larger ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pobench.types import Batch, State

WINDOW = 256  # pairs that share their margins: the authors' repository


def latest_gaps(batch: Batch, gaps: Tensor) -> State:
    """The gaps of the batch's pairs, in order, behind those of the steps before; the last `WINDOW` of them, and never less than
    the batch.

    gaps: (pairs in the batch,) in reward.
    """
    here: list[float] = gaps.double().tolist()
    return {"gaps": [*batch.state.get("gaps", []), *here][-max(WINDOW, len(here)) :]}


def margins_of(gaps: Sequence[float], gamma: float, tau: float) -> Tensor:
    """(N,) fp64, the margin of each gap: gamma on average, by 20 steps of mirror descent in log(N p)."""
    of_gaps = torch.tensor(gaps, dtype=torch.float64)
    step, level = min(0.5 / tau, 1.0), torch.zeros_like(of_gaps)
    for _ in range(20):
        level = level - step * (tau * level + gamma * torch.sigmoid(gamma * level.exp() - of_gaps))
        level = level - level.logsumexp(0) + math.log(len(of_gaps))
    return gamma * level.exp()
