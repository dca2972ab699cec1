"""Figures and tables: functions whose parameters name the frames that they read."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pobench.columns import FRAMES
from pobench.errors import PobenchError, nearest
from pobench.registry.named import Registry, settings_of


@dataclass(frozen=True)
class Figure:
    """A registered figure or table: a function whose parameters name the frames that it reads."""

    name: str
    function: Callable[..., Any]
    kind: str  # "figure" | "table"
    title: str
    paper: str  # where the paper shows it ("Fig. 2a"), "" for ours
    frames: tuple[str, ...]
    settings: Mapping[str, Any]
    doc: str
    order: int = 100
    optional: frozenset[str] = frozenset()  # frames that may be absent or empty; the function gets None then
    every_arm: bool = False  # it compares several settings of one loss, see `pobench.reporting.plot.draw`
    chapter: str = "more"  # of the page, one of CHAPTERS
    every_setting: bool = False  # it compares settings, and reads the frames of all
    by_run: frozenset[str] = frozenset()  # frames that it gets as `pobench.results.rows.Rows`, not read yet

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


figures: Registry[Figure] = Registry("figure", "pobench.analysis")


# Chapters of a report page in order: name → title.
CHAPTERS = {
    "answer": "The answer",  # its first figure stands beside the card on the first screen
    "results": "Results",
    "paper": "The paper’s claims",
    "training": "Is training healthy?",
    "length": "Likelihood and length",
    "more": "More figures",
    "methods": "What was run",
}


def _register_shown(
    kind: str,
    name: str,
    title: str,
    chapter: str,
    paper: str,
    order: int,
    aliases: Iterable[str],
    every_arm: bool,
    every_setting: bool,
) -> Callable[..., Any]:
    if chapter not in CHAPTERS:
        raise PobenchError(
            f"{kind} {name!r}: unknown chapter {chapter!r}{nearest(chapter, CHAPTERS)} Known: {', '.join(CHAPTERS)}"
        )

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        frame_names = tuple(p.name for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY)
        unknown = [a for a in frame_names if a not in FRAMES]
        if unknown:
            raise PobenchError(f"{kind} {name!r} asks for {', '.join(unknown)}; frames are {', '.join(FRAMES)}")
        doc = inspect.getdoc(function) or inspect.getdoc(sys.modules[function.__module__]) or ""
        optional = frozenset(a for a in frame_names if signature.parameters[a].default is not inspect.Parameter.empty)
        shown = Figure(
            name,
            function,
            kind,
            title,
            paper,
            frame_names,
            settings_of(function),
            doc,
            order,
            optional,
            every_arm,
            chapter,
            every_setting,
            frozenset(a for a in frame_names if "Rows" in str(signature.parameters[a].annotation)),
        )
        figures.add(shown, aliases)
        return function

    return register


def register_figure(
    name: str,
    *,
    title: str,
    chapter: str = "more",
    paper: str = "",
    order: int = 100,
    aliases: Iterable[str] = (),
    every_arm: bool = False,
    every_setting: bool = False,
) -> Callable[..., Any]:
    """Register a figure: `f(frame, …) -> Drawing`; see `pobench.reporting.plot.Drawing`. The parameters name frames; a
    frame with the default None may be absent. One annotated `Rows` is not read: the figure asks for the rows of single arms.

    chapter: of the report page, one of `CHAPTERS`. order: place in the chapter, small numbers first. paper: the figure of
    the SimPO paper that it corresponds to. every_arm: it compares several settings of one loss and always gets all of
    them. every_setting: it shows several settings of `pobench run --setting`, and gets the frames of all of them. Raises
    PobenchError for an unknown chapter or frame.
    """
    return _register_shown("figure", name, title, chapter, paper, order, aliases, every_arm, every_setting)


def register_table(
    name: str,
    *,
    title: str,
    chapter: str = "more",
    paper: str = "",
    order: int = 100,
    aliases: Iterable[str] = (),
    every_arm: bool = False,
    every_setting: bool = False,
) -> Callable[..., Any]:
    """Register a table: `f(frame, …) -> DataFrame` of Estimates and plain values. Arguments as for `register_figure`."""
    return _register_shown("table", name, title, chapter, paper, order, aliases, every_arm, every_setting)
