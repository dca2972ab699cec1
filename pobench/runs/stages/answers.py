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


def _answers(context: Context) -> pd.DataFrame | None:
    import pandas as pd

    from pobench.data.prompts import eval_prompts
    from pobench.model.generate import Answer, Decoding, batches_of, generate_batches
    from pobench.model.vllm import speaker_of
    from pobench.shards import deal

    config, rows = context.job.decoding, eval_prompts(context.job.answers)
    model, precision = context.speaking_model()
    drawn = config.model_dump(include={f.name for f in fields(Decoding)}) | {"precision": precision}
    decoding = Decoding(**drawn)
    prompts = [context.chat.prompt_ids(row["messages"]) for row in rows]
    with (
        speaker_of(
            model,
            config.engine,
            decoding.precision,
            config.batch_size,
            folder=context.stored_weights,
            memory_share=config.vllm_memory_share,
        ) as (speaker, batch_size),
        context.progress("answers", len(rows) * config.samples, "answers") as advance,
    ):
        cut = deal(batches_of(prompts, config.samples, batch_size))

        def speak(k: int) -> list[Any]:
            share = (k, len(cut))
            batches = generate_batches(speaker, context.chat, prompts, decoding, batch_size=batch_size, share=share)
            return [[*answer] for batch in batches for answer in batch]

        answered = context.cut("answers", cut, speak, lambda done: advance(done=done))
    if answered is None:
        return None
    answers = sorted(Answer(*answer) for answer in answered)
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
    cut=True,
)
