"""The objectives that the loop minimises: a preference loss of pairs, lists or answers, and the likelihood of demonstrations
(SFT).

An objective turns sums of log-probabilities into a gradient by these sums and into the metrics of a step. Metrics are sums
over items; the loop adds them up over processes, and the objective makes means of the whole batch of them. Their names
(`rewards/*`, `logps/*`) are the ones that dashboards expect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pobench.columns import SATURATED
from pobench.errors import PobenchError
from pobench.model.policy_sums import SumScorer
from pobench.registry import Loss
from pobench.training.reference import EveryStep, ReferenceSums
from pobench.types import Group, Item, State, TokenLogps
from pobench.units import ROWS, Rows, Told

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


# The metrics that are means over the rows that tell of a chosen answer, and over those that tell of a rejected one. The others
# are means over all.
_CHOSEN = ("rewards/chosen", "logps/chosen", "logps/chosen_per_token")
_REJECTED = ("rewards/rejected", "logps/rejected", "logps/rejected_per_token")


def step_sums(told: Told, weight: Tensor) -> Tensor:
    """(len(STEP_METRICS),) fp64 sums over the rows of a micro-batch.

    weight: (rows,) the sum of `|∂loss/∂ log π|` over a row's responses, per nat. A tie of rewards counts half.
    """
    won = (told.chosen_reward > told.rejected_reward).double()
    tied = (told.chosen_reward == told.rejected_reward).double()
    rows = (
        told.loss,
        told.chosen_reward,
        told.rejected_reward,
        told.chosen_reward - told.rejected_reward,
        won + tied / 2,
        told.chosen,
        told.rejected,
        told.chosen_mean,
        told.rejected_mean,
        (weight < SATURATED).double(),
    )
    return torch.stack([row.detach().double().sum() for row in rows])


def step_means(sums: Sequence[float], rows: int, chosen: int, rejected: int) -> dict[str, float]:
    """STEP_METRICS of a whole batch from its sums. chosen, rejected: how many of its rows tell of such an answer.

    Where a row tells of one answer alone, the margin is the difference of the means, and no accuracy is known.
    """
    divisors = {**dict.fromkeys(_CHOSEN, chosen), **dict.fromkeys(_REJECTED, rejected)}
    means = {
        name: total / n if (n := divisors.get(name, rows)) else math.nan
        for name, total in zip(STEP_METRICS, sums, strict=True)
    }
    if chosen == rejected == rows:
        return means
    margin = means["rewards/chosen"] - means["rewards/rejected"]
    return {**means, "rewards/margins": margin, "rewards/accuracies": math.nan}


class Measured(NamedTuple):
    """A micro-batch's result. slope: d objective / d value, in the shape of the values, where the objective is a sum over
    items. logged: (names,) fp64 sums."""

    slope: Tensor
    logged: Tensor


class Objective(Protocol):
    """What the loop minimises. groups: the sequences of each item. names: the sums that are logged. unit: what `size` counts.
    per_token: whether it is measured by each token's log-probability, not by the responses' sums. state: what it carries over
    steps, which a checkpoint stores."""

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
        """The divisor of the objective's sum over a whole optimiser batch."""
        ...

    def means(self, sums: Sequence[float], batch: Sequence[int]) -> dict[str, float]:
        """What a step logs, `loss` among it, from the sums of `names` over the whole batch."""
        ...

    def measure(self, items: list[int], values: Tensor) -> Measured:
        """values: (responses,) nats of these items' responses, in order, or by token, (tokens,). Nothing is sent back through
        its graph."""
        ...

    def describe(self, batch: Sequence[int]) -> str:
        """The items of a batch, for a message."""
        ...


def mismatched_groups(items: Sequence[Item], mismatched: Sequence[int]) -> list[Group]:
    """For each item, its prompt with an answer of another one, `mismatched[i]`. KTO estimates its kl from them.

    Of a pair the borrowed answer is alternately a chosen and a rejected one, so the estimate covers both.
    """
    borrowed = [items[j].responses for j in mismatched]
    return [Group(item.prompt, (of[i % len(of)],)) for i, (item, of) in enumerate(zip(items, borrowed, strict=True))]


class PreferenceObjective:
    """A registered loss of pairs, lists or single answers. It gets what its signature names, see `pobench.types.Inputs`,
    `ListInputs` and `AnswerInputs`. One of lists or of answers gets pairs read as those, where the items are pairs."""

    names: Sequence[str] = STEP_METRICS

    def __init__(
        self,
        items: Sequence[Item],
        loss: Loss,
        settings: Mapping[str, Any],
        reference: ReferenceSums | EveryStep | None = None,
        mismatched: Sequence[int] | None = None,
    ) -> None:
        """settings: the loss's own. reference: the reference sums of the items' responses, for a loss that needs them, and of
        `mismatched_groups`, for a loss that needs `kl`; or what computes them, batch by batch. mismatched: for each item the
        index of the item that lends its answer, for a loss that needs `kl`.

        Raises PobenchError if the loss does not read such items, or needs sums or scores that are missing.
        """
        self.items, self.loss, self.settings, self.reference = items, loss, settings, reference
        self.rows: Rows = ROWS[loss.unit](items)
        self.unit: str = self.rows.name
        self.groups: Sequence[Group] = [Group.of(item) for item in items]
        self.borrowed: list[Group] = []
        self.known: Tensor | None = None  # (responses,) of all items, as `Rows` has them
        self.known_borrowed: Tensor | None = None
        self.kl: Tensor | None = None
        self.per_token = "tokens" in loss.needs
        self.step_tokens: dict[int, Tensor] = {}  # item → its tokens under a reference that computes them in every step
        self.batch: Any = None  # of this step
        self.places: dict[int, Tensor] = {}  # item → its places in that batch
        self.state: State = {}
        self.scores = self.rows.ratings(loss.name) if "scores" in loss.needs else None
        if not loss.reads_reference:
            return
        if reference is None:
            raise PobenchError(f"{loss.name} needs {' and '.join(sorted(loss.needs))}, and there are no reference sums")
        self.known = torch.full((len(self.rows.lengths),), math.nan)
        if "kl" in loss.needs:
            if mismatched is None:
                raise PobenchError(f"{loss.name} needs kl; pass `mismatched`, the items that lend their answers")
            self.borrowed = mismatched_groups(items, mismatched)
            self.known_borrowed = torch.full((len(items),), math.nan)
        if isinstance(reference, ReferenceSums):
            self._read_reference(range(len(items)))

    def _read_reference(self, items: Sequence[int]) -> None:
        """Take the reference sums of these items: of all at once from a store, of a batch from a model in its step."""
        if self.reference is None or self.known is None:
            return
        items = list(items)
        groups, at = [self.groups[i] for i in items], self.rows.of(items)
        if isinstance(self.reference, EveryStep) and self.per_token and "reference" in self.loss.needs:
            tokens = self.reference.tokens(groups)
            self.known[at] = _sums(tokens, self.rows.lengths[at])
            self.step_tokens = dict(zip(items, tokens.split([g.learnt_tokens for g in groups]), strict=True))
        else:
            self.known[at] = self.reference.of(groups).float()
        if self.known_borrowed is not None:
            self.known_borrowed[items] = self.reference.of([self.borrowed[i] for i in items]).float()

    def start(self, scorer: SumScorer, first: Sequence[int], *, exact: bool) -> float:
        """Raises PobenchError if the reference sums are not those of the policy before step 1."""
        if self.known is None or self.reference is None:
            return math.nan
        probed = list(first[:8])
        if isinstance(self.reference, EveryStep):
            self._read_reference(probed)
        sums, at = scorer.sums([self.groups[i] for i in probed]), self.rows.of(probed)
        gap = float(((sums - self.known[at]).abs() / self.rows.lengths[at]).mean())
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
        items, in nats, detached."""
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
        label = self.rows.label(batch)
        self.batch = self.loss.batch_of(
            self.rows.logps(batch, sums),
            self._reference_of(batch, device),
            self.settings,
            self.state,
            None if label is None else label.to(device),
        )
        places = self.rows.places(batch).split([len(self.rows.places([i])) for i in batch])
        self.places, self.state = dict(zip(batch, places, strict=True)), self.batch.state

    def _reference_of(self, items: Sequence[int], device: torch.device) -> Any:
        return None if self.known is None else self.rows.logps(items, self.known[self.rows.of(items)].to(device))

    def _tokens_of(self, items: Sequence[int], policy: Tensor) -> TokenLogps:
        """policy: (tokens,) nats."""
        known = None
        if "reference" in self.loss.needs and self.reference is not None:
            every_step = isinstance(self.reference, EveryStep)
            groups = [self.groups[i] for i in items]
            known = torch.cat([self.step_tokens[i] for i in items]) if every_step else self.reference.tokens(groups)
            known = known.to(policy.device)
        lengths = self.rows.shaped(items, self.rows.lengths[self.rows.of(items)], 0)
        return TokenLogps.of(lengths.to(policy.device), policy, known)

    def size(self, batch: Sequence[int]) -> int:
        return len(batch)

    def measure(self, items: list[int], values: Tensor) -> Measured:
        leaf, at = values.detach().requires_grad_(), self.rows.of(items)
        lengths = self.rows.lengths[at].to(leaf.device)
        policy = self.rows.logps(items, _sums(leaf, lengths) if self.per_token else leaf)
        inputs = self.rows.inputs(items, policy, self._reference_of(items, leaf.device), self._beside(items, leaf))
        output = self.loss.on(inputs, **self.settings)
        told = self.rows.told(items, policy, output)
        (slope,) = torch.autograd.grad(told.loss.sum(), leaf)
        pull = slope.abs()
        if self.per_token:
            pull = _sums(pull, lengths) / lengths  # the mean of a response's tokens
        return Measured(slope, step_sums(told, _sums(pull, self.rows.counts[items].to(leaf.device))))

    def _beside(self, items: list[int], values: Tensor) -> dict[str, Any]:
        """What the loss may ask for beside sums: kl, tokens, scores, batch."""
        tokens = self._tokens_of(items, values) if self.per_token else None
        scores, batch = None, None
        if self.scores is not None:
            scores = self.rows.shaped(items, self.scores[self.rows.of(items)], math.nan).to(values)
        if self.batch is not None:
            batch = self.batch._replace(place=torch.cat([self.places[i] for i in items]).to(values.device))
        return {"kl": self.kl, "tokens": tokens, "scores": scores, "batch": batch}

    def means(self, sums: Sequence[float], batch: Sequence[int]) -> dict[str, float]:
        return step_means(sums, len(batch), *self.rows.divisors(batch))

    def describe(self, batch: Sequence[int]) -> str:
        return f"{self.unit} in the batch: {_some([self.items[i].id for i in batch])}"


def _sums(values: Tensor, counts: Tensor) -> Tensor:
    """(responses,) sums of (tokens,) values, added up as the model adds them; or (items,) ones of (responses,) values.
    counts: how many are added up for each."""
    return values.new_zeros(len(counts)).index_add(0, torch.repeat_interleave(counts), values)


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

    def means(self, sums: Sequence[float], batch: Sequence[int]) -> dict[str, float]:
        return {name: total / self.size(batch) for name, total in zip(self.names, sums, strict=True)}

    def measure(self, items: list[int], values: Tensor) -> Measured:
        return Measured(torch.full_like(values, -1.0), -values.detach().double().sum()[None])

    def describe(self, batch: Sequence[int]) -> str:
        return f"conversations in the batch: {_some([str(i + 1) for i in batch])}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
