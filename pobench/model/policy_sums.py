"""Sums of log-probabilities without gradient, for the reference, kl, held-out pairs and watching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pobench.model.choose_layout import choose_layout
from pobench.model.compiled import is_compiled
from pobench.model.flex import takes_blocks
from pobench.model.layouts import Layout
from pobench.model.logps import ResponseLogps
from pobench.settings.schema import MICRO_TOKENS, LoopConfig
from pobench.types import Group


class Scorer:
    """Policy sums by groups: layout, budget and device in one place, for training, the reference and the held-out pairs."""

    def __init__(
        self, policy: torch.nn.Module, layout: Layout, window: int | None, budget: int, device: torch.device
    ) -> None:
        self.policy, self.layout, self.window, self.budget, self.device = policy, layout, window, budget, device

    def micro_batches(self, groups: Sequence[Group]) -> Iterator[tuple[list[int], Callable[[], Tensor]]]:
        """(indices of the groups, a call that gives their (responses,) sums), in a fixed order."""
        for indices in self.layout.plan(groups, self.budget):
            part = [groups[i] for i in indices]
            yield indices, lambda part=part: self.policy(self.layout.collate(part, self.window).to(self.device))  # type: ignore[misc]

    @torch.no_grad()
    def compute(self, groups: Sequence[Group]) -> Iterator[tuple[list[int], list[float]]]:
        """Sums without gradient, micro-batch by micro-batch, as (indices, sums of their responses in order)."""
        for indices, forward in self.micro_batches(groups):
            yield indices, forward().double().tolist()


def scorer_for(
    policy: ResponseLogps,
    prepared: torch.nn.Module,
    groups: Sequence[Group],
    config: LoopConfig,
    device: torch.device,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Scorer, str]:
    """The layout chosen for this model and data, and why. say: is told where the model's blocks of attention are given up."""
    blocks = takes_blocks(policy.model)
    name, reason = choose_layout(policy, [g._replace(learnt=()) for g in groups[:2]], config.layout)
    if blocks and not takes_blocks(policy.model):
        say(f"attention by matrices, not by blocks: {reason}")
    window = policy.window if name == "shared_prefix" else None
    budget = MICRO_TOKENS if config.micro_tokens == "auto" else config.micro_tokens
    return Scorer(prepared, policy.layout(name), window, budget, device), reason


def arithmetic(accelerator: Accelerator, scorer: Scorer, model: Any) -> str:
    """What, besides the weights and the tokens, decides the digits of a sum: a part of the reference cache's name."""
    kind = "nf4" if getattr(model, "is_loaded_in_4bit", False) else str(model.dtype).removeprefix("torch.")
    narrow = "" if kind == "float32" else f" {kind} weights"
    blocks = " blocks" if scorer.layout.name == "shared_prefix" and takes_blocks(model) else ""
    fused = " compiled" if is_compiled(model) else ""
    return f"{accelerator.mixed_precision} {scorer.layout.name}{narrow}{blocks}{fused}"
