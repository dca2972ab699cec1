"""Sums of log-probabilities → Pair → LossOutput → what a step logs. Sums and counts are gathered over processes, then
divided.

The names are those people's dashboards expect: `rewards/*`, `logps/*`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pobench.types import LossOutput, Pair, SequenceLogps

# A pair whose objective hardly answers to either response: |∂loss/∂ log π(y_w)| + |∂loss/∂ log π(y_l)| below this, per nat.
SATURATED = 1e-6

NAMES = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/chosen_per_token",
    "logps/rejected_per_token",
    "saturated",
)


def pair_of(totals: Tensor, lengths: Tensor) -> Pair:
    """(2 × pairs,) in the order chosen, rejected, chosen, … → a Pair of (pairs,) each."""
    return Pair(SequenceLogps(totals[0::2], lengths[0::2]), SequenceLogps(totals[1::2], lengths[1::2]))


def step_sums(policy: Pair, output: LossOutput, weight: Tensor) -> Tensor:
    """(len(NAMES),) fp64 sums over the pairs of a micro-batch; divide by the pairs of the whole batch.

    weight: (pairs,) `|∂loss/∂w| + |∂loss/∂l|` per nat. A tie of rewards counts half.
    """
    won = (output.chosen_reward > output.rejected_reward).double()
    tied = (output.chosen_reward == output.rejected_reward).double()
    rows = (
        output.loss,
        output.chosen_reward,
        output.rejected_reward,
        output.chosen_reward - output.rejected_reward,
        won + tied / 2,
        policy.chosen.total,
        policy.rejected.total,
        policy.chosen.mean,
        policy.rejected.mean,
        (weight < SATURATED).double(),
    )
    return torch.stack([row.detach().double().sum() for row in rows])
