"""Builds the report from frames: every figure and table, one self-contained page, and a summary for a pull request.

The same frames give the same bytes: no file contains a date, a path or the order of the runs. Each `Comparable`, a group of
runs that may be compared, is a section of the page.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from pobench import registry
from pobench.errors import PobenchError, UndrawnError, UnknownNameError, nearest
from pobench.files import whole
from pobench.reporting.answers import (
    MOST_PACKED,
    Packed,
    SamplePrompt,
    pack_answers,
    pack_benchmarks,
    sample_answers,
    write_answers,
)
from pobench.reporting.card import Card, Finding, make_card
from pobench.reporting.items import Download, Item, Task, _draw_all, list_made_from, list_runs, say_made_from
from pobench.reporting.looks import look_of
from pobench.reporting.summary import both_fell, facts, scorecard, summarise
from pobench.reporting.tables import TEX_NEEDS, clean, latex, listing, markdown, to_latex, to_markdown
from pobench.results import metrics
from pobench.results.arms import json_object, of_arm, settings_of, show_setting
from pobench.results.comparable import Comparable, Selection, ordered, side_by_side, split
from pobench.results.derived import Frames
from pobench.results.frame_files import write_frames

FIGURE_FORMATS = ("png", "svg", "csv")
TABLE_FORMATS = ("md", "csv", "tex")
FORMATS = ("html", "png", "svg", "csv", "md", "tex")
PICTURES = {"html", "png", "svg"}  # formats with a figure's picture
FRAMES = "parquet"  # a format of its own, which a report has where it is asked for: `pobench.results.frame_files`
ANSWERS = "answers"  # likewise: every answer as files beside the page, which a page that is served reads
ACROSS = "several-settings"  # the section of what is shown of all settings together
LARGEST_PAGE = 10_000_000  # bytes; beyond it, the largest pictures stay files


def build_report(
    frames: Mapping[str, pd.DataFrame],
    out: str | Path,
    *,
    figures: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
    setting: str | None = None,
    seed: int = 0,
) -> Path:
    """Write figures, tables, `report.html`, `summary.md` and `tables.tex` under `out`; return the page's path, or the
    folder's without the format html.

    frames: as `pobench.results.load` gives them; figures whose frame is missing say so.
    figures: names of figures and tables, default all. setting: only this one. formats: any of `FORMATS`, and `FRAMES` and
    `ANSWERS`.
    Raises PobenchError when there is no run, or for unknown names; UndrawnError, once the rest is written, where the code of a
    figure failed.
    """
    known = (*FORMATS, FRAMES, ANSWERS)
    unknown = [f"unknown format {name!r}{nearest(name, known)}" for name in formats if name not in known]
    if unknown:
        raise PobenchError("\n".join([*unknown, f"formats are {', '.join(known)}"]))
    shown, stored = chosen(figures), ordered(frames)
    groups = split(stored, setting=setting, seed=seed)
    sections = build_sections(groups, shown, not PICTURES.isdisjoint(formats))
    out = Path(out)
    for section in sections:
        for item in section.items:
            _write_item(item, out / section.folder, formats)
    if ANSWERS in formats:
        lay_answers_beside(sections, groups, out)
    pages = {
        "report.html": lambda: render(sections),
        "summary.md": lambda: "\n".join(map(summary_markdown, sections)),
        "tables.tex": lambda: all_tables(sections),
    }
    for name, page in pages.items():
        if name.rpartition(".")[2] in formats:
            _write(out / name, page().encode("utf-8", "replace"))
    if FRAMES in formats:
        write_group_frames(stored, groups, [group.frames["scores"] for group in groups], out / "frames")
    report = out / "report.html" if "html" in formats else out
    refuse_undrawn(sections, report)
    return report


def build_sections(
    groups: Sequence[Comparable], shown: Sequence[registry.Figure], pictures: bool = True
) -> list[Section]:
    """The sections of a page: of several groups first what is shown of all together, then each group's, in order."""
    anchored = [(group, _slug(group.title) or f"section-{place}") for place, group in enumerate(groups)]
    across = [figure for figure in shown if figure.every_setting] if len(groups) > 1 else []
    within = [figure for figure in shown if figure not in across]
    several = side_by_side(groups)
    tasks = [Task(figure, several, ACROSS, pictures) for figure in across]
    tasks += [Task(figure, group, anchor, pictures) for group, anchor in anchored for figure in within]
    items = iter(_draw_all(tasks))
    sections = [_build_across(several, [next(items) for _ in across])] if across else []
    most = MOST_PACKED // len(groups)
    return sections + [build_section(group, anchor, [next(items) for _ in within], most) for group, anchor in anchored]


def lay_answers_beside(
    sections: Sequence[Section], groups: Sequence[Comparable], out: Path, runs: Set[str] | None = None
) -> None:
    """Write answers as files below the page's folder, which a page that is served reads. sections: those of the groups come
    last. runs: only arms with one of these."""
    for group, section in zip(groups, sections[-len(groups) :], strict=True):
        written = write_answers(group, out / section.folder / ANSWERS, runs)
        section.beside_page = {name: index.relative_to(out).as_posix() for name, index in written.items()}


def refuse_undrawn(sections: Iterable[Section], report: Path) -> None:
    """Raises UndrawnError where the code of a figure failed."""
    if failed := {item.name: item.failure for section in sections for item in section.items if item.failure}:
        raise UndrawnError(report, failed)


def write_group_frames(
    frames: Frames,
    groups: Sequence[Comparable],
    scores: Sequence[pd.DataFrame],
    folder: Path,
    detailed: Set[str] | None = None,
) -> None:
    """The frames of the groups. scores: of each group. detailed: the only runs whose rows of prompts, pairs and steps are
    written; None: all."""
    own = frames.of_runs(run for group in groups for run in group.frames["runs"]["run"])
    by_run = own.by_run if detailed is None else {name: rows.only(detailed) for name, rows in own.by_run.items()}
    every_score = pd.concat(scores, ignore_index=True).sort_values(["run", "metric"], kind="stable")
    write_frames(Frames({**own.stored, "scores": every_score}, own.later, by_run), folder)


def chosen(names: Sequence[str] | None) -> list[registry.Figure]:
    if names is None or list(names) == ["all"]:
        names = registry.figures.names()
    figures, faults = [], []
    for name in names:
        try:
            figures.append(registry.figures.get(name))
        except UnknownNameError as error:
            faults.append(str(error))
    if faults:
        raise PobenchError("\n".join(faults))
    return sorted({f.name: f for f in figures}.values(), key=lambda f: (f.order, f.name))


# ---------------------------------------------------------------- formulas, environment
@dataclass
class Formula:
    """The exact objective of a loss and the settings it was trained with."""

    label: str
    colour: str
    formula: str
    source: str
    link: str
    needs: str
    settings: list[tuple[str, str, str, str]]  # name, value, unit, where the value comes from
    known: bool


def formulas(selection: Selection) -> list[Formula]:
    """One for each loss and its settings, from the registry; `known` is False for a loss that is not registered here."""
    entries = []
    for arm in selection.trained:
        row = of_arm(selection.frames["runs"], arm).iloc[0]
        used, sources = settings_of(row), json_object(row.get("sources"))
        colour = look_of(arm.loss).colour
        try:
            loss = registry.get_loss(arm.loss)
        except PobenchError:  # of a plug-in, or of another version
            rows = [(k, show_setting(v), "", str(sources.get(k, ""))) for k, v in used.items()]
            entries.append(Formula(clean(arm.label), colour, "", "", "", "", rows, False))
            continue
        rows = [
            (k, show_setting(v), loss.units.get(k, ""), _source(k, v, loss, sources))
            for k, v in used.items()
            if v is not None
        ]
        number = re.search(r"arXiv[: ]*(\d{4}\.\d{4,5})", loss.source)
        link = f"https://arxiv.org/abs/{number[1]}" if number else ""
        needs = listing(sorted(loss.needs)) or "nothing but the policy"
        needs += f"; {registry.READ_AS[loss.unit]}" if registry.READ_AS[loss.unit] else ""
        entries.append(Formula(clean(arm.label), colour, loss.formula, loss.source, link, needs, rows, True))
    return entries


def _source(name: str, value: Any, loss: registry.Loss, sources: Mapping[str, Any]) -> str:
    if name in sources:
        return clean(str(sources[name]), 200)
    source = "the default" if name in loss.settings and loss.settings[name] == value else ""
    if name in loss.ranges:
        searched = loss.ranges[name]
        values = [show_setting(v) for v in (searched if isinstance(searched, list | tuple) else [searched])]
        source += ("; " if source else "") + f"published search over {listing(values)}"
    return source


def environment(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """(key, value) of the environment that all runs share; where runs differ, every value that occurs."""
    versions: dict[str, list[str]] = {}
    for text in runs["environment"].unique():
        for key, value in _flat(json_object(text)):
            values = versions.setdefault(key, [])
            if value not in values:
                values.append(value)
    return [(clean(k, 80), clean(" | ".join(sorted(v)), 300)) for k, v in sorted(versions.items())]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} · ")
        else:
            yield f"{prefix}{key}", str(value)


# ---------------------------------------------------------------- the page
@dataclass
class Section:
    """A section of the page: one group of comparable runs."""

    anchor: str
    folder: str
    title: str
    facts: str
    notes: list[str]
    card: Card | None  # None where settings stand beside each other
    beside: list[Item]  # the figure beside the card, if it was drawn
    findings: list[Finding]
    chapters: list[tuple[str, str, list[Item], list[Item]]]  # anchor, title, items drawn, items that cannot be
    samples: list[SamplePrompt]
    packed: Packed | None  # answers for the reader
    benchmarks: list[Packed]  # and those to the questions of benchmarks, beside their baselines'
    formulas: list[Formula]
    environment: list[tuple[str, str]]
    both_fell: str
    items: list[Item]
    losses: str  # JSON: name, title, colour and the labels of each trained loss
    beside_page: Mapping[str, str] = field(
        default_factory=dict
    )  # `Packed.name` → the index of answers that lie beside the page

    @property
    def summary(self) -> Download:
        return Download.of(f"{self.folder}.md", summary_markdown(self).encode("utf-8", "replace"))


def build_section(
    comparable: Comparable, anchor: str, drawn: Sequence[Item], most_packed: int = MOST_PACKED
) -> Section:
    """The section of a group: its items by chapter, findings, samples and formulas. most_packed: bytes of packed answers."""
    say_made_from(drawn, comparable.frames["runs"])
    items = [*drawn, list_made_from(drawn, comparable, anchor), list_runs(comparable, anchor)]
    tables = _tables(items)
    health = tables.get("training-health")
    beside = [item for item in items if item.chapter == "answer" and item.picture][:1]
    benchmarks = pack_benchmarks(comparable.home, most_packed // 2)
    models = [str(n) for n in comparable.frames["runs"]["note"].dropna()]
    notes = dict.fromkeys(clean(note, 600) for note in [comparable.apart, *models] if note.strip())
    return Section(
        anchor=anchor,
        folder=anchor,
        title=clean(comparable.title, 120),
        facts=facts(comparable),
        notes=list(notes),
        card=make_card(comparable),
        beside=beside,
        findings=summarise(comparable, *map(tables.get, ("claims", "looked-before"))),
        chapters=_chapters([item for item in items if item not in beside]),
        samples=sample_answers(comparable.home),
        packed=pack_answers(comparable.home, most_packed - sum(len(one.content) for one in benchmarks)),
        benchmarks=benchmarks,
        formulas=formulas(comparable.home),
        environment=environment(comparable.frames["runs"]),
        both_fell=both_fell(health),
        items=items,
        losses=list_losses(comparable),
    )


def _build_across(several: Comparable, drawn: Sequence[Item]) -> Section:
    """The section of what is shown of several settings together."""
    say_made_from(drawn, several.frames["runs"])
    items = [*drawn, list_made_from(drawn, several, ACROSS), list_runs(several, ACROSS)]
    return Section(
        anchor=ACROSS,
        folder=ACROSS,
        title=several.title,
        facts=clean(several.setting),
        notes=[],
        card=None,
        beside=[],
        findings=scorecard(_tables(items).get("claims-across-settings")),
        chapters=_chapters(items),
        samples=[],
        packed=None,
        benchmarks=[],
        formulas=[],
        environment=[],
        both_fell="",
        items=items,
        losses=list_losses(several),
    )


def list_losses(comparable: Comparable) -> str:
    """JSON of every trained loss, by name: [name, title, colour, labels]. The page's script finds a loss's rows by the labels
    of its arms."""
    found: dict[str, list[str]] = {}
    for arm in [*comparable.every_arm.trained, *comparable.home.trained]:
        found.setdefault(arm.loss, []).append(clean(arm.label))
    rows = []
    for loss in sorted(found):
        labels = list(dict.fromkeys(found[loss]))
        title = labels[0] if len(labels) == 1 else min(labels, key=len).partition(" (")[0]
        rows.append([clean(loss), title, look_of(loss).colour, labels])
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def _tables(items: Iterable[Item]) -> dict[str, pd.DataFrame]:
    """Name → frame, of the tables that were drawn."""
    return {item.name: item.table.frame for item in items if item.table}


def _chapters(items: Sequence[Item]) -> list[tuple[str, str, list[Item], list[Item]]]:
    """`Section.chapters`."""
    chapters = []
    for name, title in registry.CHAPTERS.items():
        inside = [item for item in items if item.chapter == name]
        chapters.append((name, title, [i for i in inside if not i.missing], [i for i in inside if i.missing]))
    return chapters


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:80]


@dataclass(frozen=True)
class Site:
    """What the page of a shared site has beside: the social card's sentence and picture, files as (path, what it is), and the
    address at which it will stand, ending in a slash, where that is known."""

    sentence: str
    picture: str
    files: Sequence[tuple[str, str]]
    address: str = ""


def link_runs(section: Section, arms: Mapping[str, str], runs: Mapping[str, str]) -> None:
    """Lead the names of arms and runs to their pages. arms: label → address. runs: name → address."""
    for item in section.items:
        for row in item.table.rows if item.table else ():
            row[0].href = arms.get(row[0].text, "")
            for cell in row:
                cell.href = cell.href or runs.get(cell.full, "")
        for cell in item.behind:
            cell.href = runs.get(cell.full, "")


def render(sections: Sequence[Section], site: Site | None = None) -> str:
    """The page as one string of at most `LARGEST_PAGE` bytes; the largest pictures are left out of a larger page."""
    page = _render(sections, site)
    drawn = [(item, section) for section in sections for item in section.items if item.picture]
    for item, section in sorted(drawn, key=lambda d: -len(d[0].picture or "")):
        if len(page.encode("utf-8", "replace")) <= LARGEST_PAGE:
            break
        where = f"{section.folder}/figures/{item.name}.svg"
        item.picture, item.hints = Markup("<p>Too large for this page: {}</p>").format(where), ""
        page = _render(sections, site)
    return page


PAGE_FILES = ("report.html", "report.css", "answers.css", "report.js", "narrow.js", "answers.js")


def _render(sections: Sequence[Section], site: Site | None) -> str:
    folder = importlib.resources.files("pobench.reports")
    read = {name: (folder / name).read_text("utf-8") for name in PAGE_FILES}
    script, look = ("\n".join(text for name, text in read.items() if name.endswith(end)) for end in (".js", ".css"))
    pages = jinja2.Environment(
        loader=jinja2.DictLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["code"] = _code
    page = pages.get_template("report.html").render(
        sections=sections,
        site=site,
        settings=sum(section.anchor != ACROSS for section in sections),
        metrics=_used_metrics(sections),
        version=importlib.metadata.version("pobench"),
        css=Markup(look),
        js=Markup(script),
        js_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return page.lstrip()


def _code(text: str) -> Markup:
    """The text, escaped, with code elements for text between backticks."""
    return Markup(re.sub(r"`([^`<>]+)`", r"<code>\1</code>", str(escape(text))))


def _used_metrics(sections: Sequence[Section]) -> list[metrics.Metric]:
    used = {
        str(column).partition("@")[0]
        for section in sections
        for item in section.items
        if item.table is not None
        for column in item.table.frame.columns
    }
    return [m for m in metrics.METRICS.values() if m.name in used]


# ---------------------------------------------------------------- the other files
TONES = {"good": "▲", "bad": "▼", "open": "○", "note": "·"}


def summary_markdown(section: Section) -> str:
    """The section in Markdown for a pull request: facts, the card, findings and the first table of results."""
    card = section.card
    answer = [f"**{markdown(card.answer)}**"] if card else []
    lists = [_bullets(findings) for findings in (card.lines if card else [], section.findings) if findings]
    notes = [f"> {markdown(note)}" for note in section.notes]
    first = [item for name, _, drawn, _ in section.chapters if name == "results" for item in drawn][:1]
    tables = [to_markdown(item.table) for item in first if item.table]
    blocks = [
        f"## {markdown(section.title)}",
        markdown(section.facts),
        *answer,
        *lists[:1],
        *notes,
        *lists[1:],
        *tables,
    ]
    if tables:
        blocks.append("In brackets: 95 % interval and the number n of prompts or pairs behind each value.")
    return "\n\n".join(block.rstrip() for block in blocks) + "\n"


def _bullets(findings: Iterable[Finding]) -> str:
    return "\n".join(f"- {TONES[f.tone]} **{markdown(f.head)}.** {markdown(f.text)}" for f in findings)


def all_tables(sections: Sequence[Section]) -> str:
    """A LaTeX document of every table, to read and copy from; each table is also a file for `\\input`."""
    lines = [
        r"\documentclass{article}",
        *TEX_NEEDS,
        r"\usepackage[landscape, margin=15mm]{geometry}",
        r"\usepackage{graphicx}",
    ]
    lines += [r"\begin{document}", r"\footnotesize"]
    for section in sections:
        lines.append(rf"\section*{{{latex(section.title)}}}")
        for item in section.items:
            if item.table:
                lines += [
                    rf"\subsection*{{{latex(item.title)}}}",
                    r"\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                ]
                lines += [to_latex(item.table).rstrip() + "}", "", latex(item.caption), ""]
    return "\n".join([*lines, r"\end{document}"]) + "\n"


def _write_item(item: Item, folder: Path, formats: Sequence[str]) -> None:
    allowed = TABLE_FORMATS if item.kind == "table" else FIGURE_FORMATS
    for name, content in item.files.items():
        if name in formats and name in allowed:
            _write(folder / ("tables" if item.kind == "table" else "figures") / f"{item.name}.{name}", content)


def _write(path: Path, content: bytes) -> None:
    with whole(path) as partial:
        partial.write_bytes(content)
