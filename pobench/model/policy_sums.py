"""Sums of log-probabilities without gradient, or each token's, for the reference, kl, held-out pairs and watching.

The scorer calls the model itself, not its data-parallel wrapper. The wrapper's forward waits for all processes, and would
hang if one of them had nothing left to score.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from pobench.model.choose_layout import choose_layout
from pobench.model.compiled import is_compiled
from pobench.model.flash import takes_flash
from pobench.model.flex import takes_blocks
from pobench.model.layouts import NOTHING, Batch, Layout, plan_step
from pobench.model.logps import ResponseLogps
from pobench.model.packed import fits
from pobench.model.sharding import give_back, is_sharded
from pobench.settings.schema import MICRO_TOKENS, LoopConfig
from pobench.types import Group


class Turn(NamedTuple):
    """One micro-batch of this process. indices: of its groups. values: (responses,) sums, fp64 nats, in their order, on the
    CPU; by token: (tokens,) fp32. everywhere: indices of the groups that all processes together score in this turn."""

    indices: list[int]
    values: Tensor
    everywhere: list[int]


WITHOUT_GRADIENT = 4  # times the tokens of training's micro-batches, up to MICRO_TOKENS, without gradient
PACKED_FROM = 4  # micro-batches of a pass, for which it pays to pack the weights


class SumScorer:
    """Computes the sums of log-probabilities of groups under one policy, in one layout, budget and arithmetic.

    alone: this process scores everything by itself. Otherwise all processes call alike, with the same groups, and share the
    work.
    """

    def __init__(
        self,
        policy: ResponseLogps,
        layout: Layout,
        accelerator: Accelerator,
        *,
        budget: int = MICRO_TOKENS,
        layout_reason: str = "",
        alone: bool = False,
    ) -> None:
        """budget: tokens of a micro-batch in training, pads included. layout_reason: why this layout."""
        self.policy, self.layout, self.accelerator = policy, layout, accelerator
        self.budget, self.layout_reason, self.alone = budget, layout_reason, alone
        self.window = policy.window if layout.name == "shared_prefix" else None

    @property
    def arithmetic(self) -> str:
        """The precision, layout and kernels. With weights and tokens they decide the digits of a sum, so they are a cause of
        stored reference sums."""
        model = self.policy.model
        kind = "nf4" if getattr(model, "is_loaded_in_4bit", False) else str(self.policy.dtype).removeprefix("torch.")
        narrow = "" if kind == "float32" else f" {kind} weights"
        blocks = " blocks" if self.layout.name == "shared_prefix" and takes_blocks(model) else ""
        flash = " flash" if takes_flash(model) else ""
        fused = " compiled" if is_compiled(model) else ""
        mixed = self.accelerator.mixed_precision if self.policy.autocast else "no"
        return f"{mixed} {self.layout.name}{narrow}{blocks}{flash}{fused}"

    def plan(self, groups: Sequence[Group], *, gradient: bool = False) -> list[list[list[int]]]:
        """`plan_step` for the processes that share the work. gradient: of a training step, whose micro-batches have at most
        `budget` tokens. A pass without gradient holds one layer's tensors instead of all layers', so it takes more at a time.
        """
        budget = self.budget if gradient else max(self.budget, min(MICRO_TOKENS, WITHOUT_GRADIENT * self.budget))
        return plan_step(groups, self.world, self.layout, budget)

    @property
    def rows(self) -> str:
        """The layout, and the attention that its rows are made for, in words."""
        name = self.layout.name
        return f"{name} by {self.policy.attention}" if name == "shared_prefix" else name

    @property
    def world(self) -> int:
        """How many processes share the work."""
        return 1 if self.alone else self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """The index of this process among them."""
        return 0 if self.alone else self.accelerator.process_index

    def autocast(self) -> AbstractContextManager[None]:
        """Around a forward pass: the precision of training, unless the weights' own type decides it."""
        chosen: AbstractContextManager[None] = self.accelerator.autocast()
        return chosen if self.policy.autocast else contextlib.nullcontext()

    def collate(self, groups: Sequence[Group]) -> Batch:
        """The groups of one micro-batch, on the device. An empty list gives a dummy row, whose result is dropped."""
        return self.layout.collate(groups or [NOTHING], self.window).to(self.accelerator.device)

    @torch.no_grad()
    def turns(self, groups: Sequence[Group], *, per_token: bool = False) -> Iterator[Turn]:
        """Score this process's share of the groups, turn by turn, during which no weight may change. Every process has the same
        number of turns.

        A turn without groups computes too: where weights are sharded over processes, all must join in every forward.
        """
        plan = self.plan(groups)
        try:
            with self.unchanged(len(plan[0])):
                for batches in zip(*plan, strict=True):
                    indices = batches[self.rank]
                    values = self._values_of([groups[i] for i in indices], per_token)
                    yield Turn(indices, values if indices else values[:0], [i for batch in batches for i in batch])
        finally:
            give_back(self.policy)

    def sums_of(self, groups: Sequence[Group]) -> Tensor:
        """(responses,) fp64 nats on the CPU, of the groups of one micro-batch, by this process alone. Those of several belong
        inside `unchanged`."""
        return self._values_of(groups, per_token=False)

    def unchanged(self, micro_batches: int) -> AbstractContextManager[None]:
        """Around so many micro-batches between which no weight changes: where memory suffices, weights are narrowed once, and
        packed where enough micro-batches follow."""
        narrow = 2 * sum(weight.numel() for weight in self.policy.parameters())  # bytes of a copy in bf16
        kept = self.accelerator.device.type == "cpu" and not is_sharded(self.policy) and fits(narrow)
        packed = kept and micro_batches >= PACKED_FROM and fits(2 * narrow)
        return self.policy.arithmetic.unchanged_weights(kept=kept, packed=packed)

    @torch.no_grad()
    def _values_of(self, groups: Sequence[Group], per_token: bool) -> Tensor:
        with self.autocast():
            values: Tensor = self.policy(self.collate(groups), per_token)
        return (values if per_token else values.double()).cpu()

    def sums(self, groups: Sequence[Group], advance: Callable[[int], None] = lambda groups: None) -> Tensor:
        """(responses,) fp64 nats on the CPU, group by group, the same in every process.

        advance: called with the number of groups scored since the last call.
        """
        totals, places = empty_values(groups)
        for turn in self.turns(groups):
            totals[[k for i in turn.indices for k in places[i]]] = turn.values
            advance(len(turn.everywhere))
        return self.together(totals)

    def tokens(self, groups: Sequence[Group]) -> Tensor:
        """(tokens,) fp32 nats on the CPU of every token of a response, response by response, the same in every process."""
        logps, places = empty_values(groups, per_token=True)
        for turn in self.turns(groups, per_token=True):
            logps[[k for i in turn.indices for k in places[i]]] = turn.values
        return self.together(logps)

    def together(self, numbers: Tensor) -> Tensor:
        """The sum over the processes that share the work. Each fills its own places in a vector of zeros."""
        if self.world == 1:
            return numbers
        total: Tensor = self.accelerator.reduce(numbers.to(self.accelerator.device), "sum")
        return total.cpu()

    def most(self, value: float) -> float:
        """The largest value of the processes that share the work."""
        return value if self.alone else largest(self.accelerator, value)

    def from_first(self, numbers: Tensor) -> Tensor:
        """The first process's numbers, in all processes that share the work. Shape and type are the same in all."""
        if self.world == 1:
            return numbers
        sent: Tensor = broadcast(numbers.to(self.accelerator.device))
        return sent.cpu()


def largest(accelerator: Accelerator, value: float) -> float:
    """The largest value of all processes."""
    if accelerator.num_processes == 1:
        return value
    here = torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    return float(accelerator.gather(here).max())


def empty_values(groups: Sequence[Group], *, per_token: bool = False) -> tuple[Tensor, list[range]]:
    """(responses,) fp64 zeros, or (tokens,) fp32 ones, and the range of each group's in them."""
    places, first = [], 0
    for group in groups:
        count = group.learnt_tokens if per_token else len(group.responses)
        places.append(range(first, first + count))
        first += count
    return torch.zeros(first, dtype=torch.float32 if per_token else torch.float64), places


def sum_scorer(
    policy: ResponseLogps,
    groups: Sequence[Group],
    config: LoopConfig,
    accelerator: Accelerator,
    say: Callable[[str], None] = lambda text: None,
    *,
    alone: bool = False,
) -> SumScorer:
    """A scorer in the layout that is proven on the first groups, with the micro-batches of the setting in training.

    say: takes a sentence if attention by blocks or by flash fails and matrices replace it. Raises PobenchError if no layout
    computes the model's own log-probabilities.
    """
    named, kernels = policy.attention, policy.kernels
    most = None if alone else partial(largest, accelerator)
    autocast = accelerator.autocast if policy.autocast and accelerator.mixed_precision == "bf16" else None
    name, reason = choose_layout(policy, groups, config.layout, most=most, autocast=autocast)
    if named in ("blocks", "flash") and policy.attention != named:
        say(f"attention by matrices, not by {named}: {reason}")
    if policy.kernels != kernels:
        say(f"the model's own norms and MLPs, not those of {kernels}: {reason}")
    budget = MICRO_TOKENS if config.micro_tokens == "auto" else config.micro_tokens
    return SumScorer(policy, policy.layout(name), accelerator, budget=budget, layout_reason=reason, alone=alone)
