"""Conversations for supervised fine-tuning, as token ids with the spans that are learned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import TemplateError

from pobench.data.chat import Renderer
from pobench.data.rows import Fault, Message, refuse, shared_start
from pobench.errors import PobenchError
from pobench.files import whole
from pobench.types import Group

Numbered = tuple[int, Any]  # a row behind its number in the file, from 1


# ---------------------------------------------------------------- rows → token sequences
@dataclass(frozen=True)
class Demonstrations:
    """Conversations ready to learn from, one Group each. turns: learnt from in an epoch. over_long: turns left out
    because they end beyond the maximum length. dropped: rows left out as faulty, under `on_bad_row: drop`."""

    groups: list[Group]
    turns: int
    over_long: int
    dropped: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def learnt_tokens(self) -> int:
        return sum(g.learnt_tokens for g in self.groups)

    def text(self) -> str:
        """For the terminal: what was read, and what was left out."""
        left_out = [f"  {fault}" for fault in self.faults]
        if self.dropped:
            left_out.append(f"  {self.dropped} rows left out as faulty")
        if self.over_long:
            left_out.append(f"  {self.over_long} assistant turns left out: they end beyond the maximum length")
        head = f"SFT on {len(self.groups)} conversations, {self.turns} assistant turns, {self.learnt_tokens} tokens of them"
        return "\n".join([head, *left_out])

    def save(self, folder: Path) -> None:
        rows = [{"prompt": g.prompt, "response": g.responses[0], "learnt": sum(g.learnt, ())} for g in self.groups]
        with whole(folder / "demonstrations.parquet") as partial:
            pd.DataFrame(rows).to_parquet(partial, index=False)
        about = {"turns": self.turns, "over_long": self.over_long, "dropped": self.dropped, "faults": self.faults}
        with whole(folder / "demonstrations.json") as partial:
            partial.write_text(json.dumps(about, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Demonstrations:
        frame = pd.read_parquet(folder / "demonstrations.parquet")
        groups = [
            Group(tuple(map(int, r.prompt)), (tuple(map(int, r.response)),), _in_twos(r.learnt))
            for r in frame.itertuples()
        ]
        return cls(groups, **json.loads((folder / "demonstrations.json").read_text(encoding="utf-8")))


def _in_twos(flat: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((int(a), int(b)) for a, b in zip(flat[::2], flat[1::2], strict=True))


class _Text(NamedTuple):
    """A rendered conversation up to the end of its last learnt turn, and for each such turn the text it follows."""

    whole: str
    asked: tuple[str, ...]


def tokenise(
    tokenizer: Any,
    rows: Sequence[Numbered],
    *,
    source: str = "sft",
    max_length: int = 2048,
    on_bad_row: str = "stop",
) -> Demonstrations:
    """Rows as one Group a conversation, cut behind the last assistant turn that ends within `max_length` tokens.

    rows: numbered; `{"messages": […]}`, or `{"prompt": text or messages, "response": text}`. on_bad_row: "stop" raises
    one PobenchError that lists every bad row, "drop" counts them. Raises PobenchError where no turn is left.
    """
    renderer = tokenizer if isinstance(tokenizer, Renderer) else Renderer(tokenizer)
    faults: list[Fault] = []
    groups: list[Group] = []
    turns = over_long = 0
    remaining = iter(rows)
    while chunk := list(islice(remaining, 1024)):
        texts: list[_Text] = []
        for number, row in chunk:
            made = _texts(renderer, number, row)
            if isinstance(made, Fault):
                faults.append(made)
            else:
                texts += made
        for prompt_ids, ids in _ids(renderer, texts):
            spans = _spans(prompt_ids, ids, renderer.end)
            fitting = [s for s in spans if s[1] <= max_length]
            turns, over_long = turns + len(fitting), over_long + len(spans) - len(fitting)
            if fitting:
                groups.append(_group(ids, fitting))
    if on_bad_row == "stop":
        refuse(faults, source=source, rows=len(rows), option="sft.on_bad_row")
    if not groups:
        shown = "".join(f"\n  {fault}" for fault in faults[:20])
        raise PobenchError(
            f"{source}: nothing to learn from; {len(rows)} rows, {len(faults)} of them faulty, {over_long} turns, all over "
            f"{max_length} tokens{shown}"
        )
    return Demonstrations(groups, turns, over_long, len({f.row for f in faults}), [str(f) for f in faults[:5]])


def _texts(renderer: Renderer, number: int, row: Any) -> list[_Text] | Fault:
    messages = row if isinstance(row, Fault) else _messages(number, row)
    if isinstance(messages, Fault):
        return messages
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if not answers:
        return Fault(number, "", "no assistant turn", "")
    if answers[0] == 0:
        return Fault(number, "", "the assistant speaks before it is asked", "")
    for i, message in enumerate(messages):
        if i in answers and not message.content.strip():
            return Fault(number, f"messages[{i}]", "an assistant turn is empty", "")
        if found := renderer.special.search(message.content):
            return Fault(
                number, f"messages[{i}]", "holds a special token of the tokenizer as text", repr(found.group())
            )
    try:
        asked = [renderer.prompt(messages[:i]) for i in answers]
        whole_text = renderer.conversation(messages[: answers[-1]], messages[answers[-1]].content)
        if all(whole_text.startswith(text) for text in asked) and (len(asked) == 1 or not renderer.adds_end):
            return [_Text(whole_text, tuple(asked))]
        # The template writes earlier turns differently once more follow, or closes none of them: each on its own.
        return [
            _Text(renderer.conversation(messages[:i], messages[i].content), (text,))
            for i, text in zip(answers, asked, strict=True)
        ]
    except (TemplateError, ValueError, TypeError) as error:  # what templates raise for roles they do not take
        return Fault(number, "messages", "the chat template refuses the conversation", str(error)[:120])


def _messages(number: int, row: Any) -> list[Message] | Fault:
    if not isinstance(row, Mapping):
        return Fault(number, "", "expected an object", repr(row)[:40])
    if row.get("messages") is not None:
        given = row["messages"]
    elif "prompt" in row and "response" in row:
        before = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        if not isinstance(before, Sequence):
            return Fault(number, "prompt", "neither text nor messages", repr(before)[:40])
        given = [*before, {"role": "assistant", "content": row["response"]}]
    else:
        return Fault(
            number, "", "expected `messages`, or `prompt` and `response`", ", ".join(map(str, row)) or "nothing"
        )
    if isinstance(given, str) or not isinstance(given, Sequence):
        return Fault(number, "messages", "no list of messages", repr(given)[:40])
    messages = []
    for i, m in enumerate(given):
        role, content = (m.get("role"), m.get("content")) if isinstance(m, Mapping) else (None, None)
        if not (isinstance(role, str) and isinstance(content, str)):
            return Fault(number, f"messages[{i}]", "no `role` and `content` of text", repr(m)[:40])
        messages.append(Message(role, content))
    return messages


def _ids(renderer: Renderer, texts: Sequence[_Text]) -> Iterator[tuple[list[tuple[int, ...]], tuple[int, ...]]]:
    """For each text the ids of what its turns follow, and of the whole, closed by the end-of-turn token."""
    end = (renderer.end,) if renderer.adds_end else ()
    ids = iter(renderer.ids([t for text in texts for t in (*text.asked, text.whole)]))
    for text in texts:
        yield [next(ids) for _ in text.asked], next(ids) + end


def _spans(asked: Sequence[tuple[int, ...]], ids: tuple[int, ...], end: int) -> list[tuple[int, int]]:
    """[start, stop) of each learnt turn in `ids`: from where the prompt's tokens end, up to the next end-of-turn token."""
    spans = []
    for prompt in asked:
        start = shared_start(prompt, ids)
        spans.append((start, ids.index(end, start) + 1))
    return spans


def _group(ids: tuple[int, ...], spans: Sequence[tuple[int, int]]) -> Group:
    first, last = spans[0][0], spans[-1][1]
    learnt = tuple((start - first, stop - first) for start, stop in spans) if len(spans) > 1 else ()
    return Group(ids[:first], (ids[first:last],), learnt)
