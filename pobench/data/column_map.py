"""Name the columns of a row anew (`data.columns`), leave columns out (`data.ignore`), and find those that nobody read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pobench.data.rows import Message
from pobench.errors import PobenchError, nearest

# Columns that change what an answer answers. A non-empty one that no shape reads is a fault.
_SOURCES = ("context", "contexts", "document", "documents", "passage", "passages")
TEXTS_WITH_MEANING = frozenset(("prompt", "instruction", "question", "query", "input", *_SOURCES))
_MEDIA = tuple(
    f"{kind}{end}" for kind in ("image", "video", "audio") for end in ("", "s", "_path", "_paths", "_url", "_urls")
)
_TALKS = (
    "history",
    "chat_history",
    "conversation_history",
    "dialogue_history",
    "system",
    "system_prompt",
    "system_message",
)
WITH_MEANING = TEXTS_WITH_MEANING.union(
    (*_TALKS, "tools", "functions", "tool_calls", "function_call", *_MEDIA, *(f"rejected_{name}" for name in _MEDIA))
)
_ABSENT = object()


class TrackedRow(dict[str, Any]):
    """A row that remembers which of its columns were read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read = set[str]()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dict; the column counts as read."""
        self.read.add(name)
        return super().get(name, default)

    def peek(self, name: str) -> Any:
        """The column's value, None if absent; it does not count as read."""
        return super().get(name)

    def opened(self, name: str) -> Any:
        """The column's value. The fields of an object become columns under dotted names, so that unread ones are found."""
        value = self[name]
        if isinstance(value, Mapping):
            self.update({f"{name}.{field}": inner for field, inner in value.items()})
        return value

    def unread(self) -> dict[str, Any]:
        """The columns with content that were not read."""
        return {name: value for name, value in self.items() if name not in self.read and not is_empty(value)}


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing: null, blank text, or a list or object of nothing."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_empty, value))
    return value is None or value != value  # a number that is missing is nan


def plain_name(name: str) -> str:
    """A column's name in one spelling, without the objects that it lies in: `input.systemPrompt` is `system_prompt`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+", "_", name.rpartition(".")[2].strip()).lower()


def has_meaning(name: str) -> bool:
    """Whether a column of this name, in any spelling, changes what an answer answers."""
    return plain_name(name) in WITH_MEANING


def changes_what_is_asked(name: str, value: Any, asked: str) -> bool:
    """Whether a column that nobody read has meaning and holds more than words that stand in the prompt."""
    is_text = plain_name(name) in TEXTS_WITH_MEANING.union(_TALKS)
    return has_meaning(name) and not is_empty(value) and not (is_text and repeats(value, asked))


def left_unread(row: Mapping[str, Any], read: Iterable[str], asked: str) -> str:
    """The first column that is not read and changes what is asked; "" if there is none."""
    left = {name: value for name, value in row.items() if name not in set(read)}
    return next((name for name, value in left.items() if changes_what_is_asked(name, value, asked)), "")


def text_columns(row: Mapping[str, Any], before: str = "") -> list[str]:
    """The columns that hold text or a conversation, with dots into objects that are no message."""
    names = list[str]()
    for name, value in row.items():
        if isinstance(value, Mapping) and not value.keys() & {"content", "value", "messages"}:
            names += text_columns(value, f"{before}{name}.")
        elif _holds_text(value):
            names.append(f"{before}{name}")
    return names


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    return (
        any(map(_holds_text, value))
        if isinstance(value, (list, tuple))
        else isinstance(value, str) and bool(value.strip())
    )


def repeats(value: Any, text: str) -> bool:
    """Whether every text of a cell stands in `text` as whole words, so that nothing is lost if the cell is not read."""
    if isinstance(value, str):
        return bool(re.search(rf"(?<!\w){re.escape(value.strip())}(?!\w)", text))
    if isinstance(value, Mapping):
        content = value.get("content", value.get("value", _ABSENT))
        return content is not _ABSENT and repeats(content, text)
    return isinstance(value, (list, tuple)) and all(repeats(part, text) for part in value)


def map_columns(row: Mapping[str, Any], columns: Mapping[str, str | Sequence[str]], ignore: Iterable[str]) -> dict:
    """The row with its columns named as pobench names them, without the ignored ones.

    columns: pobench's name → the row's, with dots into objects; of a list the texts are joined by an empty line, and text in
    front of messages goes into the last of the user's. What a dotted name leaves of its object stays, under dotted names.
    A name that the row lacks gives no column.
    """
    left, new = dict(row), dict[str, Any]()
    for name in ignore:
        _take(left, name)
    sources = {target: [source] if isinstance(source, str) else list(source) for target, source in columns.items()}
    values = {name: _look(left, name) for names in sources.values() for name in names}
    for name in values:
        _take(left, name)
    for target, names in sources.items():
        found = [values[name] for name in names if values[name] is not _ABSENT]
        if found and (len(names) == 1 or len(found) == len(names)):
            new[target] = found[0] if len(found) == 1 else _joined(found)
    for name in [n for n, value in left.items() if isinstance(value, Mapping) and any(f"{n}." in s for s in values)]:
        left |= {f"{name}.{inner}": value for inner, value in left.pop(name).items()}
    return left | new


class ColumnCheck:
    """Looks for the names in `columns`, row by row."""

    def __init__(self, columns: Mapping[str, str | Sequence[str]]) -> None:
        named = {target: [names] if isinstance(names, str) else list(names) for target, names in columns.items()}
        self._missing = {(target, name): None for target, names in named.items() for name in names}
        self._known: dict[str, None] = {}  # columns of the first rows
        self._rows = 0

    def see(self, row: Mapping[str, Any]) -> None:
        for target, name in [pair for pair in self._missing if _look(row, pair[1]) is not _ABSENT]:
            del self._missing[target, name]
        if self._rows < 100:
            self._known |= dict.fromkeys(row)
        self._rows += 1

    def refuse(self, source: str) -> None:
        """Raises PobenchError for a name that no row has had."""
        for target, name in self._missing if self._rows else ():
            raise PobenchError(
                f"{source}: data.columns.{target} names {name!r}, which no row has{nearest(name, self._known)} "
                f"Columns: {', '.join(map(repr, self._known))}"
            )


def look(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, with dots into objects; None if there is none."""
    value = _look(row, name)
    return None if value is _ABSENT else value


def _look(row: Any, name: str) -> Any:
    if isinstance(row, Mapping) and name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    return _look(row[head], rest) if dot and isinstance(row, Mapping) and head in row else _ABSENT


def _take(row: dict[str, Any], name: str) -> None:
    """Remove a column, or what a dotted name means in a copy of its object."""
    if name in row:
        del row[name]
        return
    head, dot, rest = name.partition(".")
    if dot and isinstance(row.get(head), Mapping):
        row[head] = dict(row[head])
        _take(row[head], rest)


def _joined(values: Sequence[Any]) -> Any:
    """Texts joined by an empty line; in front of messages, in the user's last one. Other values become a list."""
    *front, last = [value for value in values if not is_empty(value)] or [""]
    if not all(isinstance(value, str) for value in front):
        return list(values)
    if isinstance(last, str):
        return "\n\n".join([*front, last])
    if isinstance(last, list) and last and isinstance(last[-1], Mapping):
        key = "content" if "content" in last[-1] else "value"
        if isinstance(last[-1].get(key), str):
            return [*last[:-1], {**last[-1], key: "\n\n".join([*front, last[-1][key]])}]
    return list(values)


def words_of(turns: Sequence[Message]) -> str:
    """All text of a prompt, to look into with `repeats`."""
    return "\n".join(turn.content for turn in turns)


def shown(value: Any, width: int = 60) -> str:
    """A cell, short enough for a message."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= width else text[: width - 1] + "…"
