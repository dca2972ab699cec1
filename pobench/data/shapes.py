"""Recognise the layout (`Shape`) of a preference file and read its rows as preferences."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pobench.data.rows import (
    _ANSWERS,
    _SCORES,
    Fault,
    Found,
    Message,
    Preference,
    Row,
    _kind,
    _short,
    read_rows,
    refuse,
    shared_start,
)
from pobench.errors import PobenchError, nearest

# ---------------------------------------------------------------- one row
TIE = "tie"

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_PROMPTS = ("prompt", "instruction", "question", "conversations")

_TEXTS = ("response", "text", "content", "completion", "output")
_SCORE_IN_ANSWER = ("score", "overall_score", "rating", "fine-grained_score")
_TURN = re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):")
_MESSAGES_AS_TEXT = re.compile(r"\s*\[\s*\{\s*['\"](role|content|from|value)['\"]\s*:")


class _Draft(NamedTuple):
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


class _Numbered(NamedTuple):
    row: int
    id: str | None  # the row's own
    draft: _Draft


class _Answer(NamedTuple):
    head: tuple[Message, ...]  # the conversation before it, where the field holds that too
    text: str


class _Reader:
    """Reads one row. Every method returns None after it has recorded a fault."""

    def __init__(self, number: int, row: Mapping[str, Any]) -> None:
        self.number, self.row, self.faults, self.note = number, row, list[Fault](), ""

    def fault(self, field: str, problem: str, got: str = "") -> Any:
        """Record a fault; return None, so that a method can return the call."""
        self.faults.append(Fault(self.number, field, problem, got))

    def wrong(self, field: str, problem: str, value: Any) -> Any:
        """Record a fault that shows the value; a missing value is shown as "null"."""
        if value is None:
            return self.fault(field, "null")
        return self.fault(field, problem, f"{_kind(value)} {_short(value)}")

    def text(self, field: str, value: Any, empty: str = "empty answer") -> str | None:
        if not isinstance(value, str):
            return self.wrong(field, "not text", value)
        if not value.strip():
            return self.fault(field, empty, _short(value))
        if _MESSAGES_AS_TEXT.match(value):
            return self.fault(field, "chat messages written as text; store them as JSON", _short(value))
        return value if self.is_utf8(field, value) else None

    def is_utf8(self, field: str, value: str) -> bool:
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
        messages, before = list[Message](), len(self.faults)
        for i, turn in enumerate(turns):
            place = f"{field}[{i}]" if len(turns) > 1 else field
            if not isinstance(turn, Mapping) or not ("role" in turn or "from" in turn):
                self.fault(place, "not a message", f"{_kind(turn)} {_short(turn)}")
                continue
            role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
            role = _ROLES.get(role, role) if isinstance(role, str) else role
            if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
                content = "".join(str(p.get("text", "")) for p in content)
            if role not in ("system", "user", "assistant"):
                self.fault(place, "unknown role", f"{_short(role)}; allowed system, user, assistant")
            elif role == "system" and isinstance(
                content, str
            ):  # may be empty: some models expect an empty system message
                if self.is_utf8(place, content):
                    messages.append(Message(role, content))
            elif (text := self.text(place, content, "empty prompt" if role == "user" else "empty answer")) is not None:
                messages.append(Message(role, text))
        return tuple(messages) if len(self.faults) == before else None

    def prompt(self) -> tuple[Message, ...] | None:
        """The conversation before the answer, from the first field of `_PROMPTS`; `input` is appended to `instruction`."""
        name = next(k for k in _PROMPTS if k in self.row)
        value = self.row[name]
        turns: tuple[Message, ...] | None
        if isinstance(value, (list, tuple, Mapping)):
            turns = self.messages(name, value, "empty prompt")
        elif (text := self.text(name, value, "empty prompt")) is None:
            turns = None
        elif is_transcript(text):
            turns = transcript(text)
        else:
            extra = self.row.get("input") if name == "instruction" else None
            if isinstance(extra, str) and extra.strip() and self.is_utf8("input", extra):
                text = f"{text}\n\n{extra}"
            turns = (Message("user", text),)
        system = self.row.get("system") or self.row.get("system_prompt")
        if turns and isinstance(system, str) and turns[0].role != "system" and self.is_utf8("system", system):
            turns = (Message("system", system), *turns)
        return turns

    def answer(self, field: str, value: Any) -> _Answer | None:
        """The final assistant message and the messages before it; a plain text has none before it."""
        if not isinstance(value, (list, tuple, Mapping)):
            text = self.text(field, value)
            if text is None or not is_transcript(text):
                return None if text is None else _Answer((), text)
            turns: tuple[Message, ...] | None = transcript(text, keep_open=True)
        else:
            turns = self.messages(field, value)
        if turns is None:
            return None
        if turns[-1].role != "assistant":
            return self.fault(field, "wrong role order", f"{_roles(turns)}; the last message must be the assistant's")
        return None if self.text(field, turns[-1].content) is None else _Answer(turns[:-1], turns[-1].content)

    def pair(self, chosen: _Answer | None, rejected: _Answer | None, *, has_prompt: bool = True) -> _Draft | None:
        """Two answers to one prompt. The prompt is in its own field, before each answer, or in both places."""
        prompt = self.prompt() if has_prompt else ()
        if chosen is None or rejected is None or prompt is None:
            return None
        heads = [answer.head for answer in (chosen, rejected) if answer.head]
        if len(heads) == 2 and _bare(heads[0]) != _bare(heads[1]):
            return self.fault("rejected", "prompt differs between chosen and rejected", _difference(*heads))
        if heads and prompt:
            turns, inside = ([turn for turn in _bare(m) if turn[0] != "system"] for m in (prompt, heads[0]))
            if turns != inside and not (
                len(turns) == 1 and turns[0] in inside
            ):  # one of many: UltraFeedback's `prompt`
                return self.fault("prompt", "prompt differs from the one inside the answers", _short(turns[-1][1]))
        if heads:
            own_system = prompt[:1] if prompt and prompt[0].role == "system" != heads[0][0].role else ()
            prompt = (*own_system, *heads[0])
        if not prompt:
            return self.fault("prompt", "empty prompt", "answers without an earlier message")
        return _Draft(prompt, chosen.text, rejected.text) if self.in_turn(prompt) else None

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


# ---------------------------------------------------------------- shapes
def _read_pair(row: _Reader) -> _Draft | None:
    return row.pair(*(row.answer(name, row.row[name]) for name in ("chosen", "rejected")))


def _read_shared(row: _Reader) -> _Draft | None:
    """`chosen` and `rejected` contain the prompt: as messages, HH-RLHF transcripts, or texts with a common beginning."""
    both = [row.row["chosen"], row.row["rejected"]]
    chosen, rejected = (row.answer(name, row.row[name]) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None or chosen.head or rejected.head:
        return row.pair(chosen, rejected, has_prompt=False)
    if not all(isinstance(value, str) for value in both):
        return row.fault("prompt", "missing field", "answers without an earlier message")
    cut = shared_start(*both)
    while cut and not all(value[cut : cut + 1].isspace() for value in both):  # back to the end of a shared word
        cut -= 1
    if not both[0][:cut].strip():
        return row.fault("prompt", "missing field", "chosen and rejected that share no beginning")
    row.note = "prompt taken from the words both answers begin with"
    return _Draft((Message("user", both[0][:cut]),), both[0][cut:], both[1][cut:])


def _read_alpaca(row: _Reader) -> _Draft | None:
    """`preference` 1 or 2. AlpacaEval also writes values between them, and a tie as 1.5, in older files as 0."""
    value = row.row["preference"]
    preference = _number(value)
    first, second = (row.answer(name, row.row[name]) for name in ("output_1", "output_2"))
    if preference is None or not (preference == 0 or 1 <= preference <= 2):
        return row.wrong("preference", "preference is neither 1 nor 2", value)
    if preference in (0, 1.5):
        row.note = TIE
        return None
    return row.pair(first, second) if preference < 1.5 else row.pair(second, first)


def _read_listed(row: _Reader) -> _Draft | None:
    """`output: [better, worse]`."""
    value = row.row["output"]
    if not isinstance(value, list) or len(value) != 2:
        return row.wrong("output", "not a list of two answers", value)
    return row.pair(*(row.answer(f"output[{i}]", text) for i, text in enumerate(value)))


def _read_ratings(row: _Reader) -> _Draft | None:
    """Rated answers: the best against the worst, the first among equals; no pair if all ratings are equal."""
    name = next(k for k in _ANSWERS if k in row.row)
    answers = row.row[name]
    if not isinstance(answers, list) or len(answers) < 2:
        return row.wrong(name, "not a list of two or more answers", answers)
    scores: Any
    if all(isinstance(answer, Mapping) for answer in answers):
        scores = [next((a[k] for k in _SCORE_IN_ANSWER if a.get(k) is not None), None) for a in answers]
        answers = [next((a[k] for k in _TEXTS if k in a), None) for a in answers]
    else:
        scores = next((row.row[k] for k in _SCORES if k in row.row), None)
    if not isinstance(scores, list) or len(scores) != len(answers):
        return row.fault(name, "not one score per answer", f"{len(answers)} answers, scores {_short(scores)}")
    numbers = [number for score in scores if (number := _number(score)) is not None]
    if len(numbers) < len(scores):
        return row.fault(name, "score is no number", _short(next(s for s in scores if _number(s) is None)))
    if min(numbers) == max(numbers):
        row.note = TIE
        return None
    places = (numbers.index(max(numbers)), numbers.index(min(numbers)))
    return row.pair(*(row.answer(f"{name}[{i}]", answers[i]) for i in places))


def _read_unpaired(row: _Reader) -> _Draft | None:
    """One answer, put on both sides; `_pair_up` later uses `label` to choose the side."""
    answer = row.answer("completion", row.row["completion"])
    if _label(row.row["label"]) is None:
        row.wrong("label", "label is neither true nor false", row.row["label"])
    return row.pair(answer, answer)


def _label(value: Any) -> bool | None:
    return {"true": True, "false": False, "1": True, "0": False}.get(str(value).strip().lower())


@dataclass(frozen=True)
class Shape:
    """A known layout of fields. needs: groups of names; a row must have one name of each group."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    example: str
    read: Callable[[_Reader], _Draft | None]

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        return [group[0] for group in self.needs if not any(name in row for name in group)]


_BOTH = (("chosen",), ("rejected",))
SHAPES = (
    Shape("preference", (_PROMPTS, *_BOTH), "prompt, chosen, rejected", _read_pair),
    Shape(
        "shared prompt",
        _BOTH,
        "chosen, rejected that both begin with the prompt (messages or transcripts)",
        _read_shared,
    ),
    Shape(
        "alpaca",
        (("instruction", *_PROMPTS), ("output_1",), ("output_2",), ("preference",)),
        "instruction, input, output_1, output_2, preference (1 or 2)",
        _read_alpaca,
    ),
    Shape("ratings in a list", (_PROMPTS, _ANSWERS, _SCORES), "prompt, responses, scores", _read_ratings),
    Shape("rated completions", (_PROMPTS, _ANSWERS), "instruction, completions with response and score", _read_ratings),
    Shape(
        "unpaired", (_PROMPTS, ("completion",), ("label",)), "prompt, completion, label (true or false)", _read_unpaired
    ),
    Shape(
        "two outputs", (("instruction", *_PROMPTS), ("output",)), "instruction, output: [better, worse]", _read_listed
    ),
)


def shape_of(row: Mapping[str, Any]) -> Shape | None:
    """The first known shape whose fields the row has; None if no shape fits."""
    shape = next((s for s in SHAPES if not s.missing(row)), None)
    # an instruction with one output is supervised data, not a preference
    return None if shape is SHAPES[-1] and isinstance(row.get("output"), str) else shape


def is_transcript(text: str) -> bool:
    """Whether `text` is an HH-RLHF transcript: Human: … Assistant: …"""
    return text.lstrip().startswith("Human:") and bool(re.search(r"\n\n\s*Assistant:", text))


def transcript(text: str, keep_open: bool = False) -> tuple[Message, ...]:
    """The turns of an HH-RLHF transcript. An empty last `Assistant:` is dropped unless `keep_open`."""
    parts = _TURN.split(text)[1:]
    turns = [
        Message("user" if role == "Human" else "assistant", content.strip())
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if not keep_open and len(turns) > 1 and turns[-1] == ("assistant", ""):
        turns.pop()
    return tuple(turns)


# ---------------------------------------------------------------- recognition
def load_preferences(path: Path | str, *, duplicates: Literal["drop", "keep"] = "drop") -> Found:
    """`recognise(read_rows(path))`. Raises PobenchError if the file cannot be read or none of its rows is known."""
    return recognise(read_rows(path), source=Path(path).name, duplicates=duplicates)


def recognise(rows: Iterable[Row], *, source: str = "rows", duplicates: Literal["drop", "keep"] = "drop") -> Found:
    """Rows as preferences. The file's shape is the shape of most rows; a row of another shape is a fault.

    duplicates: "drop" keeps the first of equal rows. Duplicates are noted either way. Rows that contradict an earlier one
    (the same two answers swapped) are noted and kept. Raises PobenchError if there are no rows, if no row has a known
    shape, or if no prompt of unpaired rows has both a good and a bad answer.
    """
    numbered = list(rows)
    faults = [row for _, row in numbered if isinstance(row, Fault)]
    readable = [(number, row) for number, row in numbered if not isinstance(row, Fault)]
    if not numbered:
        raise PobenchError(f"{source}: no rows")
    shape = _shape_of_file(readable, faults, source)
    loaded = Found([], faults, {}, len(numbered), shape.name, source)
    notes: defaultdict[str, list[int]] = defaultdict(list)
    fitting = []
    for number, row in readable:
        own = shape_of(row)
        if own is not None and own is not shape and not set(own.needs) <= set(shape.needs):
            faults.append(Fault(number, "", f"another shape than the rest of the file ({shape.example})", _fields(row)))
        elif missing := shape.missing(row):
            faults += [
                Fault(number, name, "missing field", _fields(row) + nearest(name, row).rstrip("?")) for name in missing
            ]
        else:
            fitting.append((number, row))
    repeated = _repeat_the_prompt([row for _, row in fitting])
    drafts = list[_Numbered]()
    labels = list[bool | None]()
    for number, row in fitting:
        if repeated and _repeat_the_prompt([row]):
            start = len(row["prompt"])
            row = {**row, "chosen": row["chosen"][start:].lstrip(), "rejected": row["rejected"][start:].lstrip()}
            notes["prompt repeated at the start of both answers, taken off"].append(number)
        reader = _Reader(number, row)
        draft = shape.read(reader)
        if draft is not None and not reader.faults:
            if shape.name != "unpaired" and draft.chosen.strip() == draft.rejected.strip():
                reader.fault("rejected", "identical answers", _short(draft.rejected))
            else:
                drafts.append(_Numbered(number, _own_id(row), draft))
                labels.append(_label(row.get("label")))
        if reader.note and not reader.faults:
            notes[reader.note].append(number)
        faults += reader.faults
    if shape.name == "unpaired" and drafts:
        drafts = _pair_up(drafts, labels, notes, source)
    faults.sort(key=lambda fault: fault.row)
    return replace(loaded, preferences=_unique(drafts, notes, duplicates == "drop"), notes=dict(notes))


def _shape_of_file(rows: Sequence[tuple[int, Mapping[str, Any]]], faults: Sequence[Fault], source: str) -> Shape:
    shapes = Counter(shape.name for _, row in rows if (shape := shape_of(row)))
    if shapes:
        name = shapes.most_common(1)[0][0]
        return next(shape for shape in SHAPES if shape.name == name)
    if not rows:
        refuse(faults, source=source, rows=len(faults))
    number, row = rows[0]
    close = min(SHAPES, key=lambda s: (len(s.missing(row)) / len(s.needs), -len(s.needs)))
    known = "\n".join(f"  {shape.example}" for shape in SHAPES)
    if len(close.missing(row)) == len(close.needs):
        close = SHAPES[0]
    renames = "".join(f"\n  {name!r} is missing{nearest(name, row)}" for name in close.missing(row))
    if not renames:  # instruction and one output
        renames = "\n  'output' holds one answer; a preference needs two: a chosen and a rejected one"
    raise PobenchError(
        f"{source}: no row has a known shape. Row {number} holds {_fields(row)}. The nearest shape is {close.example}:"
        f"{renames}\nRename or add the fields. Known shapes:\n{known}"
    )


def _repeat_the_prompt(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every answer in the file begins with its prompt; if so, the prompt is cut off the answers."""
    texts: list[list[Any]] = [[row.get(name) for name in ("prompt", "chosen", "rejected")] for row in rows]
    complete = [row for row in texts if all(isinstance(text, str) and text.strip() for text in row)]
    return bool(complete) and all(a.startswith(prompt) and b.startswith(prompt) for prompt, a, b in complete)


def _pair_up(
    drafts: Sequence[_Numbered], labels: Sequence[bool | None], notes: dict[str, list[int]], source: str
) -> list[_Numbered]:
    """Pair the first good answer to a prompt with the first bad one, the second with the second; note the rest."""
    sides: dict[tuple[Message, ...], tuple[list[_Numbered], list[_Numbered]]] = {}
    for numbered, label in zip(drafts, labels, strict=True):
        sides.setdefault(numbered.draft.prompt, ([], []))[0 if label else 1].append(numbered)
    pairs, unpaired = [], []
    for good, bad in sides.values():
        matches = list(zip(good, bad, strict=False))
        pairs += [_Numbered(g.row, None, g.draft._replace(rejected=b.draft.chosen)) for g, b in matches]
        unpaired += [numbered.row for numbered in good[len(matches) :] + bad[len(matches) :]]
    if not pairs:
        raise PobenchError(
            f"{source}: {len(drafts)} unpaired rows (prompt, completion, label), and no prompt has both a good and a "
            "bad completion. Every loss here compares two answers to one prompt: add the other answers, or make pairs "
            "with `pobench data onpolicy`."
        )
    if unpaired:
        notes["unpaired row without a partner"] = sorted(unpaired)
    return sorted(pairs, key=lambda pair: pair.row)


def _unique(drafts: Iterable[_Numbered], notes: defaultdict[str, list[int]], drop: bool) -> list[Preference]:
    """Preferences without duplicates (where `drop`), each under an id of its own.

    The id is the row's, or the first 16 hex digits of a hash of its text. A repeated id names a group: its pairs are
    `id#1`, `id#2`, … in row order.
    """
    drafts_by_name, seen = list[tuple[str, _Numbered]](), set[str]()
    for numbered in drafts:
        row, own, draft = numbered
        content, swapped = _digest(draft), _digest(draft._replace(chosen=draft.rejected, rejected=draft.chosen))
        if content in seen:
            notes["duplicated row"].append(row)
            if drop:
                continue
        elif swapped in seen:
            notes["contradicts an earlier row"].append(row)
        seen.add(content)
        drafts_by_name.append((own or content[:16], numbered))
    count = Counter(name for name, _ in drafts_by_name)
    ids, place = {name for name in count if count[name] == 1}, Counter[str]()
    preferences = []
    for name, (row, _, draft) in drafts_by_name:
        if count[name] > 1:
            group = name
            while (name := f"{group}#{place[group] + 1}") in ids:  # another row's own id
                place[group] += 1
            place[group] += 1
            ids.add(name)
        preferences.append(Preference(name, *draft, row))
    return preferences


# ---------------------------------------------------------------- words for messages
def _digest(draft: _Draft) -> str:
    return hashlib.sha256(json.dumps(draft, ensure_ascii=True).encode()).hexdigest()


def _own_id(row: Mapping[str, Any]) -> str | None:
    """The row's `id` if it is a number or printable text, as it appears in files, tables and messages."""
    own = row.get("id")
    usable = isinstance(own, (str, int)) and not isinstance(own, bool) and str(own).strip() and str(own).isprintable()
    return str(own) if usable else None


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _bare(messages: Sequence[Message]) -> list[tuple[str, str]]:
    return [(m.role, m.content.strip()) for m in messages]


def _difference(first: Sequence[Message], second: Sequence[Message]) -> str:
    for i, (a, b) in enumerate(zip(_bare(first), _bare(second), strict=False)):
        if a != b:
            return f"message {i}: {_short(a[1])} and {_short(b[1])}"
    return f"{len(first)} and {len(second)} earlier messages"


def _roles(messages: Iterable[Message]) -> str:
    return ", ".join(m.role for m in messages) or "no message"


def _fields(row: Mapping[str, Any]) -> str:
    return "the fields " + (", ".join(_short(k, 24) for k in list(row)[:12]) or "(none)")
