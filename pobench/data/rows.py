"""Read files of rows (JSONL, JSON, Parquet, Arrow, CSV, TSV), and the types that reading preferences needs.

    file -> read_rows -> recognise (shapes.py) -> Found(preferences, faults, notes)

A row's number is the one a person counts: the line in JSONL, the place from 1 in a JSON list, a Parquet or an Arrow table,
the row of a spreadsheet in CSV (the header is row 1, so the first preference is row 2). Where a data set has several files,
the number names the file too (`RowNumber`).
A bad row raises nothing: it becomes a `Fault`, and `refuse` lists all faults in one message.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

from pobench.errors import PobenchError
from pobench.row_files import ENDINGS, RowFiles, kind_of
from pobench.settings.schema import PairsFrom


class Message(NamedTuple):
    """One turn of a conversation. role: "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = str | Sequence[Message | Mapping[str, Any]]  # a text, or chat messages


def messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as chat messages; a plain text becomes one user message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    turns = [m._asdict() if isinstance(m, Message) else m for m in prompt]
    return [{"role": str(m["role"]), "content": str(m["content"])} for m in turns]


def as_text(prompt: Prompt) -> str:
    """A prompt as text for people; several turns each start with their role."""
    turns = messages(prompt)
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


class Preference(NamedTuple):
    """One preference as text: `chosen` and `rejected` are what the assistant may say after `prompt`.

    id: the row's own `id`, else a hash of its text, so that it survives reordering. prompt: a system message may
    stand first, then user and assistant take turns, the user last. row: the number a person counts in the file. scores: the
    data's ratings of chosen and rejected, on its own scale; None where it has none.
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    row: int
    scores: tuple[float, float] | None = None


class Ranking(NamedTuple):
    """A prompt and k ranked answers as text, at least two, all different.

    id, prompt, row: as of a `Preference`; the id is that of the pair of the best and the worst answer. ranks: 1 is the best;
    answers of equal rank tie, but not all of them. scores: the data's ratings, which order the answers as the ranks do; None
    where it has none.
    """

    id: str
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    row: int
    scores: tuple[float, ...] | None = None


class Labelled(NamedTuple):
    """A prompt and one answer, which is desirable or not (label), as text. score: the data's rating; None where it has none."""

    id: str
    prompt: tuple[Message, ...]
    answer: str
    label: bool
    row: int
    score: float | None = None


def places_of_pairs(ranks: Sequence[int], how: PairsFrom) -> list[tuple[int, int]]:
    """(better, worse) places of a list's answers that make a pair; answers of equal rank make none.

    "best_worst": one pair, of the first of the best with the first of the worst. "all": every two. "adjacent": each answer
    with every one of the next worse rank.
    """
    if how == "best_worst":
        best, worst = ranks.index(min(ranks)), ranks.index(max(ranks))
        return [(best, worst)] if ranks[best] < ranks[worst] else []
    behind = dict(pairwise(sorted(set(ranks))))  # rank → the next worse one
    order = sorted(range(len(ranks)), key=lambda i: ranks[i])
    pairs = [(i, j) for i in order for j in order if ranks[i] < ranks[j]]
    return pairs if how == "all" else [(i, j) for i, j in pairs if behind[ranks[i]] == ranks[j]]


def pair_id(of_list: str, better: int, worse: int) -> str:
    """The id of one of several pairs of a list, by its answers' places."""
    return f"{of_list}#{better + 1}-{worse + 1}"


class RowNumber(int):
    """A row's number among the rows of several files, which orders and tells them apart. As text: its file, and the number that
    a person counts there."""

    file: str
    row: int

    def __new__(cls, before: int, file: str, row: int) -> RowNumber:
        """before: the numbers that earlier files take."""
        number = super().__new__(cls, before + row)
        number.file, number.row = file, row
        return number

    def __getnewargs__(self) -> tuple[int, str, int]:  # type: ignore[override]
        return int(self) - self.row, self.file, self.row

    def __str__(self) -> str:
        return f"{self.file}:{self.row}"


def preference_lines(rows: Iterable[Preference | Ranking | Labelled]) -> str:
    """Rows as JSON lines, each with id, prompt (chat messages), row, and file where there are several.

    Preferences: chosen, rejected, and score_chosen, score_rejected where there are ratings. Lists: answers, a list of text,
    rank, and score where there are ratings. Single answers: completion, label, and score where there is one.
    """
    lines = []
    for one in rows:
        place = {"row": one.row.row, "file": one.row.file} if isinstance(one.row, RowNumber) else {"row": one.row}
        line = {"id": one.id, "prompt": messages(one.prompt), **_said(one), **place, **_rated(one)}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _said(row: Preference | Ranking | Labelled) -> dict[str, Any]:
    if isinstance(row, Preference):
        return {"chosen": row.chosen, "rejected": row.rejected}
    if isinstance(row, Labelled):
        return {"completion": row.answer, "label": row.label}
    answers = [{"text": text, "rank": rank} for text, rank in zip(row.answers, row.ranks, strict=True)]
    for answer, score in zip(answers, row.scores or (), strict=False):
        answer["score"] = score  # type: ignore[assignment]
    return {"answers": answers}


def _rated(row: Preference | Ranking | Labelled) -> dict[str, float]:
    if isinstance(row, Preference):
        return dict(zip(("score_chosen", "score_rejected"), row.scores or (), strict=False))
    return {"score": row.score} if isinstance(row, Labelled) and row.score is not None else {}


class Fault(NamedTuple):
    """The reason why a row cannot be used. problem: one of a fixed set of phrases, so that faults can be counted by kind."""

    row: int
    field: str
    problem: str
    got: str

    def __str__(self) -> str:
        where = f"row {self.row}, {self.field!r}" if self.field else f"row {self.row}"
        return f"{where}: {self.problem}" + (f"; got {self.got}" if self.got else "")


@dataclass(frozen=True)
class Found:
    """The contents of a preference file. notes: rows left out or changed without a fault (ties, …): reason -> row numbers.
    unread: column that was not read -> rows in which it holds something. lists: where its rows rank or rate several answers;
    preferences are made of them as `pairs_from` says. answers: where its rows label one answer each; preferences are those of
    them that meet at a prompt."""

    preferences: Sequence[Preference]
    faults: list[Fault] = field(default_factory=list)
    notes: dict[str, list[int]] = field(default_factory=dict)
    rows: int = 0
    shape: str = ""
    source: str = "rows"
    unread: dict[str, int] = field(default_factory=dict)
    lists: Sequence[Ranking] = ()
    answers: Sequence[Labelled] = ()
    pairs_from: PairsFrom = "best_worst"


# ---------------------------------------------------------------- reading
Row = tuple[int, "dict[str, Any] | Fault"]

_JSON_LINES, _TABLES = (".jsonl", ".ndjson"), (".csv", ".tsv")
_AT_ONCE = 1024  # rows of a table


def read_rows(source: RowFiles | Path | str) -> list[Row]:
    """The numbered rows of a JSONL, JSON (list), Parquet, Arrow, CSV or TSV file, or of several; text may be gzipped.

    A line that is not JSON or not UTF-8 becomes a Fault. CSV cells may hold messages and lists as JSON.
    Raises PobenchError if a file is absent, has another ending, or cannot be read at all.
    """
    return list(RowStream(source))


class RowStream:
    """The same rows, read anew by every loop. Only JSON that is no JSON lines, and UTF-16, is held as a whole."""

    def __init__(self, source: RowFiles | Path | str) -> None:
        self._files = source if isinstance(source, RowFiles) else RowFiles("", (Path(source),))

    def __iter__(self) -> Iterator[Row]:
        if len(self._files.paths) == 1:
            yield from _rows_of(self._files.paths[0])
            return
        last = 0
        for path in self._files.paths:
            before = last
            for row_number, row in _rows_of(path):
                number = RowNumber(before, self._files.label(path), row_number)
                last = int(number)
                yield number, row._replace(row=number) if isinstance(row, Fault) else row


def _rows_of(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise PobenchError(f"data: no file {str(path)!r}")
    kind = kind_of(path)
    if kind not in ENDINGS:
        raise PobenchError(f"data: {path.name!r} is no {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]} file")
    try:
        if kind in (".parquet", ".arrow"):
            yield from enumerate(_table(path, kind), start=1)
            return
        with path.open("rb") as opened:
            yield from _text_rows(opened, path, kind)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pyarrow's errors are OSError or ValueError
        raise PobenchError(f"data: {path.name!r} cannot be read: {_short(str(error))}") from error


def _text_rows(opened: IO[bytes], path: Path, kind: str) -> Iterator[Row]:
    zipped = path.suffix == ".gz" or opened.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
    raw: Any = io.BufferedReader(gzip.GzipFile(fileobj=opened)) if zipped else opened
    if raw.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raw = io.BufferedReader(io.BytesIO(raw.read().decode("utf-16").encode()))
    if raw.peek(3)[:3] == b"\xef\xbb\xbf":
        raw.read(3)
    if kind in _TABLES:
        yield from _table_rows(raw, "\t" if kind == ".tsv" else ",")
    else:
        yield from _json_lines(raw) if kind in _JSON_LINES else _json_rows(raw.read(), path.name)


def _table(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, or of an Arrow stream or file."""
    import pyarrow
    import pyarrow.parquet

    with contextlib.ExitStack() as opened:
        if kind == ".parquet":
            batches: Any = opened.enter_context(pyarrow.parquet.ParquetFile(path)).iter_batches(_AT_ONCE)
        else:
            file = opened.enter_context(pyarrow.memory_map(str(path)))
            as_file = file.read(6) == b"ARROW1"
            file.seek(0)
            reader = pyarrow.ipc.open_file(file) if as_file else pyarrow.ipc.open_stream(file)
            batches = map(reader.get_batch, range(reader.num_record_batches)) if as_file else reader
        for batch in batches:
            for start in range(0, batch.num_rows, _AT_ONCE):
                yield from batch.slice(start, _AT_ONCE).to_pylist()


def _json_lines(lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _json_line(number, line.removesuffix(b"\n"))


def _json_line(number: int, line: bytes) -> dict[str, Any] | Fault:
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        return Fault(number, "", "broken UTF-8", f"byte {line[error.start]:#04x} at column {error.start + 1}")
    except json.JSONDecodeError as error:
        return Fault(number, "", "broken JSON", f"{error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Fault(number, "", "broken JSON", _short(str(error)))
    return value if isinstance(value, dict) else Fault(number, "", "not a row", f"{_kind(value)} where {{…}} is needed")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError if a key stands twice; Python would keep the last value in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {next(k for k, n in Counter(k for k, _ in pairs).items() if n > 1)!r} stands twice")
    return found


def _json_rows(raw: bytes, name: str) -> list[Row]:
    try:
        # undecodable bytes become lone surrogates, so that only the rows with them are bad
        value = json.loads(raw.decode("utf-8", errors="surrogateescape"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        if raw.lstrip().startswith(b"{"):
            return list(_json_lines(raw.split(b"\n")))  # JSON lines under the name .json, as many hubs serve them
        raise PobenchError(f"data: {name!r} is no JSON: {_short(str(error))}") from error
    if isinstance(value, dict):
        inner = list(value.values())  # {"data": [rows]}, or a single row
        wrapped = len(inner) == 1 and isinstance(inner[0], list) and all(isinstance(r, dict) for r in inner[0])
        value = inner[0] if wrapped else [value]
    if not isinstance(value, list):
        raise PobenchError(f"data: {name!r} holds {_kind(value)}, not a list of rows")
    return [
        (i, row if isinstance(row, dict) else Fault(i, "", "not a row", f"{_kind(row)} where {{…}} is needed"))
        for i, row in enumerate(value, start=1)
    ]


def _table_rows(raw: IO[bytes], delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape", newline="")  # only \n and \r end a line
    reader = csv.DictReader(text, delimiter=delimiter)
    try:
        if twice := [name for name, n in Counter(reader.fieldnames or ()).items() if n > 1]:
            raise PobenchError(f"data: two columns are called {twice[0]!r}; rename one of them")
        for number, row in enumerate(reader, start=2):
            if None in row:
                yield number, Fault(number, "", "more cells than columns", f"{len(row[None])} too many")
            else:
                yield number, {key: _cell(key, value) for key, value in row.items()}
    except csv.Error as error:
        raise PobenchError(f"data: line {reader.line_num} is no CSV: {error}") from error


def _cell(column: str, value: str | None) -> Any:
    """The value of a CSV cell. Messages and lists are decoded; an answer that only looks like JSON stays text."""
    if value is None or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        decoded = json.loads(value)
    except (ValueError, RecursionError):
        return value
    first = decoded[0] if isinstance(decoded, list) and decoded else decoded
    keys = first.keys() if isinstance(first, dict) else set[str]()
    is_known = keys >= {"role", "content"} or keys >= {"from", "value"} or keys & {"messages", "full_text"}
    return decoded if is_known or column in _STRUCTURED else value


ANSWERS = ("completions", "responses", "all_generated_responses", "generations", "answers")
SCORES = ("scores", "ratings", "all_rm_scores")
RANKS = ("ranks", "rankings")
_STRUCTURED = (*ANSWERS, *SCORES, *RANKS, "output", "rating", "history", "annotations", "data", "tools", "images")


def shared_start(*sequences: Sequence[Any]) -> int:
    """The length of the common prefix of all sequences."""
    length = min(map(len, sequences))
    first = sequences[0][:length]
    if all(other[:length] == first for other in sequences[1:]):
        return length
    return next(i for i, elements in enumerate(zip(*sequences, strict=False)) if len(set(elements)) > 1)


def refuse(
    faults: Sequence[Fault], *, source: str, rows: int, shown: int = 20, option: str = "data.on_bad_row"
) -> None:
    """Raise one PobenchError that lists the first `shown` faults and counts all of them by kind. No faults: return.

    option: the setting that can be set to `drop` to continue without the bad rows.
    """
    if not faults:
        return
    bad = len({fault.row for fault in faults})
    lines = [
        f"{source}: {bad} of {rows} rows {'is' if bad == 1 else 'are'} bad ({option}: drop continues without them)"
    ]
    lines += [f"  {fault}" for fault in faults[:shown]]
    if len(faults) > shown:
        lines.append(f"  and {len(faults) - shown} more")
    if len(faults) > 1:
        kinds = Counter(fault.problem for fault in faults)
        lines.append("  by kind: " + ", ".join(f"{problem} {count}" for problem, count in kinds.most_common()))
    raise PobenchError("\n".join(lines))


def _kind(value: Any) -> str:
    names = {str: "text", int: "a number", float: "a number", bool: "true/false", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _short(value: Any, width: int = 60) -> str:
    """Untrusted text, escaped and short enough for a line."""
    text = repr(value[: width * 2] if isinstance(value, str) else value)
    return text if len(text) <= width else text[: width - 1] + "…"
