"""Sums of log-probabilities → Pair → LossOutput → what a step logs. Sums and counts are gathered over processes, then
divided.

The names are those people's dashboards expect: `rewards/*`, `logps/*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pobench.registry import Loss, PobenchError
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


def evaluate_loss(
    loss: Loss, settings: Mapping[str, Any], policy: Pair, reference: Pair | None, kl: Tensor | None
) -> LossOutput:
    """Call a loss with what its signature asks for. Raises PobenchError when it returns other shapes than (pairs,)."""
    supplied = {"policy": policy, "reference": reference, "kl": kl}
    output = loss(
        *(supplied[name] for name in ("policy", "reference", "kl") if name == "policy" or name in loss.needs),
        **settings,
    )
    pairs = policy.chosen.total.shape
    wrong = [f"{name} {tuple(t.shape)}" for name, t in output._asdict().items() if t.shape != pairs]
    if wrong:
        raise PobenchError(f"loss {loss.name!r} must return one value per pair, {tuple(pairs)}; got {', '.join(wrong)}")
    return output


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
