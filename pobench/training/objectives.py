"""The objectives that the loop minimises: a preference loss over pairs, and the likelihood of demonstrations (SFT).

An objective turns sums of log-probabilities into a gradient by these sums and into the metrics of a step. Metrics are sums
over items; the loop adds them up over processes and divides by the batch. Their names (`rewards/*`, `logps/*`) are the
ones that dashboards expect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pobench.columns import SATURATED
from pobench.data.spool import Mapped
from pobench.errors import PobenchError
from pobench.model.policy_sums import SumScorer
from pobench.registry import Loss
from pobench.training.reference import EveryStep, ReferenceSums
from pobench.types import Batch, Group, Inputs, LossOutput, Pair, SequenceLogps, State, TokenLogps, TokenPair

STEP_METRICS = (
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
    """(len(STEP_METRICS),) fp64 sums over the pairs of a micro-batch; divide by the pairs of the whole batch.

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


class Measured(NamedTuple):
    """A micro-batch's result. slope: d objective / d value, in the shape of the values, where the objective is a sum over
    items. logged: (names,) fp64 sums."""

    slope: Tensor
    logged: Tensor


class Objective(Protocol):
    """What the loop minimises. groups: the sequences of each item. names: the logged metrics, `loss` first. unit: what `size`
    counts. per_token: whether it is measured by each token's log-probability, not by the responses' sums. state: what it
    carries over steps, which a checkpoint stores."""

    groups: Sequence[Group]
    names: Sequence[str]
    unit: str
    per_token: bool
    state: State

    def start(self, scorer: SumScorer, first: Sequence[int], *, exact: bool) -> float:
        """Called once, before step 1, in every process. first: indices of the first batch. exact: fp32 throughout.
        Returns the mean |policy - reference| a token, in nats; nan without a reference."""
        ...

    def begin_step(self, scorer: SumScorer, batch: Sequence[int]) -> dict[str, float]:
        """Called before a step's first micro-batch, in every process. batch: indices of all its items.
        Returns further metrics to log."""
        ...

    def size(self, batch: Sequence[int]) -> int:
        """The divisor of the sums over a whole optimiser batch."""
        ...

    def measure(self, items: list[int], values: Tensor) -> Measured:
        """values: (responses,) nats of these items' responses, in order, or by token, (tokens,). Nothing is sent back through
        its graph."""
        ...

    def describe(self, batch: Sequence[int]) -> str:
        """The items of a batch, for a message."""
        ...


def mismatched_groups(pairs: Sequence[TokenPair], mismatched: Sequence[int]) -> list[Group]:
    """For each pair, its prompt with an answer of another pair, `mismatched[i]`. KTO estimates its kl from them.

    The borrowed answer is alternately a chosen and a rejected one, so the estimate covers both.
    """
    return [
        Group(p.prompt, ((pairs[j].chosen, pairs[j].rejected)[i % 2],))
        for i, (p, j) in enumerate(zip(pairs, mismatched, strict=True))
    ]


class PreferenceObjective:
    """A registered loss over pairs. It gets what its signature names, see `pobench.types.Inputs`. One of lists or of answers
    gets pairs read as those."""

    names: Sequence[str] = STEP_METRICS
    unit = "pairs"

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        loss: Loss,
        settings: Mapping[str, Any],
        reference: ReferenceSums | EveryStep | None = None,
        mismatched: Sequence[int] | None = None,
    ) -> None:
        """settings: the loss's own. reference: the reference sums of the pairs' responses, for a loss that needs them, and of
        `mismatched_groups`, for a loss that needs `kl`; or what computes them, batch by batch. mismatched: for each pair the
        index of the pair that lends its answer, for a loss that needs `kl`.

        Raises PobenchError if the loss needs sums or scores that are missing.
        """
        self.pairs, self.loss, self.settings, self.reference = pairs, loss, settings, reference
        self.groups: Sequence[Group] = Mapped(Group.of, pairs)
        self.lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs])
        self.borrowed: list[Group] = []
        self.known: Tensor | None = None
        self.known_borrowed: Tensor | None = None
        self.kl: Tensor | None = None
        self.per_token = "tokens" in loss.needs
        self.step_tokens: dict[int, Tensor] = {}  # pair → its tokens under a reference that computes them in every step
        self.batch: Batch | None = None  # of this step
        self.places: dict[int, int] = {}  # pair → place in that batch
        self.state: State = {}
        self.scores = _scores_of(pairs, loss) if "scores" in loss.needs else None
        if not loss.reads_reference:
            return
        if reference is None:
            raise PobenchError(f"{loss.name} needs {' and '.join(sorted(loss.needs))}, and there are no reference sums")
        self.known = torch.full((len(pairs), 2), math.nan)
        if "kl" in loss.needs:
            if mismatched is None:
                raise PobenchError(f"{loss.name} needs kl; pass `mismatched`, the pairs that lend their answers")
            self.borrowed = mismatched_groups(pairs, mismatched)
            self.known_borrowed = torch.full((len(pairs),), math.nan)
        if isinstance(reference, ReferenceSums):
            self._read_reference(range(len(pairs)))

    def _read_reference(self, items: Sequence[int]) -> None:
        """Take the reference sums of these pairs: of all at once from a store, of a batch from a model in its step."""
        if self.reference is None or self.known is None:
            return
        items = list(items)
        groups = [self.groups[i] for i in items]
        if isinstance(self.reference, EveryStep) and self.per_token and "reference" in self.loss.needs:
            tokens = self.reference.tokens(groups)
            self.known[items] = _sums(tokens, self.lengths[items].flatten()).view(-1, 2)
            self.step_tokens = dict(zip(items, tokens.split(self.lengths[items].sum(1).tolist()), strict=True))
        else:
            self.known[items] = self.reference.of(groups).float().view(-1, 2)
        if self.known_borrowed is not None:
            self.known_borrowed[items] = self.reference.of([self.borrowed[i] for i in items]).float()

    def start(self, scorer: SumScorer, first: Sequence[int], *, exact: bool) -> float:
        """Raises PobenchError if the reference sums are not those of the policy before step 1."""
        if self.known is None or self.reference is None:
            return math.nan
        probed = list(first[:8])
        if isinstance(self.reference, EveryStep):
            self._read_reference(probed)
        sums = scorer.sums([self.groups[i] for i in probed])
        gap = float(((sums - self.known[probed].flatten()).abs() / self.lengths[probed].flatten()).mean())
        tolerance = 1e-4 if exact else 5e-2  # bf16 rounds differently in rows of other widths
        if not gap < tolerance:
            raise PobenchError(
                f"before step 1 policy and reference differ by {gap:.2g} nats a token (allowed {tolerance:g}): the "
                f"reference sums, computed in {self.reference.arithmetic}, are not those of this model as it is trained, "
                f"in {scorer.arithmetic}; compute them anew from the start weights"
            )
        return gap

    def begin_step(self, scorer: SumScorer, batch: Sequence[int]) -> dict[str, float]:
        """Compute what the loss asks for of the whole batch. kl: the unclamped mean of log π - log π_ref over its mismatched
        pairs, in nats, detached."""
        if isinstance(self.reference, EveryStep):
            self._read_reference(batch)
        if "batch" in self.loss.needs:
            self._take_batch(scorer, batch)
        if self.known_borrowed is None:
            return {"kl": math.nan}
        sums = scorer.sums([self.borrowed[i] for i in batch])
        kl = (sums - self.known_borrowed[list(batch)].double()).mean()
        self.kl = kl.to(scorer.accelerator.device).float()
        return {"kl": float(self.kl)}

    def _take_batch(self, scorer: SumScorer, batch: Sequence[int]) -> None:
        """Score the whole batch without gradient, and take the state a step further."""
        device = scorer.accelerator.device
        sums = scorer.sums([self.groups[i] for i in batch]).float().to(device)
        policy = pair_of(sums, self.lengths[list(batch)].flatten().to(device))
        self.batch = self.loss.batch_of(policy, self._reference_of(batch, device), self.settings, self.state)
        assert self.batch is not None
        self.places, self.state = {item: place for place, item in enumerate(batch)}, self.batch.state

    def _reference_of(self, items: Sequence[int], device: torch.device) -> Pair | None:
        if self.known is None:
            return None
        return pair_of(self.known[list(items)].flatten().to(device), self.lengths[list(items)].flatten().to(device))

    def _tokens_of(self, items: Sequence[int], policy: Tensor, lengths: Tensor) -> TokenLogps:
        """policy: (tokens,) nats. lengths: (responses,)."""
        known = None
        if "reference" in self.loss.needs and self.reference is not None:
            every_step = isinstance(self.reference, EveryStep)
            groups = [self.groups[i] for i in items]
            known = torch.cat([self.step_tokens[i] for i in items]) if every_step else self.reference.tokens(groups)
            known = known.to(policy.device)
        return TokenLogps.of(lengths, policy, known)

    def size(self, batch: Sequence[int]) -> int:
        return len(batch)

    def measure(self, items: list[int], values: Tensor) -> Measured:
        leaf = values.detach().requires_grad_()
        lengths = self.lengths[items].flatten().to(leaf.device)
        tokens = self._tokens_of(items, leaf, lengths) if self.per_token else None
        policy = pair_of(_sums(leaf, lengths) if self.per_token else leaf, lengths)
        scores = None if self.scores is None else self.scores[items].to(leaf)
        batch = self.batch
        if batch is not None:
            batch = batch._replace(place=torch.tensor([self.places[i] for i in items], device=leaf.device))
        inputs = Inputs(policy, self._reference_of(items, leaf.device), self.kl, tokens, scores, batch)
        output = self.loss.evaluate(*inputs, **self.settings)
        (slope,) = torch.autograd.grad(output.loss.sum(), leaf)
        weight = (
            _sums(slope.abs(), lengths) / lengths if self.per_token else slope.abs()
        )  # the mean of a response's tokens
        return Measured(slope, step_sums(policy, output, weight[0::2] + weight[1::2]))

    def describe(self, batch: Sequence[int]) -> str:
        return f"pairs in the batch: {_some([self.pairs[i].id for i in batch])}"


def _sums(tokens: Tensor, lengths: Tensor) -> Tensor:
    """(responses,) sums of (tokens,), added up as the model adds them."""
    return tokens.new_zeros(len(lengths)).index_add(0, torch.repeat_interleave(lengths), tokens)


def _scores_of(pairs: Sequence[TokenPair], loss: Loss) -> Tensor:
    """(pairs, 2) fp64. Raises PobenchError that names pairs without."""
    if missing := [pair.id for pair in pairs if pair.scores is None]:
        raise PobenchError(
            f"{loss.name} needs scores, and {len(missing)} of {len(pairs)} pairs have none: {_some(missing)}"
        )
    return torch.tensor([pair.scores for pair in pairs], dtype=torch.float64)


class LikelihoodObjective:
    """loss = -Σ log π(learnt token) / learnt tokens. Both sums run over the whole optimiser batch, so each token has the same
    weight however the batch is split."""

    names: Sequence[str] = ("loss",)
    unit = "tokens"
    per_token = False

    def __init__(self, groups: Sequence[Group]) -> None:
        """groups: each has one response; `Group.learnt` may select a part of it."""
        self.groups = groups
        self.state: State = {}

    def start(self, scorer: SumScorer, first: Sequence[int], *, exact: bool) -> float:
        return math.nan

    def begin_step(self, scorer: SumScorer, batch: Sequence[int]) -> dict[str, float]:
        return {}

    def size(self, batch: Sequence[int]) -> int:
        return sum(self.groups[i].learnt_tokens for i in batch)

    def measure(self, items: list[int], values: Tensor) -> Measured:
        return Measured(torch.full_like(values, -1.0), -values.detach().double().sum()[None])

    def describe(self, batch: Sequence[int]) -> str:
        return f"conversations in the batch: {_some([str(i + 1) for i in batch])}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
