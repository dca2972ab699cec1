"""Draws registered figures and tables, for the report and for notebooks: `figure("margin-vs-length", load_frames("runs"))`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from pobench import registry
from pobench.columns import FRAMES
from pobench.errors import PobenchError, nearest
from pobench.reporting import plot
from pobench.reporting.plot import Drawing, Figure, NothingToDraw, _Panels, style
from pobench.reporting.tables import numbers
from pobench.results.comparable import Selection, ordered, split
from pobench.results.derived import Frames
from pobench.results.rows import Frame


def draw(shown: registry.Figure, selection: Selection | Mapping[str, pd.DataFrame], **settings: Any) -> Any:
    """Call a registered figure or table with the frames it names, in our style.

    selection: from `Comparable.shown_in`; its notes on arms and rounds left out are added to the figure's. Plain frames are
    drawn as they are. Returns a Drawing or a DataFrame. Raises NothingToDraw where a frame is absent or empty.
    """
    if not isinstance(selection, Selection):
        selection = Selection(selection if isinstance(selection, Frames) else Frames(selection))
    supplied = _supplied(shown, selection.frames)
    notes = selection.left_out if shown.every_arm or "runs" not in shown.frames else selection.notes
    with style(f"pobench-{shown.name}"):
        drawn = shown(*supplied, **settings)
        if not isinstance(drawn, Drawing):
            if notes:
                drawn.attrs["notes"] = f"{drawn.attrs.get('notes', '')} {notes}".strip()
            return drawn
        if isinstance(drawn.figure, _Panels):
            drawn.figure.align()
        if (layout := drawn.figure.get_layout_engine()) is not None:
            layout.execute(drawn.figure)  # lay out once, so that every format has the same geometry
        plot.part_names(drawn.figure)
        drawn.figure.set_layout_engine(None)  # "none" leaves a placeholder, for which saving draws everything twice
        return drawn._replace(notes=f"{drawn.notes} {notes}".strip())


def _supplied(shown: registry.Figure, frames: Frames) -> list[Frame | None]:
    """The figure's arguments. Raises NothingToDraw."""
    supplied: list[Frame | None] = []
    for name in shown.frames:
        frame = frames.rows(name) if name in shown.by_run else frames.get(name)
        absent = frame is None or not len(frame)
        if absent and name not in shown.optional:
            raise NothingToDraw(f"{FRAMES[name].absent}.")
        supplied.append(None if absent else frame)
    return supplied


def figure(name: str, frames: Mapping[str, pd.DataFrame], *, setting: str | None = None, **options: Any) -> Figure:
    """A registered figure (`pobench list figures`) of stored runs, as the report draws it. In a notebook it shows itself.

    frames: of `load_frames`. setting: which one, where the frames hold several; None for a figure that shows all. options: the
    figure's own, e.g. `bins`.
    Raises PobenchError: an unknown name or option, a table's name, several settings, or nothing to draw, with the reason.
    """
    drawn = _draw("figure", name, frames, setting, options)
    assert isinstance(drawn, plot.Drawing)
    return drawn.figure


def table(name: str, frames: Mapping[str, pd.DataFrame], *, setting: str | None = None, **options: Any) -> pd.DataFrame:
    """The numbers of a registered table of stored runs: the columns and rows of its CSV in the report, not rounded.

    An estimate `x` has the columns `x`, `x_low`, `x_high` and `x_n`; where a row is one estimate, as in `claims`, they are
    `value`, `low`, `high` and `n`. `attrs["notes"]` is the report's note below the table, if there is one. Arguments and faults
    as of `figure`.
    """
    drawn = _draw("table", name, frames, setting, options)
    assert isinstance(drawn, pd.DataFrame)
    return numbers(drawn)


def _draw(
    kind: str, name: str, frames: Mapping[str, pd.DataFrame], setting: str | None, options: Mapping[str, Any]
) -> Any:
    shown = registry.figures.get(name)
    faults = [
        f"{shown.name} has no option {option!r}{nearest(option, shown.settings)} "
        f"Its options: {', '.join(shown.settings) or 'none'}"
        for option in options
        if option not in shown.settings
    ]
    if shown.kind != kind:
        faults.append(f"{shown.name} is a {shown.kind}: pobench.{shown.kind}({shown.name!r}, frames)")
    if shown.every_setting and setting is not None:
        faults.append(f"{shown.name} shows all settings of the frames: leave out setting={setting!r}")
    stored = ordered(frames)
    groups = [] if shown.every_setting else split(stored, setting=setting)
    if len(groups) > 1:
        titles = "; ".join(group.title for group in groups)
        faults.append(
            f"the frames hold {len(groups)} groups of runs that may not be compared: {titles}. Choose a setting=, or load "
            "the runs of one: load_frames(runs, setting)"
        )
    if faults:
        raise PobenchError("\n".join(faults))
    try:
        return draw(shown, groups[0].shown_in(shown) if groups else stored, **options)
    except plot.NothingToDraw as reason:
        raise PobenchError(f"{shown.name} cannot be drawn: {reason}") from None
