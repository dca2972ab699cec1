"""The prompts of one round of iterative training: its part of those of the section `onpolicy`, without those held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pobench.data.order import text_key
from pobench.data.rows import Message
from pobench.data.sampled import answered_rows, sampled_rows
from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError
from pobench.settings.job import Job


def round_rows(job: Job) -> list[dict[str, Any]]:
    """The rows whose prompts a job's round samples. Raises PobenchError as `sampled_rows` does, and where none is left."""
    rows = sampled_rows(job)
    if is_split(job):
        rows = rows[job.round.number - 1 :: job.round.of]
    if job.round.held_out:
        left_out = {
            text_key(preference.prompt) for preference in load_preferences(Path(job.round.held_out)).preferences
        }
        left_out |= {_key(row) for row in answered_rows(job)}
        rows = [row for row in rows if _key(row) not in left_out]
    if not rows:
        raise PobenchError(
            f"onpolicy.prompts: none is left for round {job.round.number} of {job.round.of}; use fewer --rounds, or "
            "--set rounds.prompts=all"
        )
    return rows


def is_split(job: Job) -> bool:
    """Whether each round asks a part of the prompts."""
    return job.round.of > 1 and job.rounds.prompts == "split"


def _key(row: dict[str, Any]) -> str:
    return text_key(Message(turn["role"], turn["content"]) for turn in row["messages"])
