"""Read one row of preferences: its prompt, its answers, and the turns before them."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pobench.data.column_map import (
    TEXTS_WITH_MEANING,
    TrackedRow,
    changes_what_is_asked,
    has_meaning,
    is_empty,
    look,
    plain_name,
    shown,
    text_columns,
    words_of,
)
from pobench.data.rows import Fault, Message, _kind, _short
from pobench.data.turns import ROLES, continued, markup_inside, split_turns, without_end

TIE = "tie"
CONTRADICTED = "the rejected answer has the higher score"
UNJUDGED = "no submitted annotation"
OUTVOTED = "annotators disagree; most prefer the chosen answer"
PROMPTS = ("prompt", "instruction", "question", "conversations")
_MESSAGES_AS_TEXT = re.compile(  # JSON or Python; an answer that is another list of objects stays text
    r"\s*\[\s*\{\s*(?=.*['\"](content|value)['\"]\s*:)"
    r"(?=.*['\"](role|from)['\"]\s*:\s*['\"](system|user|assistant|human|gpt|tool)['\"])",
    re.DOTALL,
)
_READ_KEYS = {"role", "from", "content", "value"}


class Listed(NamedTuple):
    """The answers of a list, in the row's order. ranks: the lowest is the best. scores: ratings; None where there are none."""

    texts: tuple[str, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...] | None = None


class Draft(NamedTuple):
    """A preference without id and row number. scores: the ratings of the chosen and the rejected answer; None where the row has
    none. listed: the list whose best and worst answer these are. label, score: of a single answer, which stands on both
    sides."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None
    listed: Listed | None = None
    label: bool | None = None
    score: float | None = None

    @property
    def content(self) -> Draft:
        """Without scores: what tells two rows apart."""
        return Draft(*self[:3])


class Answer(NamedTuple):
    """An answer as text. head: the conversation before it, where the field holds that too."""

    head: tuple[Message, ...]
    text: str


class RowReader:
    """Reads one row. Every method returns None after it has recorded a fault."""

    def __init__(self, number: int, row: Mapping[str, Any], ignore: Collection[str] = ()) -> None:
        self.number, self.row, self.ignore = number, TrackedRow(row), frozenset(ignore)
        self.faults, self.notes = list[Fault](), list[str]()
        self.prompt_field, self.from_transcript = "", False

    def fault(self, field: str, problem: str, got: str = "") -> Any:
        """Record a fault; return None, so that a method can return the call."""
        self.faults.append(Fault(self.number, field, problem, got))

    def wrong(self, field: str, problem: str, value: Any) -> Any:
        """Record a fault that shows the value; a missing value is shown as "null"."""
        if value is None:
            return self.fault(field, "null")
        return self.fault(field, problem, f"{_kind(value)} {_short(value)}")

    def tie(self) -> Any:
        """Note a tie; return None, so that a method can return the call."""
        self.notes.append(TIE)
        return None

    def unjudged(self) -> Any:
        """Note that nobody has compared the answers yet; return None, so that a method can return the call."""
        self.notes.append(UNJUDGED)
        return None

    def best_and_worst(self, votes: Sequence[Sequence[float]]) -> tuple[int, int] | None:
        """The places of the best and of the worst answer, the first among equals; notes a tie. votes: of each annotator, one
        number for each answer, more is better.

        The order of an annotator's numbers counts, not their size: each is one vote on every two answers (Borda's count). It is
        a tie if not more annotators prefer the best answer to the worst than the other way round.
        """
        standing = standings(votes)
        best, worst = standing.index(max(standing)), standing.index(min(standing))
        ahead, behind = (sum(v[a] > v[b] for v in votes) for a, b in ((best, worst), (worst, best)))
        if ahead <= behind:
            return self.tie()
        if behind:
            self.notes.append(OUTVOTED)
        return best, worst

    def ranked(
        self,
        answers: Sequence[tuple[str, Any]],
        votes: Sequence[Sequence[float]],
        prompt: str | None = None,
        scores: Sequence[float] | None = None,
    ) -> Draft | None:
        """The best answer against the worst, and the list of all. answers: (field, value) each. votes: see `best_and_worst`.
        prompt: its field. scores: ratings on a scale that other rows share.

        An answer between the two that cannot be read is left out of the list, and the row is noted.
        """
        places = self.best_and_worst(votes)
        if places is None:
            return None
        best, worst = (self.answer(*answers[place]) for place in places)
        asked = self.prompt(prompt)
        draft = self.pair([best, worst], asked, None if scores is None else (scores[places[0]], scores[places[1]]))
        if draft is None:
            return None
        texts = {places[0]: draft.chosen, places[1]: draft.rejected}
        for place, (field, value) in enumerate(answers):
            other = RowReader(self.number, self.row, self.ignore)
            other.from_transcript = self.from_transcript
            if place not in texts and (made := other.pair([best, other.answer(field, value)], asked)) is not None:
                texts[place] = made.rejected
                self.notes += other.notes
            elif place not in texts:
                self.notes.append(f"an answer left out of its list: {other.faults[0].problem}")
        kept, standing = sorted(texts), standings(votes)
        ranks = dense_ranks([-standing[place] for place in kept])
        rated = None if scores is None else tuple(scores[place] for place in kept)
        if (
            rated is not None and dense_ranks([-score for score in rated]) != ranks
        ):  # annotators' votes and mean ratings may differ
            rated = None
        return draft._replace(listed=Listed(tuple(texts[place] for place in kept), ranks, rated))

    def number_of(self, field: str) -> float | None:
        """A column as a finite number; records a fault for anything else."""
        number = number_or_none(self.row[field])
        return self.wrong(field, "not a number", self.row[field]) if number is None else number

    def text(self, field: str, value: Any, empty: str = "empty answer") -> str | None:
        """A text that is not blank, valid UTF-8, and no chat messages written as text."""
        if not isinstance(value, str):
            return self.wrong(field, "not text", value)
        if not value.strip():
            return self.fault(field, empty, _short(value))
        if _MESSAGES_AS_TEXT.match(value):
            return self.fault(field, "chat messages written as text; store them as JSON", _short(value))
        return value if self.is_utf8(field, value) else None

    def is_utf8(self, field: str, value: str) -> bool:
        """Whether the text can be encoded; records a fault if not."""
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            self.fault(field, "broken UTF-8", _short(value))
            return False
        return True

    def messages(self, field: str, value: Any, empty: str = "empty answer") -> tuple[Message, ...] | None:
        """Chat messages, one or a list, with the keys role/content or from/value; content may be a list of text parts."""
        turns = [value] if isinstance(value, Mapping) else list(value)
        if not turns:
            return self.fault(field, empty, "[]")
        before = len(self.faults)
        found = [self.message(f"{field}[{i}]" if len(turns) > 1 else field, turn) for i, turn in enumerate(turns)]
        return tuple(m for m in found if m is not None) if len(self.faults) == before else None

    def message(self, place: str, turn: Any) -> Message | None:
        """One chat message."""
        if not isinstance(turn, Mapping) or not ("role" in turn or "from" in turn):
            inner = text_columns(turn) if isinstance(turn, Mapping) else []
            fix = f"; data.columns names a field of it, such as {place}.{inner[0]}" if inner else ""
            return self.fault(
                place, f"not a message, which has a role and content{fix}", f"{_kind(turn)} {_short(turn)}"
            )
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        role = ROLES.get(role, role) if isinstance(role, str) else role
        if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
            parts: list[Any] = [
                next((part[k] for k in ("text", "value") if part.get(k) is not None), None) for part in content
            ]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else content
        for name in turn.keys() - _READ_KEYS - self.ignore:
            if has_meaning(name) and not is_empty(turn[name]):
                return self.fault(
                    place, f"a message with `{name}`, which is not read; {_way_out(name)}", shown(turn[name])
                )
        if role not in ("system", "user", "assistant"):
            return self.fault(place, "unknown role", f"{_short(role)}; allowed system, user, assistant")
        if role == "system" and isinstance(content, str):  # may be empty: some models expect an empty system message
            return Message(role, content) if self.is_utf8(place, content) else None
        text = self.text(place, content, "empty prompt" if role == "user" else "empty answer")
        if role == "user" and text is not None and (split := split_turns(text)) and split.template:
            return self.templated(place, split.template, text)
        return None if text is None else Message(str(role), text)

    def templated(self, field: str, template: str, text: str) -> Any:
        """Record that a turn holds the text of a chat template."""
        return self.fault(
            field, f"text of the chat template {template} inside a turn; store chat messages", _short(text)
        )

    def turns(self, field: str, value: Any) -> tuple[Message, ...] | None:
        """The conversation in a field: messages, a transcript, templated text, or a text, which is one turn of the user."""
        value = _only(value)
        if isinstance(value, (list, tuple, Mapping)):
            return self.messages(field, value, "empty prompt")
        text = self.text(field, value, "empty prompt")
        if text is None:
            return None
        split = split_turns(text)
        if split is not None and not split.template and "user" not in [turn.role for turn in split.turns]:
            split = None  # the user's own words begin with "Assistant:"
        if split is None and (name := markup_inside(text)):
            return self.templated(field, name, text)
        if split is None:
            return (Message("user", text),)
        if split.template:
            self.notes.append(f"chat template {split.template} taken off")
        self.from_transcript = not split.template
        return split.turns

    def prompt(self, name: str | None = None) -> tuple[Message, ...] | None:
        """The conversation before the answer. name: its field, by default the first of `PROMPTS`; `input` is appended to
        `instruction`."""
        name = name or next(k for k in PROMPTS if k in self.row)
        self.prompt_field, value = name, self.row[name]
        extra = self.row.get("input") if name == "instruction" else None
        if is_empty(value) and TEXTS_WITH_MEANING & set(text_columns(self.row.unread())):
            return self.no_prompt("an empty prompt")
        turns = self.turns(name, value)
        if turns and not is_empty(extra) and self.text("input", extra):
            turns = (*turns[:-1], turns[-1]._replace(content=f"{turns[-1].content}\n\n{extra}"))
        return turns

    def before(self, prompt: tuple[Message, ...]) -> tuple[Message, ...] | None:
        """The prompt behind the row's `history` and `system`, where it has them."""
        if self.prompt_field != "history" and not is_empty(self.row.get("history")):
            earlier = self.history(self.row["history"])
            if earlier is None:
                return None
            own = prompt[:1] if prompt[0].role == "system" else ()
            if _bare(prompt[len(own) : len(own) + len(earlier)]) != _bare(earlier):
                prompt = (*own, *earlier, *prompt[len(own) :])
        for name in ("system", "system_prompt"):
            system = self.row.get(name)
            if is_empty(system):
                continue
            if not isinstance(system, str):
                return self.wrong(name, "not text", system)
            if prompt[0].role == "system" and prompt[0].content.strip() != system.strip():
                return self.fault(name, "another system message than the conversation's own", _short(system))
            if self.is_utf8(name, system) and prompt[0].role != "system":
                prompt = (Message("system", system), *prompt)
        return prompt

    def history(self, value: Any) -> tuple[Message, ...] | None:
        """Earlier turns: messages, or a list of [question, answer]."""
        if not isinstance(value, (list, tuple)):
            fix = "no list of turns; data.columns.prompt=[history,prompt] puts it before the prompt as text"
            return self.wrong("history", fix, value)
        if all(isinstance(turn, (list, tuple)) and len(turn) == 2 for turn in value):
            roles = ("user", "assistant")
            value = [{"role": r, "content": t} for turn in value for r, t in zip(roles, turn, strict=True)]
        return self.messages("history", value)

    def answer(self, field: str, value: Any) -> Answer | None:
        """The final assistant message and the messages before it; a plain text has none before it."""
        value = _only(value)
        if isinstance(value, (list, tuple, Mapping)):
            turns = self.messages(field, value)
        else:
            text = self.text(field, value)
            split = None if text is None else split_turns(text, keep_open=True)
            if text is None or split is None:
                return None if text is None else self.ended(field, (), text)
            if split.template:
                self.notes.append(f"chat template {split.template} taken off")
            turns = split.turns
        if turns is None:
            return None
        if turns[-1].role != "assistant":
            return self.fault(field, "wrong role order", f"{_roles(turns)}; the last message must be the assistant's")
        return self.ended(field, turns[:-1], turns[-1].content)

    def ended(self, field: str, head: tuple[Message, ...], text: str) -> Answer | None:
        """An answer without the end of a chat template, if it has one."""
        bare = without_end(text)
        if bare != text:
            self.notes.append("end of a chat template taken off an answer")
        return None if self.text(field, bare) is None else Answer(head, bare)

    def continued(self, field: str, answer: Answer) -> Answer | None:
        """An answer to a transcript's prompt; further turns that it holds go before its last one."""
        turns = () if answer.head else continued(answer.text)
        return self.answer(field, [turn._asdict() for turn in turns]) if len(turns) > 1 else answer

    def pair(
        self,
        answers: Sequence[Answer | None],
        prompt: tuple[Message, ...] | None = (),
        scores: tuple[float, float] | None = None,
    ) -> Draft | None:
        """Two answers to one prompt. The prompt is in its own field, before each answer, or in both places; or the answers
        hold further turns, which both share."""
        chosen, rejected = answers
        if chosen is not None and rejected is not None and self.from_transcript:
            chosen, rejected = self.continued("chosen", chosen), self.continued("rejected", rejected)
        if chosen is None or rejected is None or prompt is None:
            return None
        heads = [answer.head for answer in (chosen, rejected) if answer.head]
        if len(heads) == 2 and _bare(heads[0]) != _bare(heads[1]):
            return self.fault("rejected", "prompt differs between chosen and rejected", _difference(*heads))
        if heads and prompt:
            further = heads[0][0].role == "assistant"
            if further and len(heads) == 1:
                return self.fault("rejected", "one answer has further turns, the other none", _roles(heads[0]))
            joined = (*prompt, *heads[0]) if further else self._same(prompt, heads[0])
            if joined is None:
                return None
            prompt = joined
        elif heads:
            prompt = heads[0]
        if not prompt:
            return self.no_prompt("answers without an earlier message")
        whole = self.before(prompt)
        return Draft(whole, chosen.text, rejected.text, scores) if whole is not None and self.in_turn(whole) else None

    def _same(self, prompt: tuple[Message, ...], head: tuple[Message, ...]) -> tuple[Message, ...] | None:
        """The conversation before both answers, if it holds the prompt that stands in its own field."""
        asked, inside = ([turn for turn in _bare(m) if turn[0] != "system"] for m in (prompt, head))
        if asked != inside and not (len(asked) == 1 and asked[0] in inside):  # one of many: UltraFeedback's `prompt`
            return self.fault("prompt", "prompt differs from the one inside the answers", _short(asked[-1][1]))
        own_system = prompt[:1] if prompt[0].role == "system" != head[0].role else ()
        return (*own_system, *head)

    def no_prompt(self, got: str) -> Any:
        """Record that the prompt is missing, and which column may be it."""
        others = self.other_texts()
        if not others:
            return self.fault("prompt", "missing field", got)
        name = next((n for n in others if has_meaning(n) or n == "messages"), others[0])
        return self.fault(
            "prompt",
            f"is `{name}` the prompt? Set data.columns.prompt={name}, or data.ignore={_listed(others)}",
            shown(look(self.row, name)),
        )

    def other_texts(self) -> list[str]:
        """The columns with text or messages that nobody has read; one of them may be the prompt. An id is one word."""
        unread = self.row.unread()
        return [name for name in text_columns(unread) if name != "id" or len(str(unread[name]).split()) > 1]

    def in_turn(self, prompt: tuple[Message, ...]) -> bool:
        """Whether the user speaks first and last, with at most one system message, at the start. The chat template checks
        the rest."""
        before = len(self.faults)
        roles = [m.role for m in prompt[prompt[0].role == "system" :]]
        if not (roles and roles[0] == roles[-1] == "user" and "system" not in roles):
            self.fault("prompt", "wrong role order", f"{_roles(prompt)}; the user speaks first and last")
        for i, message in enumerate(prompt):
            if message.role != "system" and not message.content.strip():
                self.fault(f"prompt[{i}]", "empty prompt", _short(message.content))
        return len(self.faults) == before

    def check_unread(self, draft: Draft) -> None:
        """Record a fault for every column with meaning that nobody read and whose text does not stand in the prompt."""
        asked = words_of(draft.prompt)
        for name, value in self.row.unread().items():
            if changes_what_is_asked(name, value, asked):
                self.fault(name, f"a column with meaning that is not read; {_way_out(name)}", shown(value))


def _way_out(name: str) -> str:
    """What to set for a column that no shape reads."""
    way = f"data.ignore=[{name}] leaves it out"
    return (
        f"data.columns.prompt=[{name},prompt] puts it before the prompt, {way}"
        if plain_name(name) in TEXTS_WITH_MEANING
        else way
    )


def _only(value: Any) -> Any:
    """The text of one user's message around which a chat template or a transcript stands; any other value as it is."""
    if not isinstance(value, (list, tuple)) or len(value) != 1:
        return value
    only = value[0] if isinstance(value[0], Mapping) else {}
    text = only.get("content", only.get("value"))
    if only.get("role", only.get("from")) not in ("user", "human") or not isinstance(text, str):
        return value
    split = split_turns(text, keep_open=True)
    return text if split and (split.template or split.turns[-1] == ("assistant", "")) else value


def standings(votes: Sequence[Sequence[float]]) -> list[int]:
    """Of each answer: how many answers it beats less how many beat it, over all votes."""
    ordered = [sorted(vote) for vote in votes]
    return [
        sum(bisect_left(o, v[i]) + bisect_right(o, v[i]) - len(o) for o, v in zip(ordered, votes, strict=True))
        for i in range(len(votes[0]))
    ]


def dense_ranks(values: Sequence[float]) -> tuple[int, ...]:
    """Ranks from 1 without gaps; the lowest value has rank 1, and equal values have one rank."""
    places = {value: place for place, value in enumerate(sorted(set(values)), start=1)}
    return tuple(places[value] for value in values)


def number_or_none(value: Any) -> float | None:
    """A finite number, also written as text; else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _listed(names: Sequence[str]) -> str:
    return "[" + ",".join(names) + "]"


def _bare(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(m.role, m.content.strip()) for m in messages]


def _difference(first: Sequence[Message], second: Sequence[Message]) -> str:
    for i, (a, b) in enumerate(zip(_bare(first), _bare(second), strict=False)):
        if a != b:
            return f"message {i}: {_short(a[1])} and {_short(b[1])}"
    return f"{len(first)} and {len(second)} earlier messages"


def _roles(messages: Iterable[Message]) -> str:
    return ", ".join(m.role for m in messages) or "no message"
