"""Pairs for the losses: a Case becomes the tensors a loss is handed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from oracles import Case
from torch import Tensor

from pobench.registry import get_loss
from pobench.types import LossOutput, Pair, SequenceLogps, TokenLogps, Vocabulary


class Evaluated:
    """A loss at some cases, which share one kl: output and the gradients by the policy's sums and the values, each (cases,)."""

    def __init__(self, name: str, cases: Sequence[Case], settings: dict[str, Any], dtype: torch.dtype) -> None:
        w, l, rw, rl = (torch.tensor([float(c[i]) for c in cases], dtype=dtype) for i in range(4))  # noqa: E741
        nw, nl = (torch.tensor([int(c[i]) for c in cases]) for i in (4, 5))
        self.w, self.l = w.requires_grad_(), l.requires_grad_()
        loss = get_loss(name)
        policy = Pair(SequenceLogps(self.w, nw), SequenceLogps(self.l, nl))
        reference = Pair(SequenceLogps(rw, nw), SequenceLogps(rl, nl))
        kl = torch.tensor(float(cases[0].kl), dtype=dtype)
        scores = torch.tensor([[float(c.sw), float(c.sl)] for c in cases], dtype=torch.float64)
        batch = loss.batch_of(policy, reference, {**loss.settings, **settings})  # these cases are the whole batch
        tokens = TokenLogps.spread(policy, reference if "reference" in loss.needs else None)
        value = torch.tensor([float(c.value) for c in cases], dtype=dtype, requires_grad=True)
        given = (policy, reference, kl, tokens, scores.to(dtype), batch, *Vocabulary.spread(policy), value)
        self.output: LossOutput = loss.evaluate(*given, **settings)
        self.by_w, self.by_l, self.by_value = torch.autograd.grad(
            self.output.loss.sum(), (self.w, self.l, value), materialize_grads=True
        )

    @property
    def margin(self) -> Tensor:
        return self.output.chosen_reward - self.output.rejected_reward


@pytest.fixture(scope="session")
def evaluate() -> Callable[..., Evaluated]:
    """`evaluate(name, case or cases, dtype=float64, **settings) -> Evaluated`."""

    def call(
        name: str, cases: Case | Sequence[Case], *, dtype: torch.dtype = torch.float64, **settings: Any
    ) -> Evaluated:
        return Evaluated(name, [cases] if isinstance(cases, Case) else cases, settings, dtype)

    return call
