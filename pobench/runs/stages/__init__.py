"""The stages of a run, one file each, in the order in which they happen. This list is the only one.

    start model ─┬─ reference ── train ─┬─ heldout
                 │                      ├─ trainpairs
                 │                      ├─ gradient_norms
                 │                      ├─ answers ── judge
                 │                      └─ benchmarks
                 └─ the same stages, of the start model itself

The files import nothing heavy at the top: the command line reads this list to explain itself.
"""

from __future__ import annotations

from pobench.runs.stage import Stage
from pobench.runs.stages import (
    answers,
    benchmarks,
    gradient_norms,
    heldout,
    judge,
    reference,
    sft,
    train,
    trainpairs,
)

STAGES: tuple[Stage, ...] = (
    sft.STAGE,
    reference.STAGE,
    train.STAGE,
    heldout.STAGE,
    trainpairs.STAGE,
    gradient_norms.STAGE,
    answers.STAGE,
    judge.STAGE,
    benchmarks.STAGE,
)
BY_NAME = {stage.name: stage for stage in STAGES}

ALL = tuple(stage.name for stage in STAGES)
DEFAULT = tuple(stage.name for stage in STAGES if not stage.optional)  # of `pobench run`
MANY = tuple(stage.name for stage in STAGES if not stage.optional and stage.many)  # of a study's and a search's jobs
