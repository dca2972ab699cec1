"""The length of the gradient of each answer's log-probability by the weights, on some held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pobench.columns import FRAMES
from pobench.runs.stage import Content, Stage
from pobench.settings.job import Job

if TYPE_CHECKING:
    import torch

    from pobench.model.logps import ResponseLogps
    from pobench.runs.context import Context
    from pobench.types import TokenPair

MOST_PAIRS = 64  # two backward passes each
COLUMNS = FRAMES["norms"].names[1:]


def causes(job: Job, content: Content) -> Mapping[str, Any] | None:
    if "heldout" in content.without:
        return None
    return {"pairs": content.heldout, "most": MOST_PAIRS}


def run(context: Context) -> None:
    import pandas as pd

    from pobench.model.logps import ResponseLogps
    from pobench.shards import deal

    picked = picked_pairs(context.prepared.heldout)
    policy = ResponseLogps(context.merged_model().requires_grad_(True), context.job.train.head_tile)
    place = {pair.id: i for i, pair in enumerate(picked)}
    cut = deal([[i] for i in range(len(picked))])

    def measure(k: int) -> list[Any]:
        return [[*row] for row in norms_of(policy, [picked[i] for (i,) in cut[k]])]

    with context.progress("gradients", len(picked), "pairs") as advance:
        rows = context.cut("gradient_norms", cut, measure, lambda done: advance(done=done))
    if rows is not None:
        in_order = sorted(rows, key=lambda row: place[row[0]])
        context.store("gradient_norms", {"norms": pd.DataFrame(in_order, columns=COLUMNS)})


STAGE = Stage(
    name="gradient_norms",
    does=f"lengths of the gradients of held-out answers, of {MOST_PAIRS} pairs",
    reads=("train",),
    writes=("norms.parquet",),
    decided_by="trained weights, token ids of the held-out pairs",
    run=run,
    causes=causes,
    cut=True,
    optional=True,
)


def picked_pairs(pairs: Sequence[TokenPair]) -> list[TokenPair]:
    """Up to `MOST_PAIRS` of the pairs, evenly along their length."""
    by_length = sorted(pairs, key=lambda p: (len(p.chosen) + len(p.rejected), p.id))
    count = min(MOST_PAIRS, len(by_length))
    return [by_length[i * len(by_length) // count] for i in range(count)]


def norms_of(policy: ResponseLogps, pairs: Sequence[TokenPair]) -> list[tuple[str, float, float, float]]:
    """A row of `COLUMNS` for each pair: norms and product of `∇ Σ log π` by all weights.

    Every loss's gradient is a combination of a pair's two vectors, so these three numbers serve them all
    (`pobench.results.gradients`). Holds two gradients beside the weights, in fp32.
    """
    import torch

    from pobench.model.layouts import get_layout
    from pobench.types import Group

    model, layout = policy.model, get_layout("padded")
    weights = list(model.parameters())
    rows = []
    for pair in pairs:
        totals = policy(layout.collate([Group.of(pair)], None).to(model.device))
        chosen = torch.autograd.grad(totals[0], weights, retain_graph=True, allow_unused=True)
        rejected = torch.autograd.grad(totals[1], weights, allow_unused=True)
        rows.append((pair.id, _dot(chosen, chosen) ** 0.5, _dot(rejected, rejected) ** 0.5, _dot(chosen, rejected)))
    return rows


def _dot(a: Sequence[torch.Tensor | None], b: Sequence[torch.Tensor | None]) -> float:
    return sum(
        float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True) if x is not None and y is not None
    )
