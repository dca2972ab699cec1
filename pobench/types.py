"""Every shape and unit, once.

Log-probabilities are in nats, summed over response tokens in fp32 or better; lengths are counts of
response tokens (the end-of-turn token included). A tensor marked `(pairs,)` has one entry per
preference pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from torch import Tensor


class Group(NamedTuple):
    """One prompt (token ids) and the responses that follow it.

    learnt: of a single response that is more than one turn, the spans [start, stop) that count; (): all of it.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    learnt: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, pair: TokenPair) -> Group:
        return cls(pair.prompt, (pair.chosen, pair.rejected))

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def learnt_tokens(self) -> int:
        return sum(stop - start for start, stop in self.learnt) or sum(map(len, self.responses))


# What a setting may be, said in its annotation: `beta: Positive = 0.1`. The configuration checks it before a run.
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(gt=0, le=1)]
FlipRate = Annotated[float, Field(ge=0, lt=0.5)]  # of pairs whose two answers are swapped; at a half they say nothing
PositiveFlipRate = Annotated[float, Field(gt=0, lt=0.5)]
Reduction = Literal["sum", "mean"]  # of one response's tokens; never over a batch


class SequenceLogps(NamedTuple):
    """Log-probabilities of one response per pair.

    total: (pairs,) nats, `Σ_t log π(y_t | x, y_<t)` over the response tokens.
    length: (pairs,) tokens, at least 1.
    """

    total: Tensor
    length: Tensor

    @property
    def mean(self) -> Tensor:
        """(pairs,) nats per token: `total / length`."""
        return self.total / self.length


class Pair(NamedTuple):
    """The preferred and the dispreferred response of each pair, under one model."""

    chosen: SequenceLogps
    rejected: SequenceLogps


class LossOutput(NamedTuple):
    """What a loss returns: the objective and the two implicit rewards, in the loss's own unit.

    loss: (pairs,) the objective to minimise, with gradient; the harness takes the mean over pairs.
    chosen_reward, rejected_reward: (pairs,), read without gradient.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


class TokenPair(NamedTuple):
    """One preference pair as token ids: both responses follow the same prompt.

    id: names the row in every file that speaks of it. prompt, chosen, rejected: token ids, none empty;
    responses end with their end-of-turn token.
    """

    id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class Estimate:
    """A number with what it stands on: n observations and a confidence interval.

    Nothing measured is `Estimate.missing()`: nan with n = 0, printed as a dash, never 0.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def missing(cls) -> Estimate:
        return cls(float("nan"), float("nan"), float("nan"), 0)
