"""How far one answer's log-probability can move the weights: the length of its gradient, measured with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch

from pobench.columns import FRAMES
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.types import Group, TokenPair

MOST_PAIRS = 64  # two backward passes each


def gradient_norms(
    model: Any, pairs: Sequence[TokenPair], tile: int | None, advance: Callable[[int], None] = lambda done: None
) -> pd.DataFrame:
    """Columns pair, chosen_norm, rejected_norm and product of `∇ Σ log π` by all weights, for up to `MOST_PAIRS` pairs.

    The pairs are picked evenly along their length. Every loss's gradient is a combination of a pair's two vectors, so
    these three numbers serve them all (`pobench.results.gradients`). Holds two gradients beside the weights, in fp32.
    """
    by_length = sorted(pairs, key=lambda p: (len(p.chosen) + len(p.rejected), p.id))
    count = min(MOST_PAIRS, len(by_length))
    picked = [by_length[i * len(by_length) // count] for i in range(count)]
    weights = list(model.parameters())
    for weight in weights:
        weight.requires_grad_(True)
    policy, layout = ResponseLogps(model, tile), get_layout("padded")
    rows = []
    for pair in picked:
        totals = policy(layout.collate([Group.of(pair)], None).to(model.device))
        chosen = torch.autograd.grad(totals[0], weights, retain_graph=True, allow_unused=True)
        rejected = torch.autograd.grad(totals[1], weights, allow_unused=True)
        rows.append((pair.id, _dot(chosen, chosen) ** 0.5, _dot(rejected, rejected) ** 0.5, _dot(chosen, rejected)))
        advance(1)
    return pd.DataFrame(rows, columns=FRAMES["norms"].names[1:])


def _dot(a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None]) -> float:
    return sum(
        float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True) if x is not None and y is not None
    )
