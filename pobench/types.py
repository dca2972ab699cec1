"""The shared data types, with their shapes and units.

Log-probabilities are in nats, summed over response tokens in fp32 or wider. Lengths count response tokens, including the
end-of-turn token. A tensor of shape `(pairs,)` has one entry per preference pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor


class Group(NamedTuple):
    """One prompt and the responses to it, as token ids.

    learnt: spans [start, stop) of a single response that are trained on, if it has several turns; (): the whole response.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    learnt: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, item: Item) -> Group:
        return cls(item.prompt, item.responses)

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.responses))

    @property
    def learnt_tokens(self) -> int:
        return sum(stop - start for start, stop in self.learnt) or sum(map(len, self.responses))


# Annotations for settings of losses and judges, such as `beta: Positive = 0.1`. They are checked before a run. The ends are far
# beyond what any paper uses, and within what fp32 computes with.
Positive = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
NonPositive = Annotated[float, Field(ge=-1e6, le=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
UnitInterval = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=1, le=10**9)]  # a number of optimiser steps
StepsOrNone = Annotated[int, Field(ge=0, le=10**9)]  # likewise, or none
FlipRate = Annotated[float, Field(ge=0, lt=0.5)]  # share of pairs with swapped labels; 0.5 leaves no information
PositiveFlipRate = Annotated[float, Field(gt=0, lt=0.5)]
Reduction = Literal["sum", "mean"]  # over the tokens of one response, never over a batch


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
    """Log-probabilities of the chosen and the rejected response of each pair, under one model."""

    chosen: SequenceLogps
    rejected: SequenceLogps


class Responses(NamedTuple):
    """Log-probabilities of k ranked responses to each prompt, under one model. A shorter list is padded on the right.

    total: (prompts, k) nats, 0 at pads. length: (prompts, k) tokens, 1 at pads. rank: (prompts, k) int64, 1 is the best, and
    responses of equal rank tie. mask: (prompts, k) bool, True at responses.
    """

    total: Tensor
    length: Tensor
    rank: Tensor
    mask: Tensor

    @property
    def mean(self) -> Tensor:
        """(prompts, k) nats per token: `total / length`."""
        return self.total / self.length


def by_token(lengths: Tensor, values: Tensor) -> Tensor:
    """Values of single tokens in the shape of `lengths` with one dimension more, padded on the right with 0.

    lengths: of the responses, in the shape that they shall have: (pairs, 2), (prompts, k) with 0 at pads, or (answers,).
    values: (tokens,), response by response.
    """
    mask = _mask(lengths)
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _mask(lengths: Tensor) -> Tensor:
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[..., None]


class TokenLogps(NamedTuple):
    """Log-probabilities of the single tokens of responses, from their first token on, padded on the right up to the longest
    response at hand: of pairs (pairs, 2, tokens), chosen first; of lists (prompts, k, tokens); of answers (answers, tokens).

    policy, reference: nats, 0 at the pads; reference is None unless the loss asks for `reference` too. mask: bool, True at
    tokens. The sums of `policy` over its tokens are the responses' sums, and gradients flow through either.
    draw: of pairs, (pairs,) int64, in training a random number of each, another in each step, the same however its batch is
    cut; None outside of training.
    """

    policy: Tensor
    reference: Tensor | None
    mask: Tensor
    draw: Tensor | None = None

    def seeds(self) -> list[int]:
        """`draw` as the seeds of generators, one a pair; outside of training all are 0."""
        return [0] * len(self.mask) if self.draw is None else self.draw.tolist()

    @classmethod
    def of(cls, lengths: Tensor, policy: Tensor, reference: Tensor | None) -> TokenLogps:
        """lengths: as of `by_token`. policy, reference: (tokens,) nats, response by response."""
        known = None if reference is None else by_token(lengths, reference)
        return cls(by_token(lengths, policy), known, _mask(lengths))

    @classmethod
    def spread(cls, policy: Logps, reference: Logps | None, phase: float = 0.0) -> TokenLogps:
        """Tokens with these sums, to try a loss on: each has its share of the sum, up to a third more or less. phase: which
        tokens have more."""
        shape, lengths = _tables(policy)[1], _tables(policy)[1].flatten()
        place = torch.cat([torch.arange(int(n)) for n in lengths]).to(lengths.device)
        owner = torch.repeat_interleave(lengths)

        def tokens(logps: Logps, phase: float) -> Tensor:
            totals = _tables(logps)[0].flatten()
            wave = torch.sin(place + phase).to(totals.dtype)
            level = torch.zeros_like(totals).index_add(0, owner, wave) / lengths.clamp(min=1)
            return (totals / lengths.clamp(min=1))[owner] * (1 + (wave - level[owner]) / 6)

        return cls.of(shape, tokens(policy, phase), None if reference is None else tokens(reference, phase + 1.0))


Logps = Pair | Responses | SequenceLogps  # of pairs, of lists, of single answers


def _tables(logps: Logps) -> tuple[Tensor, Tensor]:
    """(totals, lengths) of all responses, (pairs, 2), (prompts, k) with length 0 at pads, or (answers,)."""
    if isinstance(logps, Pair):
        return torch.stack([side.total for side in logps], 1), torch.stack([side.length for side in logps], 1)
    return logps.total, logps.length * logps.mask if isinstance(logps, Responses) else logps.length


State = Mapping[str, Any]  # what a loss carries over steps: numbers, texts, and lists of them


class Batch(NamedTuple):
    """The whole optimiser batch of pairs before its step, for a loss that asks for it: detached, and the same in every
    micro-batch and every process.

    policy, reference: (pairs in the batch,) each; reference is None unless the loss asks for `reference` too.
    place: (pairs,) the place in the batch of each pair that the loss is called with.
    state: what the loss's `update` has made of this batch and of all before it; {} for a loss without.
    """

    policy: Pair
    reference: Pair | None
    place: Tensor
    state: State

    def averages(self, values: Tensor) -> dict[str, float]:
        """Moving averages over steps, from 0, with a weight of 0.9 on the past: `mean` and `spread` of a batch's values.

        values: (pairs in the batch,).
        """
        return _averages(self.state, values)

    def share(self, objective: Callable[[Pair], Tensor], policy: Pair) -> Tensor:
        """(pairs,) the share of each pair of a micro-batch in a loss that depends on the whole batch in any way: their mean
        over the batch is the mean of `objective`, and their gradient is its gradient.

        objective: the policy's sums of the whole batch → (pairs in the batch,) values in any order, or their 0-d mean. policy:
        the sums of the micro-batch. Each share is the objective's expansion to first order around the batch's sums.
        """
        lengths = [side.length for side in self.policy]

        def of_totals(*totals: Tensor) -> Tensor:
            return objective(Pair(*map(SequenceLogps, totals, lengths)))

        whole, here = ([side.total for side in pair] for pair in (self.policy, policy))
        return _shares(of_totals, whole, here, self.place)


class ListBatch(NamedTuple):
    """The whole optimiser batch of lists, as `Batch` is of pairs. policy, reference: (lists in the batch, k) each, padded to
    its longest list. place: (prompts,)."""

    policy: Responses
    reference: Responses | None
    place: Tensor
    state: State

    def averages(self, values: Tensor) -> dict[str, float]:
        """As of a `Batch`. values: any number of them."""
        return _averages(self.state, values)

    def share(self, objective: Callable[[Responses], Tensor], responses: Responses) -> Tensor:
        """(prompts,) as of a `Batch`. objective: the batch's `Responses` → (lists in the batch,) or 0-d."""
        whole = self.policy.total[:, : responses.total.shape[1]]  # no list of the micro-batch is longer

        def of_totals(total: Tensor) -> Tensor:
            return objective(self.policy._replace(total=torch.cat([total, self.policy.total[:, total.shape[1] :]], 1)))

        return _shares(of_totals, [whole], [responses.total], self.place)


class AnswerBatch(NamedTuple):
    """The whole optimiser batch of single answers, as `Batch` is of pairs. policy, reference: (answers in the batch,) each.
    label: (answers in the batch,) bool, True for a desirable one. place: (answers,)."""

    policy: SequenceLogps
    reference: SequenceLogps | None
    label: Tensor
    place: Tensor
    state: State

    def averages(self, values: Tensor) -> dict[str, float]:
        """As of a `Batch`. values: any number of them."""
        return _averages(self.state, values)

    def share(self, objective: Callable[[SequenceLogps], Tensor], response: SequenceLogps) -> Tensor:
        """(answers,) as of a `Batch`. objective: the batch's `SequenceLogps` → (answers in the batch,) or 0-d."""

        def of_totals(total: Tensor) -> Tensor:
            return objective(self.policy._replace(total=total))

        return _shares(of_totals, [self.policy.total], [response.total], self.place)


def _averages(state: State, values: Tensor) -> dict[str, float]:
    now = {"mean": float(values.mean()), "spread": float(values.std(correction=0))}
    return {name: 0.9 * state.get(name, 0.0) + 0.1 * value for name, value in now.items()}


def _shares(objective: Callable[..., Tensor], whole: Sequence[Tensor], here: Sequence[Tensor], place: Tensor) -> Tensor:
    """The objective's expansion to first order around the whole batch's sums, at those of a micro-batch: one value a unit.

    whole, here: (units in the batch, …) and (units, …) sums. place: (units,).
    """
    with torch.enable_grad():
        leaves = [total.detach().requires_grad_() for total in whole]
        values = objective(*leaves).expand(len(leaves[0]))
        slopes = torch.autograd.grad(values.sum(), leaves, materialize_grads=True)
    moved = [
        (slope[place] * (now - before[place])).flatten(1).sum(1)
        if now.ndim > 1
        else slope[place] * (now - before[place])
        for slope, now, before in zip(slopes, here, whole, strict=True)
    ]
    return sum(moved, values.detach()[place])


class Entropy(NamedTuple):
    """Entropies of the distribution of the next token, before each token of each pair's responses, detached.

    policy, reference: (pairs, 2, tokens) nats, as the fields of `TokenLogps`, 0 at the pads; reference is None unless the loss
    asks for `reference` too. largest: nats, the logarithm of the vocabulary's size, which no entropy exceeds.
    """

    policy: Tensor
    reference: Tensor | None
    largest: float


class Vocabulary(NamedTuple):
    """What a loss may ask for of the distribution over the whole vocabulary before each token of each pair's responses; fields
    of `Inputs`, and described there."""

    collision: Tensor | None = None
    entropy: Entropy | None = None
    forward_kl: Tensor | None = None

    @classmethod
    def spread(cls, policy: Pair, phases: Mapping[str, float] = MappingProxyType({})) -> Vocabulary:
        """Values of ordinary size, to try a loss on: they depend on a token's place alone, not on the sums. phases: field →
        which tokens have more."""
        lengths = torch.stack([side.length for side in policy], dim=1)
        place = torch.cat([torch.arange(int(n)) for n in lengths.flatten()]).to(lengths.device)

        def wave(name: str, ahead: float = 0.0) -> Tensor:
            return torch.sin(place + phases.get(name, 0.0) + ahead).to(policy.chosen.total.dtype)

        return cls(
            by_token(lengths, -1 - wave("collision") / 2),
            Entropy(by_token(lengths, 2 + wave("entropy")), by_token(lengths, 2 + wave("entropy", 1.0)), 10.0),
            by_token(lengths, 0.02 + wave("forward_kl") / 100),
        )


class Inputs(NamedTuple):
    """What a loss of pairs may ask for, by the names of its positional parameters. None: not asked for, or not at hand.

    policy, reference: the summed log-probabilities of the pairs under the model in training and under the frozen one.
    kl: 0-d, nats: the unclamped mean of `log π - log π_ref` over the mismatched pairs of the whole optimiser batch, detached.
    tokens: the log-probabilities of the single tokens.
    scores: (pairs, 2) the data's ratings of chosen and rejected, on the data's own scale.
    batch: the whole optimiser batch, of which these pairs are a part.
    collision: (pairs, 2, tokens) nats, 0 at pads: log Σ_v p(v)² of the policy's distribution p before each token, detached.
    entropy: of the distributions before each token.
    forward_kl: (pairs, 2, tokens) nats, 0 at pads: Σ_v q(v) log(q(v) / p(v)), q the reference's; with gradient to the policy.
    value: (pairs,) V of each pair's prompt, by a model that is trained beside the policy, by the loss's gradient through it.
    """

    policy: Pair
    reference: Pair | None = None
    kl: Tensor | None = None
    tokens: TokenLogps | None = None
    scores: Tensor | None = None
    batch: Batch | ListBatch | AnswerBatch | None = None  # of a loss that reads pairs as lists or answers: its own
    collision: Tensor | None = None
    entropy: Entropy | None = None
    forward_kl: Tensor | None = None
    value: Tensor | None = None


class ListInputs(NamedTuple):
    """What a loss of lists may ask for, as `Inputs` are of pairs. scores: (prompts, k), nan at pads. value: (prompts,)."""

    responses: Responses
    reference: Responses | None = None
    tokens: TokenLogps | None = None
    scores: Tensor | None = None
    batch: ListBatch | None = None
    value: Tensor | None = None


class AnswerInputs(NamedTuple):
    """What a loss of single answers may ask for, as `Inputs` are of pairs. label: (answers,) bool, True for a desirable one.
    kl: of each answer's prompt with the answer of another row. scores, value: (answers,). density_ratio: (answers,) above 0:
    how much more often the answer's prompt has a desirable answer than an undesirable one, as a classifier of prompts
    estimates it (`pobench.training.density_ratio`); 1 of a pair's answers, which share their prompt."""

    response: SequenceLogps
    label: Tensor
    reference: SequenceLogps | None = None
    kl: Tensor | None = None
    tokens: TokenLogps | None = None
    scores: Tensor | None = None
    batch: AnswerBatch | None = None
    density_ratio: Tensor | None = None
    value: Tensor | None = None


class LossOutput(NamedTuple):
    """What a loss returns: the objective and the two implicit rewards, in the loss's own unit.

    loss: (pairs,) the objective to minimise, with gradient; the training loop takes the mean over pairs.
    chosen_reward, rejected_reward: (pairs,), used without gradient.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor


class ListOutput(NamedTuple):
    """What a loss of lists returns.

    loss: (prompts,) the objective to minimise, with gradient; the training loop takes the mean over lists.
    rewards: (prompts, k), used without gradient; at pads they are not read.
    """

    loss: Tensor
    rewards: Tensor


class AnswerOutput(NamedTuple):
    """What a loss of single answers returns: the objective, of which the training loop takes the mean over answers, and the
    implicit reward, used without gradient; (answers,) each."""

    loss: Tensor
    reward: Tensor


class TokenPair(NamedTuple):
    """One preference pair as token ids: two responses to the same prompt.

    id: the row's id in all files. prompt, chosen, rejected: token ids, none empty; responses end with the end-of-turn
    token. scores: the data's ratings of chosen and rejected, on its own scale; None where it has none. source: the name of the
    data set that it comes from, where there are several; else "".
    """

    id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    scores: tuple[float, float] | None = None
    source: str = ""

    @property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """prompt, chosen, rejected."""
        return self[1:4]

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """chosen, rejected."""
        return self[2:4]


class TokenList(NamedTuple):
    """A prompt and k ranked responses to it, at least two, as token ids like those of a `TokenPair`.

    ranks: 1 is the best; responses of equal rank tie. scores: the data's ratings, on its own scale, which order the responses
    as the ranks do; None where it has none.
    """

    id: str
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] | None = None


class TokenAnswer(NamedTuple):
    """A prompt and one labelled response to it, as token ids like those of a `TokenPair`.

    label: whether it is desirable. score: the data's rating, on its own scale; None where it has none.
    """

    id: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]
    label: bool
    score: float | None = None

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """The response alone."""
        return (self.response,)


Unit = Literal["pairs", "lists", "answers"]  # what a loss has one value of
Item = TokenPair | TokenList | TokenAnswer  # what one row of training data becomes


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval [low, high] and its number of observations n.

    Without observations it is `Estimate.missing()`: nan with n = 0, printed as a dash, never as 0.
    """

    value: float
    low: float
    high: float
    n: int

    def scaled(self, factor: float) -> Estimate:
        """In another unit, such as percent or points; factor: above 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.n)

    @classmethod
    def missing(cls) -> Estimate:
        return cls(float("nan"), float("nan"), float("nan"), 0)
