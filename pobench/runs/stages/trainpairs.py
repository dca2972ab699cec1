"""Log-probabilities of the training pairs after training, to compare with those of the held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pobench.runs.stage import Content, Stage
from pobench.runs.stages import reference
from pobench.settings.job import Job

if TYPE_CHECKING:
    from pobench.runs.context import Context

MOST_PAIRS = 10_000  # picked by the hash of their ids


def causes(job: Job, content: Content) -> Mapping[str, Any]:
    sums = reference.node_of(job, content, "pairs").name
    return {"pairs": content.pairs, "reference": sums, "most": MOST_PAIRS}


def run(context: Context) -> None:
    context.store("trainpairs", {"trainpairs": context.trainpairs_frame(MOST_PAIRS)})


STAGE = Stage(
    name="trainpairs",
    does=f"log-probabilities of the training pairs, at most {MOST_PAIRS:,}",
    reads=("reference", "train"),
    writes=("trainpairs.parquet",),
    decided_by="trained weights, token ids of the training pairs, their reference sums",
    run=run,
    causes=causes,
    optional=True,
)
