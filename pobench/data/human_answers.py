"""Human answers to prompts, for pairs of a human answer over the model's own (`onpolicy.pairs: human_over_own`)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pobench.data.demonstrations import _messages
from pobench.data.order import text_key
from pobench.data.prepare import read_preferences
from pobench.data.rows import Fault, Found, Message, RowStream, refuse
from pobench.data.shapes import load_preferences, shape_of
from pobench.errors import PobenchError
from pobench.row_files import RowFiles
from pobench.settings.job import Job
from pobench.sources import fetch_rows

Answered = tuple[tuple[Message, ...], str]


def human_answers(job: Job) -> dict[str, str]:
    """`text_key` of a prompt → its human answer, of several the first.

    They are those of `onpolicy.human_answers`, or of the job's data. Raises PobenchError for rows that cannot be read, under
    `data.on_bad_row: stop`, and where there is no answer.
    """
    source = job.onpolicy.human_answers
    strict = job.data.on_bad_row == "stop"
    if source is None:
        answered = [one for found in read_preferences(job) for one in _better_answers(found, strict)]
    else:
        files = fetch_rows(source, split=job.onpolicy.human_answers_split, option="--set onpolicy.human_answers=PATH")
        answered = list(_answers_of(files, strict))
    answers: dict[str, str] = {}
    for prompt, answer in answered:
        answers.setdefault(text_key(prompt), answer)
    if not answers:
        raise PobenchError(f"{source_of(job)}: it has no better, desirable or demonstrated answer")
    return answers


def source_of(job: Job) -> str:
    """The key that names the human answers and its value, for messages."""
    if job.onpolicy.human_answers is not None:
        return f"onpolicy.human_answers {job.onpolicy.human_answers!r}"
    return "data.source " + ", ".join(repr(part.source) for part in job.data.parts)


def _answers_of(files: RowFiles, strict: bool) -> Iterator[Answered]:
    first = next((row for _, row in islice(RowStream(files), 1000) if not isinstance(row, Fault)), None)
    if first is None or shape_of(first) is not None:
        yield from _better_answers(load_preferences(files), strict)
        return
    faults: list[Fault] = []
    rows = 0
    for number, row in RowStream(files):
        rows += 1
        turns = row if isinstance(row, Fault) else _messages(number, row)
        if isinstance(turns, Fault):
            faults.append(turns)
        elif len(turns) > 1 and turns[-1].role == "assistant":
            yield tuple(turns[:-1]), turns[-1].content
        else:
            faults.append(Fault(number, "messages", "does not end with an answer to a prompt", ""))
    if strict:
        refuse(faults, source=files.name, rows=rows)


def _better_answers(found: Found, strict: bool) -> Iterator[Answered]:
    """Of lists the best answers, of labelled answers the desirable ones, of pairs the chosen ones."""
    if strict:
        refuse(found.faults, source=found.source, rows=found.rows)
    if found.lists:
        yield from ((one.prompt, one.answers[one.ranks.index(min(one.ranks))]) for one in found.lists)
    elif found.answers:
        yield from ((one.prompt, one.answer) for one in found.answers if one.label)
    else:
        yield from ((one.prompt, one.chosen) for one in found.preferences)
