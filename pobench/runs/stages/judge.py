"""Verdicts on the answers: grades of single answers, or comparisons with the start model's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

from pobench.errors import PobenchError
from pobench.results.run_folder import RunFolder
from pobench.runs.stage import Content, Stage
from pobench.settings.job import Job

if TYPE_CHECKING:
    import pandas as pd

    from pobench.judging import PairwiseJudge
    from pobench.judging.pairwise import Progress
    from pobench.runs.context import Context
    from pobench.runs.task import Task


def causes(job: Job, content: Content) -> Mapping[str, Any] | None:
    """The answers it reads are added by the plan, which knows their node, and the start model's."""
    if job.judge.name is None or content.prompts is None:
        return None
    judge = {"judge": job.judge.name, "settings": job.judge_causes(), "source": content.source("judge", job.judge.name)}
    return {**judge, "rows": content.rows}


def read(task: Task) -> Mapping[str, str | None]:
    """The digests of the answers that are judged, and of the start model's if the judge compares with them."""
    nodes = {"answers": (task.run, task.nodes["answers"])}
    if "start" in task.nodes["judge"].causes:
        nodes["start"] = (task.start, task.nodes["start:answers"])
    return {which: RunFolder(task.runs, run).node(n.name).digest("answers") for which, (run, n) in nodes.items()}


def run(context: Context) -> None:
    """Verdicts that stand on the same answers are kept: they may have been paid for."""
    if context.stands("judge", read(context.task)):
        return
    from pobench.data.prompts import eval_prompts
    from pobench.judging import grades
    from pobench.registry import judges

    config = context.job.judge
    assert config.name is not None
    kind = judges.get(config.name)
    judge = kind(**config.settings)
    if not kind.compares and not grades(judge):
        raise PobenchError(
            f"judge {config.name!r} ranks answers, but its scores have no bounds, so it cannot grade one"
        )
    rows = {row["id"]: row for row in eval_prompts(context.job.answers)}
    answers = context.read("answers", "answers")
    verdicts: pd.DataFrame | None
    if not kind.compares:
        verdicts = _graded(context, judge, rows, answers)
    elif context.loss is None:  # beside itself it wins half, by definition
        verdicts = answers[["prompt", "sample"]].assign(judge=judge.name, score=0.5, against="start")
    else:
        others = context.start_answers()
        verdicts = compared(context, "judge", judge, rows, answers, others, "start", read(context.task))
    if verdicts is not None:
        context.store("judge", {"verdicts": verdicts}, read(context.task))


def _graded(context: Context, judge: Any, rows: Mapping[str, Any], answers: pd.DataFrame) -> pd.DataFrame | None:
    """A judge's score of every answer, its grade and its reason where it gives them; None in all processes but the first."""
    judged = [(rows[a.prompt], a.text, a.finished) for a in answers.itertuples()]
    columns = ["score", *(name for name in ("grade", "reason") if hasattr(judge, name))]

    def grade(places: Sequence[int], progress: Progress | None) -> list[list[Any]]:
        found = []
        for done, i in enumerate(places, start=1):
            found.append([getattr(judge, column)(*judged[i]) for column in columns])
            if progress is not None:
                progress(done, len(places))
        return found

    grades = _read_all(context, "judge", judge, [len(text) for _, text, _ in judged], grade, read(context.task))
    if grades is None:
        return None
    verdicts = answers[["prompt", "sample"]].assign(judge=context.job.judge.name)
    return verdicts.assign(**{column: [own[i] for own in grades] for i, column in enumerate(columns)})


def compared(
    context: Context,
    stage: str,
    judge: PairwiseJudge,
    rows: Mapping[str, Any],
    answers: pd.DataFrame,
    others: pd.DataFrame,
    against: str,
    digests: Mapping[str, str | None],
) -> pd.DataFrame | None:
    """Verdicts on every answer beside another model's answer to the same prompt, sample by sample; None in all processes but
    the first.

    rows: prompt id → its row. answers, others: frames `answers` of two models. against: who the other is, for the column.
    digests: of the answers.
    """
    from pobench.judging.pairwise import Comparison, Longer, Verdict, judge_many

    theirs = others[["prompt", "sample", "text"]]
    both = answers.merge(theirs, on=["prompt", "sample"], suffixes=("", "_other"))
    shown = [Comparison(rows[b.prompt]["messages"], b.text_other, b.text) for b in both.itertuples()]
    if hasattr(judge, "estimate"):
        context.say(f"{context.task.title}: {judge.name}: {judge.estimate(shown)}")

    def read_some(places: Sequence[int], progress: Progress | None) -> list[tuple[Any, ...]]:
        return [astuple(verdict) for verdict in judge_many(judge, [shown[i] for i in places], progress)]

    verdicts_of = _read_all(context, stage, judge, [len(c.a) + len(c.b) for c in shown], read_some, digests)
    if verdicts_of is None:
        return None
    verdicts = [Verdict(*values) for values in verdicts_of]
    unread = [v.error or "the judge gave nan" for v in verdicts if math.isnan(v.probability)]
    notes = [f"{len(unread)} of {len(shown)} verdicts could not be read ({unread[0]})"] if unread else []
    for note in [*getattr(judge, "notes", ()), *notes]:
        context.say(f"{context.task.title}: {note}")
    reasons = {"reason": [v.reason or None for v in verdicts]} if any(v.reason for v in verdicts) else {}
    return both[["prompt", "sample"]].assign(
        judge=judge.name,
        score=[v.probability for v in verdicts],
        against=against,
        forward=[v.forward for v in verdicts],
        backward=[v.backward for v in verdicts],
        flipped=[v.flipped for v in verdicts],
        longer=[Longer().judge(*comparison) for comparison in shown],
        **reasons,
    )


def _read_all(
    context: Context,
    stage: str,
    judge: Any,
    lengths: Sequence[int],
    read_some: Callable[[Sequence[int], Progress | None], Sequence[Sequence[Any]]],
    digests: Mapping[str, str | None],
) -> list[list[Any]] | None:
    """What `read_some` gives for each place of `lengths`, in order; None in all processes but the first. A judge with weights
    reads shard by shard, texts of similar length together, in the same shards however many processes there are; any other
    judge is asked for all at once.

    lengths: of what stands in each place, in characters. read_some: places → for each, values that JSON holds exactly.
    """
    from pobench.judging.weights import rows_of_shard
    from pobench.shards import by_length

    cut = by_length(lengths, rows_of_shard(judge)) if hasattr(judge, "weights") else [[[*range(len(lengths))]]]
    with context.progress("verdicts", len(lengths), "answers") as advance:

        def told(done: int, total: int) -> None:
            advance(done=len(lengths) * done // max(total, 1))

        def judged(k: int) -> list[Any]:
            (places,) = cut[k]
            verdicts = read_some(places, told if len(cut) == 1 else None)
            return [[i, *verdict] for i, verdict in zip(places, verdicts, strict=True)]

        rows = context.cut(stage, cut, judged, lambda done: advance(done=done), digests)
    return None if rows is None else [own for _, *own in sorted(rows, key=lambda row: row[0])]


STAGE = Stage(
    name="judge",
    does="verdicts on the answers",
    reads=("answers",),
    writes=("verdicts.parquet",),
    decided_by="the answers, the start model's answers, the prompts' rows, the judge's source and settings",
    run=run,
    causes=causes,
    read=read,
    cut=True,
)
