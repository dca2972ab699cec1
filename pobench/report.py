"""From frames to files: every figure and table, and one page that stands alone.

The same frames give the same bytes: no date, no path, no order of arrival enters a file. Runs are compared only inside
one setting, one protocol version and one start model; each such group is a section of the page.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from pobench import __version__, plot, registry, scores, stats
from pobench.files import whole
from pobench.registry import PobenchError
from pobench.types import Estimate

Frames = Mapping[str, pd.DataFrame]

FIGURE_FORMATS = ("png", "svg", "csv")
TABLE_FORMATS = ("md", "csv", "tex")
FORMATS = ("html", "png", "svg", "csv", "md", "tex")

# Chapters of a section and the `order` of the figures that stand in them.
CHAPTERS = [
    ("results", "Results", range(0, 100)),
    ("training", "Is training healthy?", range(200, 300)),
    ("length", "Likelihood and length", range(300, 400)),
    ("more", "More figures", range(100, 200)),
    ("methods", "What was run", range(400, 500)),
]
SAMPLE_PROMPTS = 4
LONGEST_ANSWER = 1200  # characters shown


def build_report(
    frames: Frames,
    out: str | Path,
    *,
    figures: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
    setting: str | None = None,
    seed: int = 0,
) -> Path:
    """Write figures, tables and `report.html` under `out`; return the page's path.

    frames: as `pobench.store` gives them; a missing frame costs the figures that need it, each of which says so.
    figures: names of figures and tables, default all. setting: only this one. formats: any of `FORMATS`.
    Raises PobenchError when there is no run, or for unknown names.
    """
    shown = _chosen(figures)
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise PobenchError(f"unknown format {', '.join(map(repr, unknown))}; formats are {', '.join(FORMATS)}")
    frames = ordered(frames)
    sections = [
        build_section(part, shown, place) for place, part in enumerate(split(frames, setting=setting, seed=seed))
    ]
    out = Path(out)
    for section in sections:
        for item in section.items:
            _write_item(item, out / section.folder, formats)
    page = out / "report.html"
    if "html" in formats:
        _write(page, render(sections).encode("utf-8", "replace"))
    return page


def _chosen(names: Sequence[str] | None) -> list[registry.Figure]:
    if names is None or list(names) == ["all"]:
        names = registry.figures.names()
    found, faults = [], []
    for name in names:
        try:
            found.append(registry.figures.get(name))
        except registry.UnknownNameError as error:
            faults.append(str(error))
    if faults:
        raise PobenchError("\n".join(faults))
    return sorted({f.name: f for f in found}.values(), key=lambda f: (f.order, f.name))


# ---------------------------------------------------------------- frames: in order, and apart

_SORTED_BY = {
    "runs": ["run"],
    "steps": ["run", "step"],
    "heldout": ["run", "pair"],
    "answers": ["run", "prompt", "sample"],
    "verdicts": ["run", "prompt", "sample", "judge"],
    "scores": ["run", "metric"],
    "cross_loss": ["run", "evaluated", "metric"],
    "audit": ["setting", "fault"],
    "tuning": ["setting", "loss", "study", "trial"],
}
_RUN_COLUMNS = (
    *("run", "setting", "kind", "loss", "title", "seed", "settings", "lr", "epochs", "batch_size", "start", "pairs"),
    *("seconds", "peak_memory", "tokens", "status", "reason", "order", "protocol", "note", "environment", "sources"),
)


def ordered(frames: Frames) -> dict[str, pd.DataFrame]:
    """All frames, sorted, so that their order of arrival does not matter; absent ones are empty."""
    found = {}
    for name, keys in _SORTED_BY.items():
        frame = frames.get(name)
        frame = pd.DataFrame(columns=keys) if frame is None or not set(keys) <= set(frame.columns) else frame
        found[name] = frame.sort_values(keys, kind="stable", ignore_index=True)
    found["runs"] = found["runs"].reindex(columns=[*found["runs"], *(set(_RUN_COLUMNS) - set(found["runs"]))])
    return found


@dataclass
class Part:
    """The frames of one setting, protocol and start model: what may be compared."""

    setting: str
    protocol: str
    start: str
    title: str
    frames: dict[str, pd.DataFrame]


def split(frames: Frames, *, setting: str | None = None, seed: int = 0) -> list[Part]:
    """The parts of the runs directory that may not be mixed, in order. Raises PobenchError when there is no run.

    Unfinished and failed runs keep their steps; their answers and held-out numbers are incomplete and left out.
    """
    runs = frames["runs"]
    if setting is not None:
        known = sorted(runs["setting"].astype(str).unique())
        if setting not in known:
            hint = registry.nearest(setting, known)
            raise PobenchError(
                f"no run of the setting {setting!r}{hint} Settings with runs: {', '.join(known) or 'none'}"
            )
        runs = runs[runs["setting"] == setting]
    if runs.empty:
        raise PobenchError("there is no run to report on")
    keys = [_key(row) for row in runs.to_dict("records")]
    starts: dict[tuple[str, str], set[str]] = {}
    for where, protocol, start in keys:
        starts.setdefault((where, protocol), set()).update({start} - {""})
    # a run that names no start model belongs to the only one there is
    keys = [(s, p, start or (min(starts[s, p]) if len(starts[s, p]) == 1 else "")) for s, p, start in keys]
    parts = []
    for key in sorted(set(keys), key=lambda k: (k[0], _number(k[1]), k[2])):
        mine = runs[[k == key for k in keys]]
        if not key[2] and (mine["loss"] == "start").any():  # start models without a name of their own
            key = (*key[:2], str(mine.loc[mine["loss"] == "start", "run"].iloc[0]))
        title = key[0]
        if len({p for s, p in starts if s == key[0]}) > 1:
            title += f", protocol {key[1] or 'unknown'}"
        if len({k[2] for k in keys if k[:2] == key[:2]}) > 1:
            title += f", start model {key[2].rsplit('/', 1)[-1] or 'unknown'}"
        parts.append(Part(*key, title, _part_frames(frames, mine, seed)))
    return parts


def _key(row: Mapping[Any, Any]) -> tuple[str, str, str]:
    start = row["run"] if row["loss"] == "start" else row["start"]
    protocol = (
        ""
        if pd.isna(row["protocol"])
        else f"{row['protocol']:g}"
        if _numeric(row["protocol"])
        else str(row["protocol"])
    )
    return str(row["setting"]), protocol, "" if start is None or pd.isna(start) else str(start)


def _part_frames(frames: Frames, runs: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    finished = set(runs.loc[runs["status"] == "finished", "run"])
    part = {"runs": runs.reset_index(drop=True)}
    for name in ("steps", "heldout", "answers", "verdicts", "scores", "cross_loss"):
        keep = set(runs["run"]) if name == "steps" else finished
        part[name] = frames[name][frames[name]["run"].isin(keep)].reset_index(drop=True)
    part["audit"] = frames["audit"][frames["audit"]["setting"].isin(set(runs["setting"]))].reset_index(drop=True)
    tuned = {name.removesuffix("-tuned") for name in runs["setting"].astype(str)}
    part["tuning"] = frames["tuning"][frames["tuning"]["setting"].isin(tuned)].reset_index(drop=True)
    part["scores"] = scores.complete(part, seed=seed)
    return part


def _numeric(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating)


def _number(text: str) -> tuple[float, str]:
    return (float(text), "") if re.fullmatch(r"\d+(\.\d+)?", text) else (math.inf, text)


# ---------------------------------------------------------------- tables


@dataclass
class Head:
    """A column: its title, unit, tooltip, and which direction is better."""

    title: str
    unit: str = ""
    help: str = ""
    better: str = ""
    numeric: bool = False


@dataclass
class Cell:
    """A printed cell: the value, its interval and n, what to sort by, how it stands to "no effect"."""

    text: str
    interval: str = ""
    n: str = ""
    sort: str = ""
    sign: str = ""  # "up" | "down" where the interval excludes no effect
    colour: str = ""


NO_EFFECT = {"pass_rate_gain": 0.0, "win_rate": 0.5}


@dataclass
class Table:
    """A table ready to print; `frame` keeps the raw numbers."""

    heads: list[Head]
    rows: list[list[Cell]]
    frame: pd.DataFrame


def make_table(frame: pd.DataFrame, colours: Mapping[str, str] | None = None) -> Table:
    """Print a DataFrame of Estimates and plain values; columns named like a metric get its title, unit and format."""
    heads, columns = [], []
    for name in frame.columns:
        metric, values = scores.metric(str(name)), list(frame[name])
        numeric = any(isinstance(v, Estimate) or (_numeric(v) and not isinstance(v, bool)) for v in values)
        heads.append(
            Head(metric.title, metric.unit, metric.definition, metric.better, True)
            if metric
            else Head(clean(str(name)), numeric=numeric)
        )
        columns.append([_cell(v, metric) for v in values])
    if colours:
        for cell in columns[0]:
            cell.colour = colours.get(cell.text, "")
    return Table(heads, [list(row) for row in zip(*columns, strict=True)], frame)


def _cell(value: Any, metric: scores.Metric | None) -> Cell:
    show: Callable[[float], str] = metric.show if metric else show_number
    if isinstance(value, Estimate):
        if math.isnan(value.value):
            return Cell("–")
        sign = ""
        if (
            metric
            and (still := NO_EFFECT.get(metric.name.partition("@")[0])) is not None
            and stats.excludes(value, still)
        ):
            sign = "up" if value.low > still else "down"
        interval = "" if math.isnan(value.low) else f"[{show(value.low)}, {show(value.high)}]"
        return Cell(show(value.value), interval, f"n = {value.n}", f"{value.value:.9g}", sign)
    if _numeric(value) and not isinstance(value, bool):
        return Cell(show(float(value)), sort="" if math.isnan(value) else f"{float(value):.9g}")
    return Cell("–" if value is None or (not isinstance(value, str) and pd.isna(value)) else clean(str(value)))


def show_number(value: float) -> str:
    """A plain number: three digits, or whole with thousands apart; nan is a dash."""
    if math.isnan(value):
        return "–"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}".replace(",", "\u202f").replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def to_markdown(table: Table) -> str:
    """A pipe table: `value [low, high] (n)`."""
    lines = [[f"{h.title}, {h.unit}" if h.unit else h.title for h in table.heads]]
    lines.append(["---:" if h.numeric else ":---" for h in table.heads])
    lines += [[" ".join(filter(None, (c.text, c.interval, c.n and f"({c.n})"))) for c in row] for row in table.rows]
    return "\n".join("| " + " | ".join(_one_line(c).replace("|", "\\|") for c in row) + " |" for row in lines) + "\n"


_TEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "−": "$-$", "–": "--", "ρ": r"$\rho$", "β": r"$\beta$", "γ": r"$\gamma$", "τ": r"$\tau$",
    "α": r"$\alpha$", "δ": r"$\delta$", "λ": r"$\lambda$", "‖": r"$\|$", "’": "'", "“": "``", "”": "''",
    "…": r"\ldots{}", "\u202f": r"\,", "Δ": r"$\Delta$",
}  # fmt: skip


def to_latex(table: Table) -> str:
    """A `tabular` for booktabs; intervals in small type."""
    spec = "".join("r" if h.numeric else "l" for h in table.heads)
    lines = [r"\begin{tabular}{" + spec + "}", r"\toprule"]
    lines.append(" & ".join(_tex(f"{h.title} ({h.unit})" if h.unit else h.title) for h in table.heads) + r" \\")
    lines.append(r"\midrule")
    for row in table.rows:
        small = [" ".join(filter(None, (c.interval, c.n))) for c in row]
        cells = [_tex(c.text) + (rf" {{\scriptsize {_tex(s)}}}" if s else "") for c, s in zip(row, small, strict=True)]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split(" ")).replace("\n", " ").replace("\r", " ")


def to_csv(frame: pd.DataFrame) -> bytes:
    """Raw numbers: an Estimate becomes four columns, value, low, high and n."""
    columns: dict[str, list[Any]] = {}
    for name in frame.columns:
        values = list(frame[name])
        if any(isinstance(v, Estimate) for v in values):
            cells = [v if isinstance(v, Estimate) else Estimate.missing() for v in values]
            columns[str(name)] = [e.value for e in cells]
            columns |= {f"{name}_{part}": [getattr(e, part) for e in cells] for part in ("low", "high", "n")}
        else:
            columns[str(name)] = values
    return plot.csv(pd.DataFrame(columns))


# ---------------------------------------------------------------- figures and tables of a section


@dataclass
class Item:
    """A figure or table as the page shows it, and its files."""

    name: str
    anchor: str
    kind: str
    title: str
    paper: str
    caption: str
    order: int
    notes: str = ""
    missing: str = ""  # why there is nothing
    table: Table | None = None
    picture: Markup | None = None
    files: dict[str, bytes] = field(default_factory=dict)  # format → content

    @property
    def downloads(self) -> list[tuple[str, str, str]]:
        """(what the link says, file name, data: address) of what one click saves."""
        kinds = {
            "csv": "text/csv;charset=utf-8",
            "md": "text/markdown;charset=utf-8",
            "tex": "text/plain;charset=utf-8",
        }
        titles = {"csv": "CSV", "md": "Markdown", "tex": "LaTeX"}
        return [
            (titles[f], f"{self.name}.{f}", plot.data_uri(self.files[f], k))
            for f, k in kinds.items()
            if f in self.files
        ]


def build_item(shown: registry.Figure, part: Part, colours: Mapping[str, str], prefix: str) -> Item:
    """Draw one figure or table; what cannot be drawn says why."""
    caption = " ".join(shown.doc.split())
    item = Item(shown.name, f"{prefix}-{shown.name}", shown.kind, shown.title, shown.paper, caption, shown.order)
    try:
        drawn = plot.draw(shown, part.frames)
    except plot.NothingToDraw as reason:
        item.missing = clean(str(reason))
        return item
    if shown.kind == "table":
        item.table = make_table(drawn, colours)
        item.notes = clean(str(drawn.attrs.get("notes", "")))
        item.files = {
            "csv": to_csv(drawn),
            "md": to_markdown(item.table).encode("utf-8", "replace"),
            "tex": to_latex(item.table).encode("utf-8", "replace"),
        }
        return item
    item.notes = clean(drawn.notes)
    png, svg = plot.png(drawn.figure), plot.svg(drawn.figure, f"pobench-{shown.name}")
    item.files = {"png": png, "svg": svg.encode("utf-8", "replace"), "csv": plot.csv(drawn.data)}
    inline = plot.inline_svg(svg, item.anchor, shown.title)
    if len(inline) <= len(png) * 4 / 3:
        item.picture = Markup(inline)
    else:
        item.picture = Markup('<img class="png" alt="{}" src="{}">').format(
            shown.title, plot.data_uri(png, "image/png")
        )
    return item


# ---------------------------------------------------------------- what a busy person reads


@dataclass
class Finding:
    """One sentence of the summary; tone: "good" | "bad" | "open" | "note"."""

    tone: str
    head: str
    text: str


def findings(part: Part, items: Sequence[Item]) -> list[Finding]:
    """The summary: who beats the start model, who differs, what failed, what to watch. All computed."""
    runs = part.frames["runs"]
    arms = stats.arms(runs)
    trained = [arm for arm in arms if not arm.is_start]
    said = [*_gains(part, trained), *_between(part, trained), *_failures(runs, arms), *_warnings(items)]
    judged = part.frames["verdicts"]
    blank = int(judged["score"].isna().sum()) if len(judged) else 0
    if blank:
        said.append(
            Finding(
                "note",
                "Not judged",
                f"The judge gave no score for {blank} of {len(judged)} answers; they are left out.",
            )
        )
    finished = runs[(runs["status"] == "finished") & (runs["loss"] != "start")]
    per_arm = {arm.id: int(finished["run"].isin(arm.runs).sum()) for arm in trained}
    if per_arm and max(per_arm.values()) == 1:
        text = "Each loss was trained once. The intervals cover the choice of prompts, not the luck of a training run."
        said.append(Finding("note", "One seed", text))
    orders = runs[runs["loss"] != "start"].dropna(subset=["order"]).query("order != ''")
    mixed = [seed for seed, group in orders.groupby("seed", sort=True) if group["order"].nunique() > 1]
    if mixed:
        text = "Runs with the same seed saw pairs in different orders: part of any difference may come from there."
        said.append(Finding("bad", "Data order", text))
    return said


def _gains(part: Part, trained: Sequence[stats.Arm]) -> list[Finding]:
    table = part.frames["scores"]
    gains = {arm: stats.score_of(table, arm, "pass_rate_gain") for arm in trained}
    gains = {arm: e for arm, e in gains.items() if not math.isnan(e.value)}
    if not gains:
        return _without_judge(part, trained)
    corrected = dict(zip(gains, stats.holm(_gain_p_values(part, list(gains))), strict=True))
    ranked = sorted(gains, key=lambda arm: (-gains[arm].value, arm.label))
    up = [arm for arm in ranked if gains[arm].low > 0]
    down = [arm for arm in reversed(ranked) if gains[arm].high < 0]
    undecided = [arm for arm in ranked if arm not in up and arm not in down]
    several = len(gains) > 1
    said = []
    for tone, head, found in (("good", "Better than the start model", up), ("bad", "Worse than the start model", down)):
        if found:
            text = "; ".join(f"{clean(arm.label)} {_points(gains[arm])}" for arm in found) + "."
            lost = [clean(arm.label) for arm in found if not corrected[arm] < 0.05]
            if lost and several:
                text += (
                    f" After Holm’s correction for {len(gains)} comparisons this no longer holds for {listing(lost)}."
                )
            elif several:
                text += f" Holm’s correction for {len(gains)} comparisons changes nothing."
            said.append(Finding(tone, head, text))
    if undecided:
        half = float(np.median([(e.high - e.low) / 2 for e in gains.values()]))
        names = listing([f"{clean(arm.label)} ({_signed(gains[arm].value)})" for arm in undecided])
        text = f"{names}: the interval of the gain includes zero."
        if not math.isnan(half):
            n = max(e.n for e in gains.values())
            text += f" With these {n} prompts a difference under about {100 * half:.0f} points says nothing."
        said.append(Finding("open", "Not told apart from the start model", text))
    return said


def _without_judge(part: Part, trained: Sequence[stats.Arm]) -> list[Finding]:
    table = part.frames["scores"]
    found = {arm: stats.score_of(table, arm, "reward_accuracy") for arm in trained}
    ranked = sorted((a for a in found if not math.isnan(found[a].value)), key=lambda a: -found[a].value)
    if not ranked:
        return [Finding("open", "Nothing to compare", "No finished run has judged answers or held-out rewards.")]
    text = (
        "Answers were not judged beside a start model, so nothing is known about quality. Held-out pairs ranked right: "
    )
    text += "; ".join(
        f"{clean(a.label)} {100 * found[a].value:.1f} %{_between_words(found[a], '.1f')}" for a in ranked[:5]
    )
    return [Finding("open", "No judge", text + ("." if len(ranked) <= 5 else "; …"))]


def _gain_p_values(part: Part, arms: Sequence[stats.Arm]) -> list[float]:
    starts = [arm for arm in stats.arms(part.frames["runs"]) if arm.is_start]
    by_prompt = stats.by_prompt(part.frames["verdicts"], [*starts, *arms])
    start = next((s.id for s in starts if s.id in by_prompt), None)
    return [
        stats.sign_flip_test(by_prompt[arm.id] - by_prompt[start]) if start and arm.id in by_prompt else math.nan
        for arm in arms
    ]


def _between(part: Part, trained: Sequence[stats.Arm]) -> list[Finding]:
    """Which losses differ from each other; the same tests and the same correction as in the figure `who-beats-whom`."""
    if part.frames["verdicts"].empty:
        return []
    arms = stats.arms(part.frames["runs"])
    table = stats.by_prompt(part.frames["verdicts"], arms)
    arms = [arm for arm in arms if arm.id in table]
    pairs = list(combinations(arms, 2))
    adjusted = stats.holm([stats.sign_test(table[a.id], table[b.id]) for a, b in pairs])
    beaten: dict[stats.Arm, list[str]] = {}
    decided = asked = 0
    for (a, b), p in zip(pairs, adjusted, strict=True):
        if a not in trained or b not in trained:
            continue
        asked += 1
        if p < 0.05:
            decided += 1
            a_wins = float(np.nanmean(stats.outcomes(table[a.id], table[b.id]))) > 0.5
            winner, loser = (a, b) if a_wins else (b, a)
            beaten.setdefault(winner, []).append(clean(loser.label))
    if not asked:
        return []
    how = "sign test over prompts, Holm’s correction"
    if not decided:
        verb = "The one pair does not differ" if asked == 1 else f"None of the {asked} pairs differs"
        return [Finding("open", "Between the losses", f"{verb} by more than chance ({how}).")]
    ranked = sorted(beaten, key=lambda arm: (-len(beaten[arm]), arm.label))
    if decided <= 8:
        text = "; ".join(f"{clean(arm.label)} beats {listing(beaten[arm])}" for arm in ranked) + "."
    else:
        counts = [f"{clean(arm.label)} beats {len(beaten[arm])}" for arm in ranked]
        text = f"{listing(counts)} of the others; “Who beats whom” shows which."
    rest = asked - decided
    text += f" Undecided: {rest} of {asked} pairs" if rest else " Every pair is decided"
    return [Finding("good", "Between the losses", f"{text} ({how}).")]


def _failures(runs: pd.DataFrame, arms: Sequence[stats.Arm]) -> list[Finding]:
    """One sentence for each loss and reason; the seeds that shared it together."""
    told: dict[tuple[str, str, str], list[str]] = {}
    for arm in arms:
        for row in stats.of_arm(runs, arm).sort_values("seed", kind="stable").to_dict("records"):
            if row["status"] == "finished":
                continue
            reason = "" if row["reason"] is None or pd.isna(row["reason"]) else clean(str(row["reason"]), 400).strip()
            head = "Failed" if row["status"] == "failed" else "Not finished"
            seeds = told.setdefault((head, clean(arm.label), reason), [])
            seeds += [str(row["seed"])] if len(arm.runs) > 1 else []
    said = []
    for (head, label, reason), seeds in told.items():
        which = f" (seed{'s' if len(seeds) > 1 else ''} {listing(seeds)})" if seeds else ""
        text = f"{label}{which}" + (f": {reason}" if reason else "")
        said.append(Finding("bad", head, text if text.endswith(".") else f"{text}."))
    return said


def _warnings(items: Sequence[Item]) -> list[Finding]:
    """The warnings of the table `training-health`, if it was drawn."""
    for item in items:
        if item.table is not None and "Warnings" in item.table.frame and "Loss" in item.table.frame:
            frame = item.table.frame
            found = [(clean(str(a)), clean(str(b))) for a, b in zip(frame["Loss"], frame["Warnings"], strict=True) if b]
            if found:
                return [Finding("bad", "Watch", ". ".join(f"{loss}: {what}" for loss, what in found) + ".")]
    return []


def _points(e: Estimate) -> str:
    return f"{_signed(e.value)} points{_between_words(e, '+.1f')}"


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _between_words(e: Estimate, form: str) -> str:
    if math.isnan(e.low):
        return ""
    low, high = (f"{100 * x:{form}}".replace("-", "−") for x in (e.low, e.high))
    return f" (95 % interval {low} to {high})"


def listing(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


# ---------------------------------------------------------------- untrusted text

_HIDDEN = {
    *range(0x00, 0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x61C, 0xAD, 0x200B, 0x200E, 0x200F,
    *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080),
}  # fmt: skip
_VISIBLE = {c: f"⟨U+{c:04X}⟩" for c in _HIDDEN} | {0x0D: "⟨U+000D⟩"}


def clean(text: str, longest: int | None = None) -> str:
    """Text that is safe to look at: broken UTF-8 as �, invisible and direction-changing characters by their number.

    It is still text, not HTML: the page escapes it.
    """
    cut = text if longest is None or len(text) <= longest else text[:longest] + "…"
    whole = cut.replace("\r\n", "\n").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.translate(_VISIBLE)


@dataclass
class Sample:
    """One answer as shown."""

    label: str
    colour: str
    text: str
    hidden: int  # characters not shown
    mark: str  # "pass" | "fail" | a score | ""
    tokens: str
    finished: bool


@dataclass
class SamplePrompt:
    prompt: str
    kind: str
    instruction: str
    answers: list[Sample]


def sample_answers(part: Part, count: int = SAMPLE_PROMPTS) -> list[SamplePrompt]:
    """The answers to a few prompts, side by side. The rule is fixed, so nobody picked: among the prompts that most
    models answered, those whose id has the smallest SHA-256; of each model the lowest seed's first sample."""
    answers, verdicts = part.frames["answers"], part.frames["verdicts"]
    if answers.empty:
        return []
    firsts = {}
    for arm in stats.arms(part.frames["runs"]):
        members = stats.of_arm(part.frames["runs"], arm).sort_values(["seed", "run"], kind="stable")["run"]
        run = next((r for r in members if (answers["run"] == r).any()), None)
        if run is not None:
            firsts[arm] = answers[answers["run"] == run].drop_duplicates("prompt").set_index("prompt")
    counts: dict[Any, int] = {}
    for frame in firsts.values():
        for prompt in frame.index:
            counts[prompt] = counts.get(prompt, 0) + 1
    most = max(counts.values(), default=0)
    ids = sorted((p for p, n in counts.items() if n == most), key=lambda p: hashlib.sha256(_bytes(p)).hexdigest())
    judge = stats.judges_of(verdicts)[:1] if len(verdicts) else []
    judged = verdicts[verdicts["judge"].isin(judge)].drop_duplicates(["run", "prompt", "sample"]) if judge else verdicts
    marks = (
        {(r, p, s): v for r, p, s, v in judged[["run", "prompt", "sample", "score"]].itertuples(index=False)}
        if judge
        else {}
    )
    shown = []
    for prompt in ids[:count]:
        rows = {arm: frame.loc[prompt] for arm, frame in firsts.items() if prompt in frame.index}
        first = next(iter(rows.values()))
        samples = [
            _sample(arm, row, marks.get((row["run"], prompt, row["sample"]), math.nan)) for arm, row in rows.items()
        ]
        shown.append(
            SamplePrompt(clean(str(prompt)), _text(first, "kind"), clean(_raw(first, "instruction"), 2000), samples)
        )
    return shown


def _sample(arm: stats.Arm, row: pd.Series, verdict: float) -> Sample:
    text = _raw(row, "text")
    mark = "" if pd.isna(verdict) else {1.0: "pass", 0.0: "fail"}.get(float(verdict), f"{float(verdict):.2f}")
    tokens = row.get("tokens")
    ended = row.get("finished")
    return Sample(
        clean(arm.label),
        plot.look(arm.loss).colour,
        clean(text[:LONGEST_ANSWER]),
        max(0, len(text) - LONGEST_ANSWER),
        mark,
        "" if tokens is None or pd.isna(tokens) else f"{int(tokens)}",
        not (ended is not None and not pd.isna(ended) and not bool(ended)),
    )


def _raw(row: pd.Series, column: str) -> str:
    value = row.get(column)
    return "" if value is None or (not isinstance(value, str) and pd.isna(value)) else str(value)


def _text(row: pd.Series, column: str) -> str:
    return clean(_raw(row, column), 200)


def _bytes(text: Any) -> bytes:
    return str(text).encode("utf-8", "surrogatepass")


# ---------------------------------------------------------------- formulas, environment


@dataclass
class Formula:
    """The exact objective of a loss and what it was given here."""

    label: str
    colour: str
    formula: str
    source: str
    link: str
    needs: str
    settings: list[tuple[str, str, str, str]]  # name, value, unit, where the value comes from
    known: bool


def formulas(part: Part) -> list[Formula]:
    """One per loss and settings, from the registry; a loss that is not registered here says so."""
    found = []
    for arm in stats.arms(part.frames["runs"]):
        if arm.is_start:
            continue
        row = stats.of_arm(part.frames["runs"], arm).iloc[0]
        used, sources = stats.settings_of(row), stats.json_object(row.get("sources"))
        colour = plot.look(arm.loss).colour
        try:
            loss = registry.get_loss(arm.loss)
        except registry.UnknownNameError:
            rows = [(k, stats.show_setting(v), "", str(sources.get(k, ""))) for k, v in used.items()]
            found.append(Formula(clean(arm.label), colour, "", "", "", "", rows, False))
            continue
        rows = [
            (k, stats.show_setting(v), loss.units.get(k, ""), _source(k, v, loss, sources))
            for k, v in used.items()
            if v is not None
        ]
        number = re.search(r"arXiv[: ]*(\d{4}\.\d{4,5})", loss.source)
        link = f"https://arxiv.org/abs/{number[1]}" if number else ""
        needs = listing(sorted(loss.needs)) or "nothing but the policy"
        found.append(Formula(clean(arm.label), colour, loss.formula, loss.source, link, needs, rows, True))
    return found


def _source(name: str, value: Any, loss: registry.Loss, sources: Mapping[str, Any]) -> str:
    if name in sources:
        return clean(str(sources[name]), 200)
    said = "the default" if name in loss.settings and loss.settings[name] == value else ""
    if name in loss.ranges:
        searched = loss.ranges[name]
        values = [stats.show_setting(v) for v in (searched if isinstance(searched, list | tuple) else [searched])]
        said += ("; " if said else "") + f"published search over {listing(values)}"
    return said


def environment(part: Part) -> list[tuple[str, str]]:
    """(key, value) of the environment that all runs share; where runs differ, every value that occurs."""
    found: dict[str, list[str]] = {}
    for text in part.frames["runs"]["environment"]:
        for key, value in _flat(stats.json_object(text)):
            values = found.setdefault(key, [])
            if value not in values:
                values.append(value)
    return [(clean(k, 80), clean(" | ".join(sorted(v)), 300)) for k, v in sorted(found.items())]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} · ")
        else:
            yield f"{prefix}{key}", str(value)


# ---------------------------------------------------------------- the page


@dataclass
class Section:
    """One setting as the page shows it."""

    anchor: str
    folder: str
    title: str
    facts: str
    notes: list[str]
    findings: list[Finding]
    chapters: list[tuple[str, str, list[Item], list[Item]]]  # anchor, title, items drawn, items that cannot be
    samples: list[SamplePrompt]
    formulas: list[Formula]
    environment: list[tuple[str, str]]
    both_fell: str
    items: list[Item]


def build_section(part: Part, shown: Sequence[registry.Figure], place: int) -> Section:
    """Draw everything and put it in its chapter."""
    anchor = _slug(part.title) or f"section-{place}"
    colours = {clean(arm.label): plot.look(arm.loss).colour for arm in stats.arms(part.frames["runs"])}
    items = [build_item(figure, part, colours, anchor) for figure in shown]
    chapters = []
    for name, title, orders in CHAPTERS:
        inside = [
            i for i in items if i.order in orders or (name == "more" and not any(i.order in o for _, _, o in CHAPTERS))
        ]
        chapters.append((name, title, [i for i in inside if not i.missing], [i for i in inside if i.missing]))
    notes = dict.fromkeys(clean(str(n), 600) for n in part.frames["runs"]["note"].dropna() if str(n).strip())
    return Section(
        anchor=anchor,
        folder=anchor,
        title=clean(part.title, 120),
        facts=_facts(part),
        notes=list(notes),
        findings=findings(part, items),
        chapters=chapters,
        samples=sample_answers(part),
        formulas=formulas(part),
        environment=environment(part),
        both_fell=_both_fell(items),
        items=items,
    )


def _facts(part: Part) -> str:
    """What was compared, in one line."""
    runs, frames = part.frames["runs"], part.frames
    trained = runs[runs["loss"] != "start"]
    arms = [arm for arm in stats.arms(runs) if not arm.is_start]
    seeds = trained["seed"].nunique()
    said = [f"{len(arms)} {'loss' if len(arms) == 1 else 'losses'}", f"{seeds} {'seed' if seeds == 1 else 'seeds'}"]
    pairs = sorted({int(p) for p in trained["pairs"].dropna()})
    if pairs:
        said.append(f"{'–'.join(show_number(p) for p in dict.fromkeys((pairs[0], pairs[-1])))} training pairs")
    for name, column, what in (("heldout", "pair", "held-out pairs"), ("answers", "prompt", "prompts")):
        if len(frames[name]):
            said.append(f"{show_number(frames[name][column].nunique())} {what}")
    if judges := (stats.judges_of(frames["verdicts"]) if len(frames["verdicts"]) else []):
        said.append(f"judged by {clean(listing(judges))}")
    if part.protocol:
        said.append(f"protocol {part.protocol}")
    return " · ".join(said)


def _both_fell(items: Sequence[Item]) -> str:
    """How often both log-probabilities fell, from the table `training-health`."""
    for item in items:
        if item.table is not None and "Both sides" in item.table.frame:
            frame = item.table.frame
            said = [(clean(str(a)), str(b)) for a, b in zip(frame["Loss"], frame["Both sides"], strict=True) if b]
            fell = [loss for loss, what in said if what.startswith("both fell")]
            wrong = [loss for loss, what in said if what.endswith(("no gap", "wrong way"))]
            if not said:
                return ""
            text = (
                f"Here, on held-out pairs, both fell for {listing(fell)}."
                if fell
                else "Here, on held-out pairs, both fell for no loss."
            )
            if wrong:
                return text + f" No gap between the two was learned by {listing(wrong)}: that is worth a look."
            return text + " Every loss widened the gap between the two."
    return ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:80]


def render(sections: Sequence[Section]) -> str:
    """The page as one string."""
    folder = importlib.resources.files("pobench.reports")
    read = {name: (folder / name).read_text("utf-8") for name in ("report.html", "report.css", "report.js")}
    pages = jinja2.Environment(
        loader=jinja2.DictLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digest = base64.b64encode(hashlib.sha256(read["report.js"].encode()).digest()).decode()
    return (
        pages.get_template("report.html")
        .render(
            sections=sections,
            metrics=_used_metrics(sections),
            version=__version__,
            css=Markup(read["report.css"]),
            js=Markup(read["report.js"]),
            js_hash=digest,
        )
        .lstrip()
    )


def _used_metrics(sections: Sequence[Section]) -> list[scores.Metric]:
    used = {
        str(column).partition("@")[0]
        for section in sections
        for item in section.items
        if item.table is not None
        for column in item.table.frame.columns
    }
    return [m for m in scores.METRICS.values() if m.name in used]


# ---------------------------------------------------------------- files


def _write_item(item: Item, folder: Path, formats: Sequence[str]) -> None:
    allowed = TABLE_FORMATS if item.kind == "table" else FIGURE_FORMATS
    for name, content in item.files.items():
        if name in formats and name in allowed:
            _write(folder / ("tables" if item.kind == "table" else "figures") / f"{item.name}.{name}", content)


def _write(path: Path, content: bytes) -> None:
    with whole(path) as partial:
        partial.write_bytes(content)
