"""Pairs on policy: the start model's own answers, the best against the worst by the ranker of the section `onpolicy`, or each
below a human answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pobench.runs.stage import Stage

if TYPE_CHECKING:
    from pobench.runs.context import Context


def run(context: Context) -> None:
    from pobench.runs.onpolicy import make_own_pairs

    make_own_pairs(context.task, context.say)


STAGE = Stage(
    name="onpolicy",
    does="make the pairs that are trained on from the start model's own answers, as the `onpolicy` section says; in later "
    "rounds (`--rounds`) from the last round's",
    reads=("sft",),
    writes=("pairs.samples.jsonl", "pairs.jsonl", "pairs.heldout.jsonl", "pairs.recipe.json"),
    decided_by="the weights that answer, rendering, prompts, decoding; for the pairs also the ranker or the human answers, and "
    "what is held out",
    run=run,
    optional=True,
    prepares=True,
    per_run=False,
    many=False,
)
