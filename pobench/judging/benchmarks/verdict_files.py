"""What the benchmarks share: files of stored verdicts, all their faults in one message, and a scored result.

A stored verdict is data, never a guess: what cannot be read as a verdict is dropped and counted, and what cannot be
read as a FILE of verdicts (a field missing, of another kind, out of its range) is refused, every fault with its row.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from pobench.data.rows import Fault, read_rows
from pobench.errors import PobenchError, nearest
from pobench.types import Estimate

_GPT4 = re.compile(r"gpt[-_ ]?4(?!all)(?!.*(?:mini|nano))")
_ESCAPED = 60  # characters of untrusted text in a message


# ---------------------------------------------------------------- what comes out
class Line(NamedTuple):
    """One number as a person reads it: `title  value [low, high]  n`. format: as in f"{value:{format}}". metric: its name
    in the frame `benchmarks`; "" keeps it out."""

    title: str
    estimate: Estimate
    format: str = ".2f"
    note: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Scored:
    """A benchmark's result. lines: for people. values: for machines, numbers or None where nothing was measured."""

    benchmark: str
    model: str
    judge: str
    lines: tuple[Line, ...]
    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything, nan as None."""
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


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """The estimate in another unit: percent, points."""
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor, estimate.n)


def is_gpt4(judge: str) -> bool:
    """Whether the judge's name says that it is of GPT-4's class: only its verdicts carry the benchmarks' names."""
    return _GPT4.search(judge.casefold()) is not None


# ---------------------------------------------------------------- what goes in
@dataclass
class Faults:
    """The faults of one file, collected; equal ones on many rows become one line."""

    source: str
    found: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, row: int, name: str, problem: str, *got: Any) -> None:
        """row 0: of the file as a whole. got: what stands there, to be shown escaped and shortened."""
        text = "; got ".join([problem, *map(short, got)])
        self.found.setdefault((name, text), []).append(row)

    def refuse(self, shown: int = 20) -> None:
        """Raise one PobenchError that lists every fault; return if there are none."""
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
    """The rows of a JSON, JSONL, Parquet or CSV file, each with its number as `#row`, and the faults found so far.

    fields: what every row must have. optional: names it may have as well; both help to guess at a misspelt one.
    Raises PobenchError where the file cannot be read at all, or holds no row.
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
    """The row's text `name`; anything else is a fault (one that is missing has been named already)."""
    value = row.get(name, "")
    if not isinstance(value, str):
        faults.add(row["#row"], name, "text is needed", value)
        return ""
    return value


def number_of(value: Any) -> float:
    """A stored number, or its text in a CSV's cell; nan for null and an empty cell, inf for what is no number."""
    if value is None or value == "":
        return math.nan
    try:
        return math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.inf


def one_of(values: Iterable[tuple[int, str]], name: str, faults: Faults) -> str:
    """The single value that all rows share; several are a fault that names them. values: (row, value)."""
    rows: dict[str, int] = {}
    for row, value in values:
        if value:
            rows.setdefault(value, row)
    if len(rows) > 1:
        listed = ", ".join(f"{short(value)} (from row {row})" for value, row in list(rows.items())[:5])
        faults.add(0, name, f"one value is needed in all rows; got {len(rows)}: {listed}")
    return next(iter(rows), "")


def only_model(rows: list[dict[str, Any]], wanted: str | None, faults: Faults) -> tuple[list[dict[str, Any]], str]:
    """The rows of one model, and its name. wanted: which; needed where the file holds several."""
    models = sorted({text_of(row, "model", faults) for row in rows} - {""})
    if wanted is not None and wanted not in models and models:
        listed = ", ".join(short(m) for m in models[:12])
        faults.add(0, "model", f"no row is of {wanted!r}{nearest(wanted, models)} There are {listed}")
    elif wanted is None and len(models) > 1:
        listed = ", ".join(short(m) for m in models[:12])
        faults.add(0, "model", f"the file holds {len(models)} models; name one with --model: {listed}")
    model = wanted if wanted is not None else next(iter(models), "")
    # a row without a proper name stays, so that its other faults are named too
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
    """Text that is fit for a message already."""


def short(value: Any) -> str:
    """Untrusted content, escaped and cut to fit a line."""
    text = value if isinstance(value, Verbatim) else repr(value[: 2 * _ESCAPED] if isinstance(value, str) else value)
    return text if len(text) <= _ESCAPED else text[: _ESCAPED - 1] + "…"


# ---------------------------------------------------------------- fingerprints and packages
def fingerprint(text: str) -> str:
    """12 hex digits that tell one text from the others of a benchmark; white space at either end does not matter."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()[:12]


def fingerprints(name: str) -> list[list[str]]:
    """The columns of a shipped table of fingerprints, row by row; a line that starts with `#` is a comment."""
    text = importlib.resources.files("pobench.judging").joinpath(f"{name}.txt").read_text(encoding="ascii")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def needed(module: str, extra: str, why: str) -> ModuleType:
    """An optional package's module. Raises PobenchError with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PobenchError(f"{why}: pip install 'pobench[{extra}]' ({short(Verbatim(error))})") from error
