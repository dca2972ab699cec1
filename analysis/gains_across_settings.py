"""Figure `gains-across-settings`: every loss against DPO, setting by setting in one picture."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import FAINT
from pobench.results.across import Settings
from pobench.results.arms import Arm
from pobench.results.contrast import POINTS
from pobench.results.equal_tuning import equally_tuned
from pobench.results.evidence import Evidence
from pobench.results.rows import Rows


@register_figure(
    "gains-across-settings",
    title="Gains over DPO in several settings",
    chapter="results",
    paper="Fig. 1",
    order=1,
    every_setting=True,
)
def gains_across_settings(runs: pd.DataFrame, verdicts: Rows, answers: Rows | None = None) -> plot.Drawing:
    """Mean score of a loss minus DPO's on the same prompts, in points, one panel a setting. Line: 95 % interval, for other
    prompts and, from two seeds on, other seeds. Each loss stands with its setting's own values. A panel is a comparison of
    its own: settings have other start models, pairs and perhaps another judge, so compare the sides on which a loss stands and
    the order of the losses, and not the points of one setting with those of another."""
    settings = Settings.of(runs, {"verdicts": verdicts, "answers": answers})
    panels = [(name, e, rows) for name, e in settings.groups.items() if (rows := _rows(e))]
    if len(settings.groups) < 2:
        raise plot.NothingToDraw("These are runs of one setting; “Gains over DPO” shows it.")
    if not panels:
        raise plot.NothingToDraw("In no setting was DPO judged beside another loss.")
    heights = [plot.dots_height(len(rows)) for *_, rows in panels]
    figure = plot.Figure(figsize=(plot.WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights).flat
    parts = []
    for ax, (name, e, rows) in zip(axes, panels, strict=True):
        plot.dots(ax, rows, show=lambda v: f"{v:+z.1f}".replace("-", "−"), zero=0.0)
        ax.set_title(plot.short(name, 60))
        ax.annotate(f"judge: {_judge(e)}", (1, 1.02), xycoords="axes fraction", ha="right", fontsize=7.5, color=FAINT)
        parts.append(plot.rows_data(rows).assign(setting=name, judge=_judge(e)))
    ax.set_xlabel("mean score of the judge above DPO's, points")
    left = len(settings.groups) - len(panels)
    note = f"Without DPO beside another loss, and not shown: {left} more." if left else ""
    return plot.Drawing(figure, pd.concat(parts, ignore_index=True), note)


def _rows(e: Evidence) -> list[plot.Row]:
    """The losses of one setting against DPO, the best first."""
    dpo = e.arm("dpo")
    if dpo is None or not len(e.score(dpo)):
        return []
    others = [arm for arm in (e.start, *e.homes.values()) if arm is not None and arm != dpo]
    rows = [_row(e, arm, dpo) for arm in others if len(e.score(arm))]
    return sorted(rows, key=lambda row: -row.estimate.value)


def _row(e: Evidence, arm: Arm, dpo: Arm) -> plot.Row:
    found = e.contrast([(1.0, e.score(arm)), (-1.0, e.score(dpo))], POINTS)
    seeds = f"{found.seeds} seed{'s'[: found.seeds - 1]}"
    return plot.Row(
        arm, found.estimate, remark=seeds if equally_tuned(e.runs, arm, dpo) else f"{seeds}, not tuned alike"
    )


def _judge(e: Evidence) -> str:
    return e.judges[0]
