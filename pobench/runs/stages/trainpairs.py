"""Log-probabilities of the training pairs after training, to compare with those of the held-out pairs.

It costs one forward pass over these pairs for every run, a third of an epoch of training; on `smollm2` a minute or two of each
run. So it runs where it is named: by `--stages`, or by the `stages` of a study whose figures show training pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pobench.runs.stage import Content, Stage
from pobench.runs.stages import reference
from pobench.settings.job import Job

if TYPE_CHECKING:
    from pobench.runs.context import Context


def causes(job: Job, content: Content) -> Mapping[str, Any] | None:
    if "train" in content.without:
        return None
    sums = reference.node_of(job, content, "pairs").name
    return {"pairs": content.pairs, "reference": sums, "most": job.data.max_trainpairs}


def run(context: Context) -> None:
    context.store("trainpairs", {"trainpairs": context.trainpairs_frame(context.job.data.max_trainpairs)})


STAGE = Stage(
    name="trainpairs",
    does="log-probabilities of the training pairs, at most `data.max_trainpairs`; for studies that compare the two",
    reads=("reference", "train"),
    writes=("trainpairs.parquet",),
    decided_by="trained weights, token ids of the training pairs, their reference sums",
    run=run,
    causes=causes,
    cut=True,
    optional=True,
)
