"""Figures and tables by name, for notebooks: `figure("margin-vs-length", load_frames("runs"))`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pobench import registry
from pobench.columns import FRAMES
from pobench.errors import PobenchError, nearest
from pobench.reporting import plot
from pobench.reporting.plot import Drawing, NothingToDraw, _Panels, style
from pobench.results.comparable import at_home, ordered, split
from pobench.results.derived import Frames


def draw(shown: registry.Figure, frames: Mapping[str, pd.DataFrame], **settings: Any) -> Any:
    """Call a registered figure or table with the frames it names, in our style.

    Of more than `MOST_ARMS` arms, only those at home are shown (each loss as its setting has it), and a note says so,
    except where the figure is about how settings of one loss differ (`every_arm`).
    Returns its Drawing or DataFrame. Raises NothingToDraw where a frame is absent or empty.
    """
    frames = frames if isinstance(frames, Frames) else Frames(frames)
    frames, left_out = (frames, "") if shown.every_arm else at_home(frames)
    supplied = []
    for name in shown.frames:
        frame = frames.get(name)
        absent = frame is None or frame.empty
        if absent and name not in shown.optional:
            raise NothingToDraw(f"{FRAMES[name].absent}.")
        supplied.append(None if absent else frame)
    with style(f"pobench-{shown.name}"):
        drawn = shown(*supplied, **settings)
        if left_out and isinstance(drawn, Drawing):
            drawn = drawn._replace(notes=f"{drawn.notes} {left_out}".strip())
        elif left_out:
            drawn.attrs["notes"] = f"{drawn.attrs.get('notes', '')} {left_out}".strip()
        if isinstance(drawn, Drawing) and isinstance(drawn.figure, _Panels):
            drawn.figure.align()
        if isinstance(drawn, Drawing):  # lay it out once, so that every format has the same geometry
            drawn.figure.draw_without_rendering()
            drawn.figure.set_layout_engine("none")
        return drawn


def figure(name: str, frames: Mapping[str, pd.DataFrame], *, setting: str | None = None, **options: Any) -> Figure:
    """A registered figure (`pobench list figures`) of stored runs, as the report draws it.

    frames: of `load_frames`. setting: which one, where the frames hold several. options: the figure's own, e.g. `bins`.
    Raises PobenchError: an unknown name or option, a table's name, several settings, or nothing to draw, with the reason.
    """
    drawn = _draw("figure", name, frames, setting, options)
    assert isinstance(drawn, plot.Drawing)
    return drawn.figure


def table(name: str, frames: Mapping[str, pd.DataFrame], *, setting: str | None = None, **options: Any) -> pd.DataFrame:
    """A registered table of stored runs, its cells plain values and Estimates. Arguments and faults as of `figure`."""
    drawn = _draw("table", name, frames, setting, options)
    assert isinstance(drawn, pd.DataFrame)
    return drawn


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
    parts = split(ordered(frames), setting=setting)
    if len(parts) > 1:
        titles = "; ".join(part.title for part in parts)
        faults.append(
            f"the frames hold {len(parts)} groups of runs that may not be compared: {titles}. Choose a setting=, or load "
            "the runs of one: load_frames(runs, setting)"
        )
    if faults:
        raise PobenchError("\n".join(faults))
    try:
        return draw(shown, parts[0].frames, **options)
    except plot.NothingToDraw as reason:
        raise PobenchError(f"{shown.name} cannot be drawn: {reason}") from None
