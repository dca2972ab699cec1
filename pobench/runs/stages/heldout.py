"""Held-out log-probabilities of the policy and the reference, and the run's own loss and rewards, one row a pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pobench.runs.stage import Content, Stage
from pobench.runs.stages import reference
from pobench.settings.job import Job

if TYPE_CHECKING:
    from pobench.runs.context import Context


def causes(job: Job, content: Content) -> Mapping[str, Any] | None:
    if "heldout" in content.without:
        return None
    return {"pairs": content.heldout, "reference": reference.node_of(job, content, "heldout").name}


def run(context: Context) -> None:
    context.store("heldout", {"heldout": context.heldout_frame()})


STAGE = Stage(
    name="heldout",
    does="log-probabilities of the held-out pairs",
    reads=("reference", "train"),
    writes=("heldout.parquet",),
    decided_by="trained weights, token ids of the held-out pairs, their reference sums",
    run=run,
    causes=causes,
    cut=True,
)
