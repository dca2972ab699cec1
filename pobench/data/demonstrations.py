"""Conversations for supervised fine-tuning as token ids, with the spans (assistant turns) that are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pobench.data.audit import refuse_unknown, unknown_shares, unknown_text
from pobench.data.chat import CHECKED, Chat, without_empty_thought
from pobench.data.column_map import has_meaning, is_empty, left_unread, words_of
from pobench.data.rows import Fault, Message, refuse
from pobench.data.turns import is_valid, template_around
from pobench.errors import PobenchError
from pobench.files import whole
from pobench.identity import room_digest
from pobench.types import Group

Numbered = tuple[int, Any]  # (number in the file from 1, row)


@cache
def reader_digest() -> str:
    """Hex sha256 of the code that turns rows into demonstrations, as `pobench.data.prepare.reader_digest` of pairs. A cause of
    a start model."""
    return room_digest(__file__)


# ---------------------------------------------------------------- rows → token sequences
@dataclass(frozen=True)
class Demonstrations:
    """Conversations ready for training, one Group each. turns: assistant turns trained on per epoch. over_long: turns left
    out because they end beyond the maximum length. dropped: faulty rows left out, under `on_bad_row: drop`. unknown: the
    share of the conversations' tokens that the tokenizer does not know, see `pobench.data.audit`."""

    groups: list[Group]
    turns: int
    over_long: int
    dropped: int = 0
    faults: list[str] = field(default_factory=list)
    unknown: dict[str, float] = field(default_factory=dict)

    @property
    def learnt_tokens(self) -> int:
        return sum(g.learnt_tokens for g in self.groups)

    def text(self) -> str:
        """A summary for the terminal: how much was read, and what was left out."""
        left_out = [f"  {fault}" for fault in self.faults]
        if self.dropped:
            left_out.append(f"  {self.dropped} rows left out as faulty")
        if self.over_long:
            left_out.append(f"  {self.over_long} assistant turns left out: they end beyond the maximum length")
        if warning := unknown_text(self.unknown):
            left_out.append(f"  warning: {warning}")
        head = f"SFT on {len(self.groups)} conversations, {self.turns} assistant turns, {self.learnt_tokens} tokens of them"
        return "\n".join([head, *left_out])

    def save(self, folder: Path) -> None:
        rows = [{"prompt": g.prompt, "response": g.responses[0], "learnt": sum(g.learnt, ())} for g in self.groups]
        with whole(folder / "demonstrations.parquet") as partial:
            pd.DataFrame(rows).to_parquet(partial, index=False)
        about = {name: getattr(self, name) for name in ("turns", "over_long", "dropped", "faults", "unknown")}
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


class _Rendered(NamedTuple):
    """A conversation as text. turns: (prompt, training text) of each assistant turn. prompts: the messages before each turn.
    whole: the text of the whole conversation, if every turn's prompt is a prefix of it; else None."""

    number: int
    turns: tuple[tuple[str, str], ...]
    prompts: list[list[Message]]
    whole: str | None


def tokenise(
    tokenizer: Any,
    rows: Sequence[Numbered],
    *,
    source: str = "sft",
    max_length: int = 2048,
    on_bad_row: str = "stop",
) -> Demonstrations:
    """One Group per conversation, cut after the last assistant turn that ends within `max_length` tokens.

    rows: numbered; `{"messages": […]}`, or `{"prompt": text or messages, "response": text}`. on_bad_row: "stop" raises
    one PobenchError that lists every bad row, "drop" counts them. A turn follows the same prompt ids as in generation.
    Raises PobenchError if no turn is left, or if 5 % or more of the tokens are unknown to the tokenizer.
    """
    chat = tokenizer if isinstance(tokenizer, Chat) else Chat(tokenizer)
    faults: list[Fault] = []
    groups: list[Group] = []
    turns = over_long = 0
    remaining = iter(rows)
    while chunk := list(islice(remaining, 1024)):
        rendered: list[_Rendered] = []
        for number, row in chunk:
            rendering = _rendered(chat, number, row)
            if isinstance(rendering, Fault):
                faults.append(rendering)
            else:
                rendered.append(rendering)
        for sequence in _sequences(chat, rendered):
            if isinstance(sequence, Fault):
                faults.append(sequence)
                continue
            if sequence.number <= rows[0][0] + CHECKED:
                for prompt, (start, _) in zip(sequence.prompts, sequence.spans, strict=True):
                    chat.check_prompt(f"row {sequence.number}", chat.prompt_ids(prompt), sequence.ids[:start])
            fitting = [s for s in sequence.spans if s[1] <= max_length]
            turns, over_long = turns + len(fitting), over_long + len(sequence.spans) - len(fitting)
            if fitting:
                groups.append(_group(sequence.ids, fitting))
    faults.sort(key=lambda fault: fault.row)
    if on_bad_row == "stop":
        refuse(faults, source=source, rows=len(rows), option="sft.on_bad_row")
    shares = unknown_shares({"conversation": [(*g.prompt, *g.responses[0]) for g in groups]}, chat.unknown)
    refuse_unknown(source, shares)
    if not groups:
        shown = "".join(f"\n  {fault}" for fault in faults[:20])
        raise PobenchError(
            f"{source}: nothing to learn from; {len(rows)} rows, {len(faults)} of them faulty, {over_long} turns, all over "
            f"{max_length} tokens{shown}"
        )
    return Demonstrations(groups, turns, over_long, len({f.row for f in faults}), [str(f) for f in faults[:5]], shares)


def _rendered(chat: Chat, number: int, row: Any) -> _Rendered | Fault:
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
        if match := chat.special.search(without_empty_thought(message.content)):
            return Fault(
                number, f"messages[{i}]", "holds a special token of the tokenizer as text", repr(match.group())
            )
    turns = []
    try:
        for i in answers:
            prompt = chat.prompt(messages[:i])
            text = chat.conversation(messages[:i], messages[i].content)
            behind = chat.behind(prompt, text)
            if behind is None:
                return Fault(
                    number,
                    f"messages[{i}]",
                    "the chat template writes the prompt differently once an answer follows",
                    f"the generation prompt ends with {prompt[-40:]!r}",
                )
            turns.append((prompt, behind))
    except Exception as error:  # a template is a program; most raise TemplateError for roles that they do not support
        return Fault(number, "messages", "the chat template refuses the conversation", str(error)[:120])
    # A template may write earlier turns differently when more follow, or not end them; then each turn is a sequence.
    conversation = turns[-1][1]
    together = all(conversation.startswith(prompt) for prompt, _ in turns) and not chat.adds_end
    prompts = [messages[:i] for i in answers]
    return _Rendered(number, tuple(turns), prompts, conversation if together and len(turns) > 1 else None)


def _messages(number: int, row: Any) -> list[Message] | Fault:
    if not isinstance(row, Mapping):
        return Fault(number, "", "expected an object", repr(row)[:40])
    if row.get("messages") is not None:
        turns = row["messages"]
    elif "prompt" in row and "response" in row:
        before = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        if not isinstance(before, Sequence):
            return Fault(number, "prompt", "neither text nor messages", repr(before)[:40])
        turns = [*before, {"role": "assistant", "content": row["response"]}]
    else:
        return Fault(
            number, "", "expected `messages`, or `prompt` and `response`", ", ".join(map(str, row)) or "nothing"
        )
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        return Fault(number, "messages", "no list of messages", repr(turns)[:40])
    messages = []
    for i, m in enumerate(turns):
        role, content = (m.get("role"), m.get("content")) if isinstance(m, Mapping) else (None, None)
        if not (isinstance(role, str) and isinstance(content, str)):
            return Fault(number, f"messages[{i}]", "no `role` and `content` of text", repr(m)[:40])
        if unread := [
            name for name in m if name not in ("role", "content") and has_meaning(name) and not is_empty(m[name])
        ]:
            return Fault(number, f"messages[{i}]", f"a message with `{unread[0]}`, which is not read", "")
        if not is_valid(content):
            return Fault(number, f"messages[{i}]", "broken UTF-8", "")
        if role == "user" and not content.strip():
            return Fault(number, f"messages[{i}]", "a user turn is empty", "")
        if role == "user" and (template := template_around(content)):
            problem = f"text of the chat template {template} inside a turn; store chat messages"
            return Fault(number, f"messages[{i}]", problem, repr(content)[:40])
        messages.append(Message(role, content))
    if name := left_unread(row, ("messages", "response"), words_of([m for m in messages if m.role != "assistant"])):
        return Fault(number, name, "changes what is asked and is not read; put its words into the messages", "")
    return messages


class _Sequence(NamedTuple):
    """Token ids of one sequence, the span [start, stop) of each assistant turn in it, and the messages before each turn."""

    number: int
    ids: tuple[int, ...]
    spans: list[tuple[int, int]]
    prompts: list[list[Message]]


def _sequences(chat: Chat, rendered: Sequence[_Rendered]) -> Iterator[_Sequence | Fault]:
    """One sequence per conversation if every turn follows its own prompt ids there; else one sequence per turn."""
    texts = {r.number: r.whole for r in rendered if r.whole is not None}
    ids = dict(zip(texts, chat.ids(list(texts.values())), strict=True))
    prompts = list(dict.fromkeys(prompt for r in rendered if r.whole is not None for prompt, _ in r.turns))
    of_prompt = dict(zip(prompts, chat.ids(prompts), strict=True))
    together = {
        r.number: _Sequence(
            r.number, ids[r.number], _spans([of_prompt[p] for p, _ in r.turns], ids[r.number], chat.end), r.prompts
        )
        for r in rendered
        if r.whole is not None and all(_begins(ids[r.number], of_prompt[p]) for p, _ in r.turns)
    }
    separate = [r for r in rendered if r.number not in together]
    answered = iter(chat.answered([turn for r in separate for turn in r.turns]))
    for r in rendered:
        if r.number in together:
            yield together[r.number]
            continue
        for prompt in r.prompts:
            turn = next(answered)
            if turn is None:
                yield Fault(r.number, "messages", "no tokens spell the answer after the prompt's tokens", "")
            else:
                start = len(turn.prompt)
                yield _Sequence(r.number, turn.prompt + turn.answer, [(start, start + len(turn.answer))], [prompt])


def _begins(ids: tuple[int, ...], prompt: tuple[int, ...]) -> bool:
    return ids[: len(prompt)] == prompt


def _spans(prompts: Sequence[tuple[int, ...]], ids: tuple[int, ...], end: int) -> list[tuple[int, int]]:
    """[start, stop) of each assistant turn in `ids`: from the end of its prompt to its end-of-turn token, included."""
    return [(len(prompt), ids.index(end, len(prompt)) + 1) for prompt in prompts]


def _group(ids: tuple[int, ...], spans: Sequence[tuple[int, int]]) -> Group:
    first, last = spans[0][0], spans[-1][1]
    learnt = tuple((start - first, stop - first) for start, stop in spans) if len(spans) > 1 else ()
    return Group(ids[:first], (ids[first:last],), learnt)
