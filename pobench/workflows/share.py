"""A report as a static site: the page, a page for every run and arm, frames as Parquet and CSV, references, methods, a picture.

It names no path of the machine, no key, and of the judge the name alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd

from pobench.errors import PobenchError
from pobench.files import MarkedFolder, digests_of, sealed, whole
from pobench.reporting.methods import bibtex, methods
from pobench.reporting.page import (
    Section,
    Site,
    build_sections,
    chosen,
    lay_answers_beside,
    link_runs,
    refuse_undrawn,
    render,
    write_group_frames,
)
from pobench.reporting.run_facts import without_paths
from pobench.reporting.run_page import Pages, answers_file, page_of, page_of_arm, render_page
from pobench.reporting.social_card import social_card
from pobench.reporting.tables import clean
from pobench.results.comparable import Comparable, ordered, split
from pobench.results.derived import Frames
from pobench.results.frame_files import is_frames
from pobench.results.load import open_frames
from pobench.results.mirror import local_runs
from pobench.results.run_folder import RunFolder
from pobench.spreadsheet import csv_bytes

# Columns of text that pobench or the user wrote, and not a model or a data set.
WRITTEN = {
    "runs": ("reason", "note", "environment", "sources", "tuned"),
    "audit": ("rows",),
    "tuning": ("reason",),
}
MOST_ROWS = 200_000  # of a frame as CSV; a larger one is there as Parquet


class SiteFolder(MarkedFolder):
    """A folder that `share` wrote, whole."""

    marker = "site.json"


def share(
    runs: str | Path, out: Path, setting: str | None = None, figures: Sequence[str] | None = None, address: str = ""
) -> Path:
    """Write the site as `out` and return its index.html. The same runs give the same bytes.

    runs: a folder of runs or its address. figures: names, default all. address: where the site will stand on the web, which
    networks need for the social card. Raises PobenchError where there are no runs, or where `out` holds anything that `share`
    did not write; UndrawnError, once all is written, where the code of a figure failed.
    """
    refuse_foreign(out)
    address = web_address(address)
    root = local_runs(runs)
    if is_frames(root):
        raise PobenchError(
            f"share: {str(runs)!r} holds frames as files; name the folder of runs, which has a page's facts"
        )
    frames = ordered(public(open_frames(root, setting)))
    groups = split(frames, setting=setting)
    sections = build_sections(groups, chosen(figures))
    configs = {str(run): RunFolder(root, str(run)).config for run in frames["runs"]["run"]}
    with whole(out, sync=False) as site:
        site.mkdir(parents=True)
        for group in groups:
            _write_pages(Pages(group, lambda run: RunFolder(root, run)), site)
        _link(sections, groups)
        lay_answers_beside(sections, groups, site)
        write_group_frames(frames, groups, site / "data")
        _write_csv(site / "data")
        losses = frames["runs"].loc[frames["runs"]["loss"] != "start", "loss"]
        _write(site / "cite.bib", bibtex(losses))
        paragraphs = [methods(group, configs) for group in groups]
        _write(site / "methods.md", "# Methods\n\n" + "\n".join(paragraphs))
        (site / "card.png").write_bytes(_picture(sections))
        _write(
            site / "index.html", render(sections, Site(_sentence(sections), "card.png", list(_files(site)), address))
        )
        about = {"made by": "pobench share", "files": digests_of(site)}
        _write(site / SiteFolder.marker, json.dumps(sealed(about), indent=1) + "\n")
    refuse_undrawn(sections, out / "index.html")
    return out / "index.html"


def web_address(text: str) -> str:
    """The address of a site's folder, with a slash at its end; "" stays. Raises PobenchError for what is none."""
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        known = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and not (parts.query or parts.fragment or parts.username)
        )
    except ValueError:
        known = False
    if not known:
        raise PobenchError(f"--url: {text!r} is no address of a folder on the web, such as https://example.org/report/")
    return text.removesuffix("index.html").rstrip("/") + "/"


def refuse_foreign(out: Path) -> None:
    """Raises PobenchError where `out` is there and holds anything that `share` did not write, or that was changed since."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    folder = SiteFolder(out)
    if not out.is_dir() or not folder.finished:
        raise PobenchError(
            f"share: {str(out)!r} is there, and `pobench share` did not write it; name another with --out"
        )
    written = folder.about.get("files")
    present = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()} - {SiteFolder.marker}
    foreign = sorted(present - set(written if isinstance(written, dict) else ()))
    foreign += [error.path.relative_to(out).as_posix() for error in folder.faults() if error.path.is_file()]
    if foreign:
        first = ", ".join(map(repr, foreign[:5])) + (f" and {len(foreign) - 5} more" if foreign[5:] else "")
        raise PobenchError(
            f"share: {str(out)!r} holds what `pobench share` did not write: {first}; name another with --out"
        )


def public(frames: Frames) -> Frames:
    """The frames, of which what pobench or the user wrote names no path and no key."""
    stored = dict(frames.stored)
    for name, columns in WRITTEN.items():
        frame = stored[name]
        stored[name] = frame.assign(**{c: frame[c].map(_public, na_action="ignore") for c in columns if c in frame})
    return Frames(stored, by_run=frames.by_run)


def _public(value: Any) -> Any:
    """Text, or JSON as text, whose strings are cleaned one by one."""
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        return without_paths(value)
    return json.dumps(_cleaned(parsed)) if isinstance(parsed, dict | list) else without_paths(value)


def _cleaned(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _cleaned(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_cleaned(value) for value in tree]
    return without_paths(tree) if isinstance(tree, str) else tree


# ---------------------------------------------------------------- the parts
def _write_pages(pages: Pages, site: Path) -> None:
    for run in pages.runs:
        page, answers = pages.run(run)
        path = site / page_of(run)
        _write(path, render_page(page))
        if answers:
            path.with_name(page.every_answer).write_bytes(answers_file(answers))
    for arm in pages.comparable.every_arm.arms:
        if len(arm.runs) > 1:
            _write(site / page_of(arm.id), render_page(pages.arm(arm)))


def _link(sections: Sequence[Section], groups: Sequence[Comparable]) -> None:
    """Each section's rows lead to the pages of its arms; those of several settings name no single one."""
    alone = sections[len(sections) - len(groups) :]
    for section, group in zip(alone, groups, strict=True):
        arms = [*group.every_arm.arms, *group.home.arms]
        link_runs(section, {clean(arm.label): page_of_arm(arm) for arm in arms}, _runs_of(group))
    for section in sections[: len(sections) - len(groups)]:
        link_runs(section, {}, {run: page for group in groups for run, page in _runs_of(group).items()})


def _runs_of(group: Comparable) -> dict[str, str]:
    return {clean(str(run)): page_of(str(run)) for run in group.frames["runs"]["run"]}


def _write_csv(folder: Path) -> None:
    """Beside each Parquet file the same as CSV, in which no cell is a formula."""
    for file in sorted(folder.glob("*.parquet")):
        frame = pd.read_parquet(file)
        if len(frame) <= MOST_ROWS:
            file.with_suffix(".csv").write_bytes(csv_bytes(frame))


def _sentence(sections: Sequence[Section]) -> str:
    return next((section.card.answer for section in sections if section.card), "")


def _picture(sections: Sequence[Section]) -> bytes:
    shown = next(section for section in sections if section.card)
    title = shown.title if len(sections) == 1 else f"{sum(section.card is not None for section in sections)} settings"
    main = [item.files["png"] for item in shown.beside if "png" in item.files]
    return social_card(
        f"Preference objectives on {title}",
        shown.card.answer if shown.card else "",
        shown.facts,
        next(iter(main), None),
    )


def _files(site: Path) -> Iterator[tuple[str, str]]:
    """(path, what it is) of the files that the page lists."""
    from pobench.columns import FRAMES

    yield "methods.md", "A paragraph on the methods for a paper. Each clause is made from what these runs store."
    yield "cite.bib", "pobench and the papers of the losses, as BibTeX."
    for file in sorted((site / "data").iterdir()):
        meaning = FRAMES[file.stem].meaning if file.suffix == ".parquet" else "The same as CSV."
        yield f"data/{file.name}", meaning


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "replace"))
