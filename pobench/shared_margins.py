"""The margins of γ-PO: a sum of target margins is shared out between gaps, more to the larger ones."""

from __future__ import annotations

import math

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


def margins_of(batch: Batch, gamma: float, tau: float) -> Tensor:
    """(pairs,) fp64, the margin of each pair that the loss is called with.

    All gaps that `latest_gaps` has left in the state share their margins, gamma on average: 20 steps of mirror descent in
    log(N p).
    """
    gaps = torch.tensor(batch.state["gaps"], dtype=torch.float64)
    step, level = min(0.5 / tau, 1.0), torch.zeros_like(gaps)
    for _ in range(20):
        level = level - step * (tau * level + gamma * torch.sigmoid(gamma * level.exp() - gaps))
        level = level - level.logsumexp(0) + math.log(len(gaps))
    of_batch = gamma * level[-len(batch.policy.chosen.total) :].exp()
    return of_batch[batch.place.cpu()]
