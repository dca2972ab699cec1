"""Supervised fine-tuning: makes the start model of a setting that names a base model and demonstrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pobench.runs.stage import Stage

if TYPE_CHECKING:
    from pobench.runs.context import Context


def run(context: Context) -> None:
    from pobench.runs.start_model import make_start_model

    make_start_model(context.job, context.folder, context.say)


STAGE = Stage(
    name="sft",
    does="make the start model from a base model, where the setting has an `sft` section",
    reads=(),
    writes=("model/", "steps.jsonl", "trained.json"),
    decided_by="base weights, demonstrations and the code that reads them, rendering, the sft section",
    run=run,
    shared=True,
    prepares=True,
    per_run=False,
)
