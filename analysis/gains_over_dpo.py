"""Figure `gains-over-dpo`: the gain of every loss over DPO."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import look_of
from pobench.results.arms import Arm, arms_of, difference, home_of, mean_of, of_arm, pooled, scores_by_seed_and_prompt
from pobench.results.equal_tuning import values_of
from pobench.types import Estimate

# benchmark, metric, axis label; drawn where DPO has a result
BENCHMARKS = [
    ("alpaca_eval", "lc_win_rate", "AlpacaEval, LC win rate"),
    ("arena_hard", "win_rate", "Arena-Hard, win rate"),
]


@register_figure("gains-over-dpo", title="Gains over DPO", paper="Fig. 1", chapter="results", order=15)
def gains_over_dpo(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    benchmarks: pd.DataFrame | None = None,
    paper: pd.DataFrame | None = None,
) -> plot.Drawing:
    """The judge's mean score minus that of DPO on the same prompts, in points; line: 95 % interval, paired by prompt and
    seed; faint dots: single seeds. A line that crosses zero shows no difference from DPO. Published benchmarks, where
    they were run, stand beside it; there the two sides are treated as independent, so the interval is rather too wide
    than too narrow. Hollow: what the paper's Table 10 gives for the same setting. (Its SimPO
    gains 6.3 LC points over DPO with Mistral-Base, 5.3 with Mistral-Instruct, 3.8 with Llama-3-Base and 4.4 with
    Llama-3-Instruct.)"""
    dpo = home_of(runs, "dpo")
    arms = [arm for arm in arms_of(runs) if arm != dpo]
    if dpo is None or not arms:
        raise plot.NothingToDraw("DPO was not trained beside another loss.")
    panels = [("mean score of the judge, points", _judged(runs, verdicts, arms, dpo), {})]
    for benchmark, metric, says in BENCHMARKS if benchmarks is not None else []:
        rows = benchmarks[(benchmarks["benchmark"] == benchmark) & (benchmarks["metric"] == metric)]
        panels.append((f"{says}, points", _measured(rows, arms, dpo), _printed(paper, runs, benchmark, metric)))
    panels = [(says, rows, printed) for says, rows, printed in panels if rows]
    if not panels:
        raise plot.NothingToDraw("DPO was not judged beside another loss.")
    height = sum(plot.dots_height(len(rows)) for _, rows, _ in panels)
    figure = plot.Figure(figsize=(plot.WIDTH, height), layout="constrained")
    parts = []
    for ax, (says, rows, printed) in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels, strict=True):
        plot.dots(ax, rows, show=lambda v: f"{v:+z.1f}".replace("-", "−"), zero=0.0)
        for place, row in enumerate(rows):
            if row.arm.loss in printed:
                colour, marker = look_of(row.arm.loss)
                ax.plot(
                    [printed[row.arm.loss]], [place], marker=marker, color=colour, markerfacecolor="none", markersize=8
                )
        ax.set_xlabel(f"{says}, above DPO")
        data = plot.rows_data(rows).assign(quantity=says, beside=dpo.label)
        parts.append(data.assign(paper=data["loss"].map(printed).astype(float)))
    return plot.Drawing(figure, pd.concat(parts, ignore_index=True))


def _judged(runs: pd.DataFrame, verdicts: pd.DataFrame, arms: list[Arm], dpo: Arm) -> list[plot.Row]:
    table = 100 * scores_by_seed_and_prompt(verdicts, runs, [*arms, dpo])
    if dpo.id not in table:
        return []
    gaps = {arm: difference(table[arm.id].dropna(), table[dpo.id].dropna()) for arm in arms if arm.id in table}
    of = {arm: mean_of(gap, (-100.0, 100.0)) for arm, gap in gaps.items()}
    return _ranked([plot.Row(arm, of[arm], _by_seed(gap), values=values_of(runs, arm)) for arm, gap in gaps.items()])


def _by_seed(gap: pd.Series) -> list[float]:
    """The mean difference of each seed, where there are several."""
    means = list(gap.groupby(level=0).mean()) if len(gap) else []
    return means if len(means) > 1 else []


def _measured(benchmark: pd.DataFrame, arms: list[Arm], dpo: Arm) -> list[plot.Row]:
    of_dpo = pooled(of_arm(benchmark, dpo))
    return _ranked([plot.Row(arm, _independent_gap(pooled(of_arm(benchmark, arm)), of_dpo)) for arm in arms])


def _independent_gap(a: Estimate, b: Estimate) -> Estimate:
    """a − b with its interval, as if the two were independent."""
    if math.isnan(a.value) or math.isnan(b.value):
        return Estimate.missing()
    low = math.hypot(a.value - a.low, b.high - b.value)
    high = math.hypot(a.high - a.value, b.value - b.low)
    gap = a.value - b.value
    return Estimate(gap, gap - low, gap + high, min(a.n, b.n))


def _ranked(rows: list[plot.Row]) -> list[plot.Row]:
    return sorted((row for row in rows if row.estimate.n), key=lambda row: -row.estimate.value)


def _printed(paper: pd.DataFrame | None, runs: pd.DataFrame, benchmark: str, metric: str) -> dict[str, float]:
    """loss → its gain over DPO in the paper's Table 10; {} if the table lacks the setting."""
    if paper is None:
        return {}
    printed = paper[paper["setting"].isin(runs["setting"]) & (paper["table"] == 10)]
    values = printed[(printed["benchmark"] == benchmark) & (printed["metric"] == metric)].set_index("loss")["value"]
    return dict(values - values["dpo"]) if "dpo" in values else {}
