"""A report as a static site: the page, a page for every run and arm, frames as Parquet and CSV, references, methods, a picture.
Of thousands of runs, most are rows of lists.

It names no path of the machine, no key, and of the judge the name alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache, partial
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
from pobench.reporting.run_page import Pages, render_page
from pobench.reporting.social_card import social_card
from pobench.reporting.tables import clean
from pobench.results.comparable import Comparable, ordered, scores_of_arms, split
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
MOST_PAGES = 1000  # runs that have a page each; of more, those with their setting's own values have one


class SiteFolder(MarkedFolder):
    """A folder that `share` wrote, whole."""

    marker = "site.json"


def share(
    runs: str | Path,
    out: Path,
    setting: str | None = None,
    figures: Sequence[str] | None = None,
    address: str = "",
    frames: Frames | None = None,
) -> Path:
    """Write the site as `out` and return its index.html. The same runs give the same bytes.

    runs: a folder of runs or its address. figures: names, default all. address: where the site will stand on the web, which
    networks need for the social card. frames: those of the runs, where they are open already. Raises PobenchError where there
    are no runs, or where `out` holds anything that `share` did not write; UndrawnError, once all is written, where the code of
    a figure failed.
    """
    refuse_foreign(out)
    address = web_address(address)
    root = local_runs(runs)
    if is_frames(root):
        raise PobenchError(
            f"share: {str(runs)!r} holds frames as files; name the folder of runs, which has a page's facts"
        )
    frames = ordered(public(open_frames(root, setting) if frames is None else frames))
    groups = split(frames, setting=setting)
    sections = build_sections(groups, chosen(figures))
    own = _with_pages(groups)
    detailed = own if len(own) < len(frames["runs"]) else None
    configs = {run: RunFolder(root, run).config for run in own}
    scores = [scores_of_arms(group.frames, detailed) for group in groups]
    with whole(out, sync=False) as site:
        site.mkdir(parents=True)
        lay_answers_beside(sections, groups, site, own)
        pages = _pages_of(groups, sections, configs, scores, root)
        for each in pages:
            for path, page in each.written():
                _write(site / path, render_page(page))
        _link(sections, pages)
        write_group_frames(frames, groups, scores, site / "data", detailed)
        _write_csv(site / "data")
        losses = frames["runs"].loc[frames["runs"]["loss"] != "start", "loss"]
        _write(site / "cite.bib", bibtex(losses))
        paragraphs = [methods(group, configs) for group in groups]
        _write(site / "methods.md", "# Methods\n\n" + "\n".join(paragraphs))
        (site / "card.png").write_bytes(_picture(sections))
        facts = Site(_sentence(sections), "card.png", [*_files(site), *_lists(pages)], address)
        _write(site / "index.html", render(sections, facts))
        about = {"made by": "pobench share", "files": digests_of(site)}
        _write(site / SiteFolder.marker, json.dumps(sealed(about), indent=1) + "\n")
    refuse_undrawn(sections, out / "index.html")
    return out / "index.html"


def _with_pages(groups: Sequence[Comparable]) -> Set[str]:
    """The runs that have a page: all, or, of more than `MOST_PAGES`, those with their setting's own values."""
    every = [str(run) for group in groups for run in group.frames["runs"]["run"]]
    at_home = [str(run) for group in groups for run in group.home.frames["runs"]["run"]]
    return dict.fromkeys(every if len(every) <= MOST_PAGES else at_home).keys()


def _pages_of(
    groups: Sequence[Comparable],
    sections: Sequence[Section],
    configs: Mapping[str, Mapping[str, Any]],
    scores: Sequence[pd.DataFrame],
    root: Path,
) -> list[Pages]:
    """The pages of each group. sections: those of the groups come last."""
    every = []
    for number, (group, section, scored) in enumerate(zip(groups, sections[-len(groups) :], scores, strict=True), 1):
        own = {run: configs[run] for run in group.frames["runs"]["run"] if run in configs}
        answers = section.beside_page.get("", "").rpartition("/")[0]
        every.append(Pages(group, partial(RunFolder, root), own, scored, answers, number))
    return every


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


def refuse_foreign(out: Path, *, read: bool = True) -> None:
    """Raises PobenchError where `out` is there and holds anything that `share` did not write, or, where its files are read,
    that was changed since."""
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
    faults = folder.faults() if read else []
    foreign += [error.path.relative_to(out).as_posix() for error in faults if error.path.is_file()]
    if foreign:
        first = ", ".join(map(repr, foreign[:5])) + (f" and {len(foreign) - 5} more" if foreign[5:] else "")
        raise PobenchError(
            f"share: {str(out)!r} holds what `pobench share` did not write: {first}; name another with --out"
        )


def public(frames: Frames) -> Frames:
    """The frames, of which what pobench or the user wrote names no path and no key."""
    stored, shown = dict(frames.stored), cache(_public)  # most runs have the same environment
    for name, columns in WRITTEN.items():
        frame = stored[name]
        stored[name] = frame.assign(**{c: frame[c].map(shown, na_action="ignore") for c in columns if c in frame})
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
def _link(sections: Sequence[Section], pages: Sequence[Pages]) -> None:
    """Each section's rows lead to the pages of its arms; those of several settings name no single one."""
    runs = [{clean(run): address for run, address in each.addresses.items()} for each in pages]
    for section, each, own in zip(sections[len(sections) - len(pages) :], pages, runs, strict=True):
        arms = [*each.comparable.every_arm.arms, *each.comparable.home.arms]
        link_runs(section, {clean(arm.label): each.address_of_arm(arm) for arm in arms}, own)
    for section in sections[: len(sections) - len(pages)]:
        link_runs(section, {}, {run: page for own in runs for run, page in own.items()})


def _write_csv(folder: Path) -> None:
    """Beside each Parquet file the same as CSV, in which no cell is a formula."""
    from pyarrow import parquet

    for file in sorted(folder.glob("*.parquet")):
        if parquet.read_metadata(file).num_rows <= MOST_ROWS:
            file.with_suffix(".csv").write_bytes(csv_bytes(pd.read_parquet(file)))


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


def _lists(pages: Sequence[Pages]) -> Iterator[tuple[str, str]]:
    """The same of pages that list runs."""
    for each in pages:
        for page, listed in each.lists.items():
            yield page, f"{len(listed)} further runs of {each.comparable.title}, which have no page each."


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8", "replace"))
