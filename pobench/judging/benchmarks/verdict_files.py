"""Shared by the benchmarks: read files of stored verdicts, collect their faults, and hold a scored result.

A verdict that cannot be read is dropped and counted. A FILE with faults (a field is missing, has another type or is out of
range) is refused, and the message lists every fault with its row.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pobench.data.rows import Fault, read_rows
from pobench.errors import PobenchError, nearest
from pobench.types import Estimate

_ESCAPED = 60  # characters of untrusted text in a message


# ---------------------------------------------------------------- results
class Line(NamedTuple):
    """One number for people: `title  value [low, high]  n`. format: as in f"{value:{format}}". metric: its name in the frame
    `benchmarks`; "": not in the frame."""

    title: str
    estimate: Estimate
    format: str = ".2f"
    note: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Scored:
    """A benchmark's result. lines: for people. values: for machines; None where nothing was measured."""

    benchmark: str
    model: str
    judge: str
    lines: tuple[Line, ...]
    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All values, with None for nan."""
        named = {"benchmark": self.benchmark, "model": self.model, "judge": self.judge}
        return _plain({**named, **self.values, "notes": list(self.notes)})


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- files of verdicts
@dataclass
class Faults:
    """The faults of one file. Equal faults on several rows become one line."""

    source: str
    found: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, row: int, name: str, problem: str, *got: Any) -> None:
        """row: 0 for the whole file. got: the value, shown escaped and shortened."""
        text = "; got ".join([problem, *map(short, got)])
        self.found.setdefault((name, text), []).append(row)

    def refuse(self, shown: int = 20) -> None:
        """Raise one PobenchError that lists the faults; return if there are none."""
        if not self.found:
            return
        lines = []
        for (name, text), rows in self.found.items():
            where = [*([] if rows == [0] else [numbers("row", rows)]), *([repr(name)] if name else [])]
            lines.append(": ".join([*([", ".join(where)] if where else []), text]))
        left = len(lines) - shown
        more = [f"and {left} more"] if left > 0 else []
        raise PobenchError("\n  ".join([f"{self.source} cannot be scored:", *lines[:shown], *more]))


def read(path: Path | str, fields: Sequence[str], optional: Sequence[str] = ()) -> tuple[list[dict[str, Any]], Faults]:
    """The rows of a JSON, JSONL, Parquet or CSV file, each with its number as `#row`, and the faults so far.

    fields: required in every row. optional: known fields, which help to guess a misspelt name.
    Raises PobenchError if the file cannot be read at all or has no rows.
    """
    path = Path(path)
    faults, rows = Faults(path.name), []
    for number, row in read_rows(path):
        if isinstance(row, Fault):
            faults.add(number, row.field, row.problem, Verbatim(row.got))
            continue
        for name in fields:
            if name not in row:
                unknown = [key for key in row if key not in (*fields, *optional)]
                faults.add(number, name, f"missing{_misspelt(name, unknown)}")
        rows.append({**row, "#row": number})
    if not rows and not faults.found:
        raise PobenchError(f"{path.name} cannot be scored: it holds no rows")
    return rows, faults


def _misspelt(name: str, unknown: Sequence[str]) -> str:
    guess = nearest(name, [key for key in unknown if key.isprintable()])
    return guess.replace("did you mean", "is it").removesuffix(".") or (
        f"; the row has {short(sorted(unknown)[:8])}" if unknown else ""
    )


def text_of(row: Mapping[str, Any], name: str, faults: Faults) -> str:
    """The row's text `name`; another type is a fault. A missing field has been reported before."""
    value = row.get(name, "")
    if not isinstance(value, str):
        faults.add(row["#row"], name, "text is needed", value)
        return ""
    return value


def number_of(value: Any) -> float:
    """A stored number, also as text of a CSV cell; nan for null and an empty cell, inf for anything else."""
    if value is None or value == "":
        return math.nan
    try:
        return math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.inf


def one_of(values: Iterable[tuple[int, str]], name: str, faults: Faults) -> str:
    """The one value that all rows share; several values are a fault. values: (row, value)."""
    rows: dict[str, int] = {}
    for row, value in values:
        if value:
            rows.setdefault(value, row)
    if len(rows) > 1:
        listed = ", ".join(f"{short(value)} (from row {row})" for value, row in list(rows.items())[:5])
        faults.add(0, name, f"one value is needed in all rows; got {len(rows)}: {listed}")
    return next(iter(rows), "")


def only_model(rows: list[dict[str, Any]], wanted: str | None, faults: Faults) -> tuple[list[dict[str, Any]], str]:
    """The rows of one model, and its name. wanted: the model; needed if the file holds several."""
    models = sorted({text_of(row, "model", faults) for row in rows} - {""})
    if wanted is not None and wanted not in models and models:
        listed = ", ".join(short(m) for m in models[:12])
        faults.add(0, "model", f"no row is of {wanted!r}{nearest(wanted, models)} There are {listed}")
    elif wanted is None and len(models) > 1:
        listed = ", ".join(short(m) for m in models[:12])
        faults.add(0, "model", f"the file holds {len(models)} models; name one with --model: {listed}")
    model = wanted if wanted is not None else next(iter(models), "")
    # keep rows without a valid name, so that their other faults are reported too
    return [row for row in rows if row.get("model") == model or not isinstance(row.get("model"), str)], model


def numbers(what: str, rows: Sequence[int], shown: int = 8) -> str:
    """`"rows 1–805"`, `"row 3"`, `"rows 2, 5–7 and 9 more"`."""
    spans: list[list[int]] = []
    for row in sorted(set(rows)):
        if spans and row == spans[-1][1] + 1:
            spans[-1][1] = row
        else:
            spans.append([row, row])
    texts = [str(a) if a == b else f"{a}–{b}" for a, b in spans[:shown]]
    left = sum(b - a + 1 for a, b in spans[shown:])
    return f"{what}{'s' if len(set(rows)) > 1 else ''} {', '.join(texts)}" + (f" and {left} more" if left else "")


class Verbatim(str):
    """Text that is already safe for a message."""


def short(value: Any, length: int = _ESCAPED) -> str:
    """Untrusted content, escaped and cut to one line of at most `length` characters."""
    text = value if isinstance(value, Verbatim) else repr(value[: 2 * length] if isinstance(value, str) else value)
    return text if len(text) <= length else text[: length - 1] + "…"


# ---------------------------------------------------------------- fingerprints
def fingerprint(text: str) -> str:
    """12 hex digits of sha256 that identify a text of a benchmark; outer white space does not matter."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()[:12]


def fingerprints(name: str) -> list[list[str]]:
    """The rows of a shipped table of fingerprints. Lines that start with `#` are comments."""
    text = importlib.resources.files("pobench.judging").joinpath(f"{name}.txt").read_text(encoding="ascii")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]
