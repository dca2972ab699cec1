"""Head to head: verdicts on two losses' answers to the same prompts, once for each pair."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pobench.errors import PobenchError
from pobench.results.run_folder import RunFolder
from pobench.runs.stage import Content, Stage
from pobench.runs.stages import judge as judge_stage
from pobench.settings.job import Job

if TYPE_CHECKING:
    from pobench.runs.context import Context
    from pobench.runs.task import Task


def causes(job: Job, content: Content) -> Mapping[str, Any] | None:
    """The answers of both sides are added by the plan, which knows their nodes."""
    return judge_stage.causes(job, content)


def read(task: Task) -> Mapping[str, str | None]:
    """Run → the digest of its answers, of both sides; None where it has none by the weights that it has now."""
    digests: dict[str, str | None] = {}
    for run, name in task.nodes["compare"].causes["answers"].items():
        side = RunFolder(task.runs, run)
        node = side.node(name)
        digests[run] = node.digest("answers") if node.finished and node.about["model"] == side.weights else None
    return digests


def run(context: Context) -> None:
    """Verdicts that stand on the same answers are kept: they may have been paid for."""
    digests = read(context.task)
    if absent := [side for side, digest in digests.items() if digest is None]:
        raise PobenchError(f"two losses' answers are compared, and there are none of {' and '.join(absent)}")
    if context.stands("compare", digests):
        return
    from pobench.data.prompts import eval_prompts
    from pobench.registry import judges

    config = context.job.judge
    assert config.name is not None
    judge = judges.get(config.name)(**config.settings)
    rows = {row["id"]: row for row in eval_prompts(context.job.answers)}
    (first, answers), (second, others) = (
        (side, RunFolder(context.task.runs, side).node(name).read_frame("answers"))
        for side, name in context.task.nodes["compare"].causes["answers"].items()
    )
    verdicts = judge_stage.compared(context, "compare", judge, rows, answers, others, second, digests)
    if verdicts is None:
        return
    keys = ["prompt", "sample"]
    lengths = answers[[*keys, "tokens"]].merge(others[[*keys, "tokens"]], on=keys, suffixes=("", "_opponent"))
    frame = verdicts.rename(columns={"against": "opponent"}).merge(lengths, on=keys)
    frame = frame.rename(columns={"tokens_opponent": "opponent_tokens"}).assign(run=first)
    context.store("compare", {"comparisons": frame}, digests)


STAGE = Stage(
    name="compare",
    does="verdicts on the answers of two losses, for every pair of opponents",
    reads=("answers",),
    writes=("comparisons.parquet",),
    decided_by="the answers of both, the prompts' rows, the judge's source and settings",
    run=run,
    causes=causes,
    read=read,
    cut=True,
    optional=True,
    named_by="--opponents",
    per_run=False,
)
