"""Prints a DataFrame of Estimates and plain values: on the page, in Markdown, in LaTeX and as CSV.

Text from data is untrusted: `clean` shows invisible characters by their number, and each format escapes its markup.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from pobench.printing import visible
from pobench.results import metrics, stats
from pobench.types import Estimate


# ---------------------------------------------------------------- untrusted text
def clean(text: str, longest: int | None = None) -> str:
    """Text that is safe to display: broken UTF-8 as �, invisible and direction-changing characters by their number.

    The result is not HTML: the page still escapes it.
    """
    return visible(text if longest is None or len(text) <= longest else text[:longest] + "…")


def listing(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


# ---------------------------------------------------------------- a printed table
@dataclass
class Head:
    """A column: its title, unit, tooltip, which direction is better, and the metric that it shows, if any."""

    title: str
    unit: str = ""
    help: str = ""
    better: str = ""
    numeric: bool = False
    metric: str = ""


@dataclass
class Cell:
    """A printed cell: the value, its interval and n, the sort key, and whether the interval excludes "no effect".

    href: where its text leads. full: what a shortened text stands for; a click shows and copies it.
    """

    text: str
    interval: str = ""
    n: str = ""
    sort: str = ""
    sign: str = ""  # "up" | "down" where the interval excludes no effect
    colour: str = ""
    href: str = ""
    full: str = ""


NO_EFFECT = {"pass_rate_gain": 0.0, "win_rate": 0.5}


@dataclass
class Table:
    """A table ready to print; `frame` has the raw numbers. folded: the title under which the page folds the rows from number
    `shown` on, "" where it folds none. row_ids: of each row, what an anchor to it ends with."""

    heads: list[Head]
    rows: list[list[Cell]]
    frame: pd.DataFrame
    shown: int
    folded: str

    @cached_property
    def row_ids(self) -> list[str]:
        seen: Counter[str] = Counter()
        names = [re.sub(r"[^a-z0-9]+", "-", row[0].text.casefold()).strip("-")[:60] or "row" for row in self.rows]
        ids = []
        for name in names:
            seen[name] += 1
            ids.append(f"{name}--{seen[name]}" if names.count(name) > 1 else name)
        return ids


def make_table(frame: pd.DataFrame, colours: Mapping[str, str] | None = None) -> Table:
    """Print a DataFrame of Estimates and plain values; columns named like a metric get its title, unit and format."""
    heads, columns = [], []
    for name in frame.columns:
        metric, values = metrics.metric(str(name)), list(frame[name])
        numeric = any(isinstance(v, Estimate) or _numeric(v) for v in values)
        heads.append(
            Head(metric.title, metric.unit, metric.definition, metric.better, True, str(name))
            if metric
            else Head(clean(str(name)), numeric=numeric)
        )
        bounds = frame.attrs.get("bounds", [NO_DIFFERENCE] * len(values))  # of each row: the numbers that decide it
        columns.append([_cell(v, metric, marks) for v, marks in zip(values, bounds, strict=True)])
    if colours:
        for cell in columns[0]:
            cell.colour = colours.get(cell.text, "")
    for cells, few in zip(zip(*columns, strict=True), frame.attrs.get("too_few_seeds", ()), strict=False):
        for cell in cells if few else ():
            cell.sign = ""  # such an interval decides nothing
    marks = frame.attrs.get("marks", {})  # text → "up" | "down", for words that mean better or worse
    for cell in (cell for column in columns for cell in column if cell.text in marks):
        cell.sign = marks[cell.text]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Table(heads, rows, frame, *frame.attrs.get("folded", (len(rows), "")))


def _cell(value: Any, metric: metrics.Metric | None, marks: Sequence[float]) -> Cell:
    show: Callable[[float], str] = metric.show if metric else show_number
    if isinstance(value, Estimate):
        if math.isnan(value.value):
            return Cell("–")
        show = _as_sharp_as(value, marks) if metric is None else _telling(metric, value)
        sign = ""
        if (
            metric
            and (still := NO_EFFECT.get(metric.name.partition("@")[0])) is not None
            and stats.excludes(value, still)
        ):
            sign = "up" if value.low > still else "down"
        interval = "" if math.isnan(value.low) else f"[{show(value.low)}, {show(value.high)}]"
        return Cell(show(value.value), interval, f"n = {value.n}", f"{value.value:.9g}", sign)
    if _numeric(value):
        return Cell(show(float(value)), sort="" if math.isnan(value) else f"{float(value):.9g}")
    return Cell("–" if value is None or (not isinstance(value, str) and pd.isna(value)) else clean(str(value)))


NO_DIFFERENCE = (0.0, 1.0)  # of two numbers, and of their ratio
MOST_DECIMALS = 6


def decimals_that_tell(e: Estimate, marks: Sequence[float], decimals: int) -> int:
    """So many decimals, or more where value or interval would be printed as a mark beside which it only nearly lies."""
    near = [(number, mark) for number in (e.value, e.low, e.high) for mark in marks if number != mark]
    while decimals < MOST_DECIMALS and any(round(n, decimals) == round(mark, decimals) for n, mark in near):
        decimals += 1
    return decimals


def _telling(metric: metrics.Metric, e: Estimate) -> Callable[[float], str]:
    """The metric's own format, with the digits that tell whether an end is "no effect"."""
    still, form = NO_EFFECT.get(metric.name.partition("@")[0]), metric.format
    if still is None or not form.endswith("f") or math.isnan(e.low):
        return metric.show
    printed = int(form[form.index(".") + 1 : -1])
    decimals = decimals_that_tell(e.scaled(metric.scale), (still * metric.scale,), printed)
    return replace(metric, format=form.replace(f".{printed}f", f".{decimals}f")).show


def _as_sharp_as(e: Estimate, marks: Sequence[float] = NO_DIFFERENCE) -> Callable[[float], str]:
    """A format for value and interval ends, with enough decimals to show two digits of the interval's width, and on which side
    of the marks they lie."""
    width = e.high - e.low
    if not (math.isfinite(width) and width > 0):
        return show_number
    decimals = decimals_that_tell(e, marks, min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(width)))))
    return lambda value: f"{value:z,.{decimals}f}".replace(",", "\u202f").replace("-", "−")


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def show_number(value: float) -> str:
    """A plain number: three digits, or whole with thousands apart; nan is a dash."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


# ---------------------------------------------------------------- as files
def to_markdown(table: Table) -> str:
    """A pipe table: `value [low, high] (n)`."""
    lines = [[markdown(f"{h.title}, {h.unit}" if h.unit else h.title) for h in table.heads]]
    lines.append(["---:" if h.numeric else ":---" for h in table.heads])
    for row in table.rows:
        lines.append([" ".join(filter(None, (markdown(c.text), c.interval, c.n and f"({c.n})"))) for c in row])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def markdown(text: str) -> str:
    """The text on one line, with Markdown and HTML escaped; what stands between backticks, as commands and names do, is
    code."""
    parts = re.split(r"(`[^`<>|&\\]+`)", _one_line(text))
    return "".join(part if place % 2 else _MARKDOWN.sub(r"\\\1", part) for place, part in enumerate(parts))


_MARKDOWN = re.compile(r"([\\`*\[\]<>|~&]|(?<!\w)_|_(?!\w))")


_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "–": "--", "—": "---",
    "’": "'", "‘": "`", "“": "``", "”": "''", "…": r"\ldots{}", "\u202f": r"\,", "\xa0": r"\nobreakspace{}", "·": r"$\cdot$",
    "×": r"$\times$", "÷": r"$\div$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "≠": r"$\neq$", "→": r"$\rightarrow$",
    "∞": r"$\infty$", "‖": r"$\|$", "√": r"$\surd$", "Σ": r"$\Sigma$", "Δ": r"$\Delta$", "μ": r"$\mu$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "ε": r"$\varepsilon$", "θ": r"$\theta$",
    "λ": r"$\lambda$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "τ": r"$\tau$",
}  # fmt: skip
TEX_NEEDS = (r"\usepackage[T1]{fontenc}", r"\usepackage{booktabs}")


def to_latex(table: Table) -> str:
    """A `tabular` for booktabs; intervals in small type. Compiles under pdfLaTeX and its kin with `TEX_NEEDS`."""
    spec = "".join("r" if h.numeric else "l" for h in table.heads)
    lines = [f"% needs {' '.join(TEX_NEEDS)}", r"\begin{tabular}{" + spec + "}", r"\toprule"]
    lines.append(" & ".join(latex(f"{h.title} ({h.unit})" if h.unit else h.title) for h in table.heads) + r" \\")
    lines.append(r"\midrule")
    for row in table.rows:
        small = [" ".join(filter(None, (c.interval, c.n))) for c in row]
        cells = [
            latex(c.text) + (rf" {{\scriptsize {latex(s)}}}" if s else "") for c, s in zip(row, small, strict=True)
        ]
        lines.append(
            ("{}" if cells[0][:1] in ("[", "*") else "") + " & ".join(cells) + r" \\"
        )  # so that the `\\` above does not read them as an argument
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex(text: str) -> str:
    """The text escaped for LaTeX: Latin letters unchanged, characters that its fonts lack by their number."""
    return "".join(_TEX.get(c) or (c if c.isascii() or "À" <= c <= "ÿ" else f"U+{ord(c):04X}") for c in _one_line(text))


def _one_line(text: str) -> str:
    return re.sub(r"[\n\r\u2028\u2029]", " ", text)


def numbers(drawn: pd.DataFrame) -> pd.DataFrame:
    """The numbers behind a drawn table, for its CSV and for Python: `attrs["data"]` where the table has it. A column of
    Estimates becomes four, of value, low, high and n."""
    stored = drawn.attrs.get("data", drawn)
    columns: dict[str, list[Any]] = {}
    for name in stored.columns:
        values = list(stored[name])
        if any(isinstance(v, Estimate) for v in values):
            cells = [v if isinstance(v, Estimate) else Estimate.missing() for v in values]
            columns[str(name)] = [e.value for e in cells]
            columns |= {f"{name}_{part}": [getattr(e, part) for e in cells] for part in ("low", "high", "n")}
        else:
            columns[str(name)] = values
    plain = pd.DataFrame(columns)
    plain.attrs = {"notes": drawn.attrs["notes"]} if "notes" in drawn.attrs else {}
    return plain
