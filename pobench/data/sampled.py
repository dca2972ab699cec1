"""The prompts that the stage `onpolicy` samples answers to, and those that are evaluated, which no such pair is trained on."""

from __future__ import annotations

from typing import Any

from pobench.data.prompts import prompt_rows
from pobench.errors import PobenchError
from pobench.row_files import RowFiles
from pobench.settings.job import Job
from pobench.sources import fetch_rows


def sampled_rows(job: Job) -> list[dict[str, Any]]:
    """The rows whose prompts are sampled, up to `onpolicy.max_prompts`. Raises PobenchError as `prompt_rows` does."""
    source, split, subset = _sampled(job)
    return prompt_rows(source, split, "onpolicy.prompts", subset)[: job.onpolicy.max_prompts]


def answered_rows(job: Job) -> list[dict[str, Any]]:
    """All rows of `answers.source`, also those beyond its `max_prompts`; [] where there is none."""
    answers = job.answers
    if answers.source is None:
        return []
    return prompt_rows(answers.source, answers.split, "answers.source", answers.subset)


def prompt_files(job: Job) -> tuple[RowFiles, RowFiles | None]:
    """The files of `sampled_rows` and of `answered_rows`. Raises PobenchError with a remedy where they cannot be fetched."""
    source, split, subset = _sampled(job)
    sampled = fetch_rows(source, split=split, subset=subset, option="--set onpolicy.prompts=PATH")
    answers = job.answers
    if answers.source is None:
        return sampled, None
    option = "--set answers.source=PATH"
    return sampled, fetch_rows(answers.source, split=answers.split, subset=answers.subset, option=option)


def _sampled(job: Job) -> tuple[str, str | None, str | None]:
    """(source, split, subset) of the prompts to sample answers to: the section's own, else those of the pairs."""
    config, data = job.onpolicy, job.data
    if config.prompts is None and data.sources:
        raise PobenchError(
            "onpolicy.prompts: data.sources names several data sets; name the one with the prompts to sample"
        )
    return config.prompts or data.source, config.prompts_split or data.split, None if config.prompts else data.subset
