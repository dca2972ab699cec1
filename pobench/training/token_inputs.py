"""What a loss asks for of single tokens, for pairs that are measured and not trained on: the inputs `tokens`, `collision`,
`entropy` and `forward_kl`, without gradient. Stored sums do not hold them; policy and reference compute them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pobench.model.policy_sums import SumScorer, empty_values
from pobench.model.vocabulary import OF_REFERENCE, Beside, Kind
from pobench.registry import Loss
from pobench.registry.signature import BY_TOKEN
from pobench.results.cross_loss import evaluate
from pobench.training.objectives import kinds_of, vocabulary_inputs
from pobench.training.reference import EveryStep
from pobench.types import Group, Inputs, LossOutput, Pair, TokenLogps

PAIRS_AT_ONCE = 256


def by_token(loss: Loss) -> list[str]:
    """Which inputs of single tokens the loss asks for."""
    return [name for name in BY_TOKEN if name in loss.needs]


def compares_tokens(loss: Loss) -> bool:
    """Whether it also asks for the reference's tokens or distributions."""
    return loss.runs_reference or {"tokens", "reference"} <= loss.needs


class TokenValues(NamedTuple):
    """Of the tokens of pairs' responses, response by response, in nats. policy, reference: (tokens,); reference is None where
    the loss does not ask for it. of_kinds: kind → (tokens,). lengths: (pairs, 2). largest: of an entropy."""

    policy: Tensor
    reference: Tensor | None
    of_kinds: Mapping[Kind, Tensor]
    lengths: Tensor
    largest: float

    def of(self, first: int, last: int) -> dict[str, Any]:
        """The fields of `Inputs` of the pairs from `first` to before `last`."""
        lengths = self.lengths[first:last]
        start, stop = int(self.lengths[:first].sum()), int(self.lengths[:last].sum())
        known = None if self.reference is None else self.reference[start:stop]
        of_kinds = {kind: values[start:stop] for kind, values in self.of_kinds.items()}
        tokens = TokenLogps.of(lengths, self.policy[start:stop], known)
        return {"tokens": tokens, **vocabulary_inputs(lengths, of_kinds, self.largest)}


@torch.no_grad()
def token_values(
    loss: Loss,
    pairs: Sequence[Group],
    scorer: SumScorer,
    reference: EveryStep | None,
    advance: Callable[[int], None] = lambda pairs: None,
) -> TokenValues:
    """Computed by this process alone. pairs: each with two responses. scorer: of the policy. reference: of the same arithmetic,
    for a loss that `compares_tokens`. advance: called with the number of pairs that were computed since the last call."""
    kinds = kinds_of(loss)
    logps, places = empty_values(pairs, per_token=True)
    values, known = logps.new_zeros(1 + len(kinds), len(logps)), None
    (batches,) = scorer.plan(pairs)
    of_reference = contextlib.nullcontext() if reference is None else reference.scorer.unchanged(len(batches))
    with scorer.unchanged(len(batches)), of_reference:
        for batch in batches:
            rows = scorer.collate([pairs[i] for i in batch])
            beside = Beside(kinds) if kinds else None
            if reference is not None and not OF_REFERENCE.isdisjoint(kinds):
                beside = Beside(kinds, reference.positions(rows))
            with scorer.autocast():
                found = scorer.policy(rows, True, beside)
            values[:, [k for i in batch for k in places[i]]] = found.float().cpu().view(len(values), -1)
            advance(len(batch))
    of_kinds = dict(zip(kinds, values[1:], strict=True))
    if compares_tokens(loss):
        assert reference is not None
        known = of_kinds["reference"] if "reference" in of_kinds else reference.tokens(pairs)
    lengths = torch.tensor([[len(response) for response in pair.responses] for pair in pairs])
    return TokenValues(values[0], known, of_kinds, lengths, math.log(scorer.policy.vocabulary))


def evaluate_by_token(loss: Loss, settings: Mapping[str, Any], inputs: Inputs, values: TokenValues) -> LossOutput:
    """As `evaluate`, for a loss that asks for single tokens. A loss of a whole batch gets all pairs at once."""
    count = len(values.lengths)
    at_once = count if "batch" in loss.needs else PAIRS_AT_ONCE
    parts = [
        evaluate(loss, settings, _of(inputs, first, first + at_once)._replace(**values.of(first, first + at_once)))
        for first in range(0, count, at_once)
    ]
    return LossOutput(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _of(inputs: Inputs, first: int, last: int) -> Inputs:
    """The sums and ratings of the pairs from `first` to before `last`."""

    def some(pair: Pair | None) -> Pair | None:
        return None if pair is None else Pair(*(type(side)(*(v[first:last] for v in side)) for side in pair))

    scores = None if inputs.scores is None else inputs.scores[first:last]
    policy = some(inputs.policy)
    assert policy is not None
    return inputs._replace(policy=policy, reference=some(inputs.reference), scores=scores)
