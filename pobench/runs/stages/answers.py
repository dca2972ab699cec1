"""The trained model's answers to the setting's prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pobench.runs.stage import Content, Stage
from pobench.settings.job import Job

if TYPE_CHECKING:
    import pandas as pd

    from pobench.runs.context import Context

PROMPTS = ("source", "subset", "split", "max_prompts")  # of the section: they count by their content


def causes(job: Job, content: Content) -> Mapping[str, Any] | None:
    if content.prompts is None:
        return None
    decoding = {k: v for k, v in job.decoding.causes().items() if k not in PROMPTS}
    return {**decoding, "precision": content.precise(job.answers.precision), "prompts": content.prompts}


def run(context: Context) -> None:
    context.store("answers", {"answers": _answers(context)})


def _answers(context: Context) -> pd.DataFrame:
    import pandas as pd

    from pobench.data.prompts import eval_prompts
    from pobench.model.generate import Decoding, generate
    from pobench.model.vllm import speaker_of
    from pobench.progress import progress

    config, rows = context.job.decoding, eval_prompts(context.job.answers)
    model, precision = context.speaking_model()
    drawn = config.model_dump(include={f.name for f in fields(Decoding)}) | {"precision": precision}
    decoding = Decoding(**drawn)
    with (
        speaker_of(model, config.engine, decoding.precision, config.batch_size) as (speaker, batch_size),
        progress(f"{context.task.title}: answers", len(rows) * config.samples, "answers") as advance,
    ):
        answers = generate(
            speaker,
            context.chat,
            [context.chat.prompt_ids(row["messages"]) for row in rows],
            decoding,
            batch_size=batch_size,
            progress=lambda done, total: advance(done=done),
        )
    return pd.DataFrame(
        {
            "prompt": rows[a.prompt]["id"],
            "sample": a.sample,
            "kind": rows[a.prompt].get("kind", ""),
            "topic": rows[a.prompt].get("topic", ""),
            "instruction": rows[a.prompt]["messages"][-1]["content"],
            "text": a.text,
            "tokens": a.tokens,
            "finished": a.finished,
        }
        for a in answers
    )


STAGE = Stage(
    name="answers",
    does="answers to the setting's prompts",
    reads=("train",),
    writes=("answers.parquet",),
    decided_by="trained weights, prompts (ids and token ids), decoding; where it samples, the run's seed",
    run=run,
    causes=causes,
)
