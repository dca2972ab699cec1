"""Sums of log-probabilities → Pair → LossOutput → what a step logs. Sums and counts are gathered over processes, then
divided.

The names are those people's dashboards expect: `rewards/*`, `logps/*`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from pobench.columns import SATURATED
from pobench.errors import PobenchError
from pobench.registry import Loss
from pobench.training.reference import ReferenceCache
from pobench.types import Group, LossOutput, Pair, SequenceLogps, TokenPair

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


# groups → micro-batches as (indices of the groups, sums of their responses in order), without gradient
Compute = Callable[[Sequence[Group]], Iterable[tuple[list[int], list[float]]]]


class Start(NamedTuple):
    """What an objective may use before step 1. arithmetic: what, besides the weights, decides the digits of a sum.
    exact: whether it is fp32 throughout. first: indices of the first batch."""

    accelerator: Accelerator
    compute: Compute
    arithmetic: str
    exact: bool
    first: list[int]


class Measured(NamedTuple):
    """Of a micro-batch. slope: (responses,) d objective / d sum, a sum over items. logged: (names,) fp64 sums."""

    slope: Tensor
    logged: Tensor


class Objective(Protocol):
    """groups: one an item. names: of what is logged a step, `loss` first. unit: what `size` counts."""

    groups: Sequence[Group]
    names: Sequence[str]
    unit: str

    def start(self, given: Start) -> float:
        """Once, before step 1. Returns the mean |policy - reference| a token, in nats; nan without a reference."""
        ...

    def begin_step(self, accelerator: Accelerator, compute: Compute, mine: list[int], pairs: int) -> dict[str, float]:
        """Before a step's first micro-batch, in every process. mine: this process's items, of `pairs` in all.
        Returns what is logged beside `names`."""
        ...

    def size(self, batch: Sequence[int]) -> int:
        """What the sums over a whole optimiser batch are divided by."""
        ...

    def measure(self, items: list[int], totals: Tensor) -> Measured:
        """totals: (responses,) nats of these items' responses, in order; its graph is left alone."""
        ...

    def named(self, batch: Sequence[int]) -> str:
        """The items of a batch, for a message."""
        ...


class PreferenceObjective:
    """A registered loss over pairs, handed what its signature asks for: cached reference sums, a batch's kl."""

    names: Sequence[str] = STEP_METRICS
    unit = "pairs"

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        loss: Loss,
        settings: Mapping[str, object],
        references: Callable[[str], ReferenceCache] | None = None,
        mismatched: Sequence[int] | None = None,
    ) -> None:
        """settings: the loss's own. references: arithmetic → the cache of reference sums, for a loss that needs them.
        mismatched: for a loss that needs `kl`, for each pair the index of the pair whose answer is borrowed."""
        self.pairs, self.loss, self.settings, self.references = pairs, loss, settings, references
        self.groups: Sequence[Group] = [Group.of(p) for p in pairs]
        self.lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs])
        self.borrowed: list[Group] = []
        if "kl" in loss.needs:
            assert mismatched is not None
            # Chosen and rejected answers take turns as the borrowed one, so that the estimate covers both.
            self.borrowed = [
                Group(p.prompt, ((pairs[j].chosen, pairs[j].rejected)[i % 2],))
                for i, (p, j) in enumerate(zip(pairs, mismatched, strict=True))
            ]
        self.known: Tensor | None = None
        self.known_borrowed: Tensor | None = None
        self.kl: Tensor | None = None

    def start(self, given: Start) -> float:
        """Fill the cache of reference sums. Raises PobenchError where it does not belong to the policy at its start."""
        if not self.loss.needs:
            return math.nan
        assert self.references is not None
        accelerator = given.accelerator
        cache = self.references(given.arithmetic)
        mine = [*self.groups, *self.borrowed][accelerator.process_index :: accelerator.num_processes]
        cache.fill(mine, given.compute)
        accelerator.wait_for_everyone()
        self.known = cache.get(self.groups).float().view(-1, 2)
        self.known_borrowed = cache.get(self.borrowed).float() if self.borrowed else None
        gap = self._gap(given.compute, given.first[:8], self.known)
        tolerance = 1e-4 if given.exact else 5e-2  # bf16 rounds differently in rows of other widths
        if not gap < tolerance:
            raise PobenchError(
                f"before step 1 policy and reference differ by {gap:.2g} nats a token (allowed {tolerance:g}): "
                "the cached reference does not belong to this model or arithmetic; delete the cache's `reference` folder"
            )
        return gap

    def _gap(self, compute: Compute, first: list[int], known: Tensor) -> float:
        gaps = []
        for indices, sums in compute([self.groups[i] for i in first]):
            here = [first[i] for i in indices]
            gaps.append((torch.tensor(sums) - known[here].flatten()).abs() / self.lengths[here].flatten())
        return float(torch.cat(gaps).mean())

    def begin_step(self, accelerator: Accelerator, compute: Compute, mine: list[int], pairs: int) -> dict[str, float]:
        """kl: the unclamped mean of log π - log π_ref over the whole batch's mismatched pairs, in nats, detached."""
        if not self.borrowed:
            return {"kl": math.nan}
        assert self.known_borrowed is not None
        known = self.known_borrowed[mine]
        total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        for indices, sums in compute([self.borrowed[i] for i in mine]):
            total += (torch.tensor(sums, dtype=torch.float64) - known[indices].double()).sum().to(total.device)
        self.kl = (accelerator.reduce(total, "sum") / pairs).float()
        return {"kl": float(self.kl)}

    def size(self, batch: Sequence[int]) -> int:
        return len(batch)

    def measure(self, items: list[int], totals: Tensor) -> Measured:
        leaf = totals.detach().requires_grad_()
        length = self.lengths[items].flatten().to(leaf.device)
        reference = None if self.known is None else pair_of(self.known[items].flatten().to(leaf.device), length)
        view = pair_of(leaf, length)
        output = self.loss.evaluate(view, reference, self.kl, **self.settings)
        (slope,) = torch.autograd.grad(output.loss.sum(), leaf)
        return Measured(slope, step_sums(view, output, slope[0::2].abs() + slope[1::2].abs()))

    def named(self, batch: Sequence[int]) -> str:
        return f"pairs in the batch: {_some([self.pairs[i].id for i in batch])}"


class LikelihoodObjective:
    """loss = -Σ log π(learnt token) / learnt tokens, both over the whole optimiser batch: each token counts the same,
    however the batch is split."""

    names: Sequence[str] = ("loss",)
    unit = "tokens"

    def __init__(self, groups: Sequence[Group]) -> None:
        """groups: each with one response, of which `Group.learnt` may name a part."""
        self.groups = groups

    def start(self, given: Start) -> float:
        return math.nan

    def begin_step(self, accelerator: Accelerator, compute: Compute, mine: list[int], pairs: int) -> dict[str, float]:
        return {}

    def size(self, batch: Sequence[int]) -> int:
        return sum(self.groups[i].learnt_tokens for i in batch)

    def measure(self, items: list[int], totals: Tensor) -> Measured:
        return Measured(torch.full_like(totals, -1.0), -totals.detach().double().sum()[None])

    def named(self, batch: Sequence[int]) -> str:
        return f"conversations in the batch: {_some([str(i + 1) for i in batch])}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
