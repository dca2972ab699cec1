"""The length of the gradient of each answer's log-probability by the weights, on some held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pobench.columns import FRAMES
from pobench.runs.stage import Content, Stage
from pobench.settings.job import Job

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from pobench.runs.context import Context
    from pobench.types import TokenPair

MOST_PAIRS = 64  # two backward passes each


def causes(job: Job, content: Content) -> Mapping[str, Any]:
    return {"pairs": content.heldout, "most": MOST_PAIRS}


def run(context: Context) -> None:
    from pobench.progress import progress

    pairs = context.prepared.heldout
    model, tile = context.merged_model(), context.job.train.head_tile
    with progress(f"{context.task.title}: gradients", min(len(pairs), MOST_PAIRS), "pairs") as advance:
        context.store("gradient_norms", {"norms": gradient_norms(model, pairs, tile, advance)})


STAGE = Stage(
    name="gradient_norms",
    does=f"lengths of the gradients of held-out answers, of {MOST_PAIRS} pairs",
    reads=("train",),
    writes=("norms.parquet",),
    decided_by="trained weights, token ids of the held-out pairs",
    run=run,
    causes=causes,
    optional=True,
)


def gradient_norms(
    model: Any, pairs: Sequence[TokenPair], tile: int | None, advance: Callable[[int], None] = lambda done: None
) -> pd.DataFrame:
    """Columns pair, chosen_norm, rejected_norm and product of `∇ Σ log π` by all weights, for up to `MOST_PAIRS` pairs.

    The pairs are picked evenly along their length. Every loss's gradient is a combination of a pair's two vectors, so
    these three numbers serve them all (`pobench.results.gradients`). Holds two gradients beside the weights, in fp32.
    """
    import pandas as pd
    import torch

    from pobench.model.layouts import get_layout
    from pobench.model.logps import ResponseLogps
    from pobench.types import Group

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
