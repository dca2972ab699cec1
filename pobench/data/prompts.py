"""Read the prompts that a model answers after training."""

from __future__ import annotations

from typing import Any

from pobench.data.column_map import has_meaning, is_empty, left_unread
from pobench.data.rows import Fault, _kind, _short, messages, read_rows
from pobench.data.turns import is_valid, template_around
from pobench.errors import PobenchError
from pobench.settings.schema import AnswersConfig
from pobench.sources import fetch_rows


def eval_prompts(config: AnswersConfig) -> list[dict[str, Any]]:
    """The rows of `answers.source`, up to `max_prompts`. Raises PobenchError as `prompt_rows` does."""
    assert config.source is not None
    return prompt_rows(config.source, config.split, "answers.source", config.subset)[: config.max_prompts]


def prompt_rows(source: str, split: str | None, key: str, subset: str | None = None) -> list[dict[str, Any]]:
    """Rows with `id`, `messages` (chat), and whatever a judge reads (`check`, `kind`, `topic`).

    A row without an `id` takes its number. Of rows with one id and one prompt the first is kept. key: of the setting that
    names the source. subset: of a data set with several configurations. Raises PobenchError that lists the rows without a
    prompt, with a column of meaning beside it (`input`, `system`, …) or a chat template around it, and those whose id another
    prompt has, and where there is none.
    """
    rows = []
    faults = []
    first: dict[str, tuple[int, Any]] = {}  # id → the first row with it, and its messages
    section = key.removesuffix(".source") if key.endswith(".source") else ""
    files = fetch_rows(source, split=split, subset=subset, option=f"--set {key}=PATH", section=section)
    for number, row in read_rows(files):
        if isinstance(row, Fault):
            faults.append(f"{source}: {row}")
            continue
        prompt = row.get("prompt", row.get("instruction"))
        if prompt is None or not _is_prompt(prompt):
            got = f"; got {_kind(prompt)} {_short(prompt)}" if prompt else ""
            faults.append(f"{source}: row {number}: no `prompt` (text, or chat messages with role and content){got}")
            continue
        name, turns = str(row.get("id", int(number))), messages(prompt)
        if wrong := _left_in_turns(prompt) or _turn_fault(turns) or _column_fault(row, turns):
            faults.append(f"{source}: row {number}: {wrong}")
            continue
        if name not in first:
            first[name] = (number, turns)
            rows.append({**row, "id": name, "messages": turns})
        elif first[name][1] != turns:
            faults.append(f"{source}: row {number}: id {name!r} is the id of another prompt, in row {first[name][0]}")
    if faults:
        raise PobenchError("\n".join(faults))
    if not rows:
        raise PobenchError(f"{key}: {source!r} holds no prompts")
    return rows


def _left_in_turns(prompt: Any) -> str:
    """What a message holds beside its words that changes what is asked; "" if there is nothing."""
    for turn in prompt if isinstance(prompt, list) else ():
        for name in turn:
            if name not in ("role", "content") and has_meaning(name) and not is_empty(turn[name]):
                return f"a message with `{name}`, which is not read; put its words into `content`"
    return ""


def _turn_fault(turns: list[dict[str, str]]) -> str:
    """Why nobody could answer these turns; "" if one could."""
    if strange := [turn["role"] for turn in turns if turn["role"] not in ("system", "user", "assistant")]:
        return f"unknown role; got {strange[0]!r}; allowed system, user, assistant"
    if not all(is_valid(turn["content"]) for turn in turns):
        return "broken UTF-8"
    last = turns[-1]
    if last["role"] != "user":
        return f"the last message must be the user's; got one of the {last['role']}"
    if template := next((name for turn in turns if (name := template_around(turn["content"]))), ""):
        return f"text of the chat template {template} inside a turn; store chat messages"
    return "" if last["content"].strip() else "the last message is empty"


def _column_fault(row: dict[str, Any], turns: list[dict[str, str]]) -> str:
    """Which column changes what is asked and is not read; "" if there is none."""
    name = left_unread(row, ("prompt", "messages"), "\n".join(turn["content"] for turn in turns))
    return f"`{name}` changes what is asked and is not read; put its words into `prompt`" if name else ""


def _is_prompt(value: Any) -> bool:
    """Whether a value is text, or chat messages of text, and not empty."""
    if not isinstance(value, list):
        return isinstance(value, str) and bool(value.strip())
    return bool(value) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
