"""The published benchmarks that the setting names: answers, verdicts and score of each, kept by the benchmark itself."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from pobench.errors import PobenchError, reason_of
from pobench.runs.stage import Stage

if TYPE_CHECKING:
    from pobench.runs.context import Context


def run(context: Context) -> None:
    """Each for itself: one that fails leaves the others. Raises PobenchError that lists those that failed, in the first of
    several processes: it does what the others leave."""
    from pobench.judging.benchmarks.base import Speaker

    def load() -> tuple[Any, Any]:
        model, _ = context.speaking_model()
        return model, context.chat

    folder, spoken = context.folder.path, context.task.spoken
    assert spoken is not None, "a plan with content names every task that runs"
    size, share = context.job.answers.batch_size, context.task.share
    speaker = Speaker(context.task.run, load, spoken, size, context.say, share)
    failed = []
    for benchmark in context.task.benchmarks:
        try:
            if not benchmark.done(folder, spoken):
                benchmark.evaluate(folder, speaker)
        except Exception as error:
            if not share.first:
                continue
            if not isinstance(error, PobenchError):
                (folder / "traceback.txt").write_text(traceback.format_exc())
            failed.append(f"{benchmark.name}: {reason_of(error)}")
    if failed:
        raise PobenchError("\n".join(failed))


STAGE = Stage(
    name="benchmarks",
    does="the published benchmarks that the setting names",
    reads=("train",),
    writes=("benchmarks/",),
    decided_by="trained weights, chat template, precision, each benchmark's questions, decoding, judge",
    run=run,
    cut=True,
    many=False,
)
