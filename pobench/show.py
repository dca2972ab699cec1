"""Figures and tables by name, for notebooks: `figure("margin-vs-length", load_frames("runs"))`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from pobench import plot, registry
from pobench.parts import ordered, split
from pobench.registry import PobenchError, nearest


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
        return plot.draw(shown, parts[0].frames, **options)
    except plot.NothingToDraw as reason:
        raise PobenchError(f"{shown.name} cannot be drawn: {reason}") from None
