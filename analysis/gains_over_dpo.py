"""Figure `gains-over-dpo`: the gain of every loss over DPO."""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import register_figure
from pobench.reporting import plot
from pobench.reporting.looks import look_of
from pobench.results.arms import Arm, arms_of, home_of, pooled
from pobench.results.contrast import compare, scores
from pobench.results.equal_tuning import values_of
from pobench.results.evidence import Evidence, of_metric
from pobench.results.few_runs import Result, of_results
from pobench.results.groups import prompt_groups
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
    answers: pd.DataFrame | None = None,
    benchmarks: pd.DataFrame | None = None,
    questions: pd.DataFrame | None = None,
    paper: pd.DataFrame | None = None,
) -> plot.Drawing:
    """The judge's mean score minus that of DPO on the same prompts, in points; line: 95 % interval, paired by prompt and
    seed; faint dots: single seeds. A line that crosses zero shows no difference from DPO. Published benchmarks, where
    they were run, stand beside it, paired by question and seed; of the length-controlled rate, which is fitted, by the
    numbers of runs, or of one run by the correlation of both sides' results.
    Hollow: what the paper's Table 10 gives for the same setting. (Its SimPO gains 6.3 LC points over DPO with
    Mistral-Base, 5.3 with Mistral-Instruct, 3.8 with Llama-3-Base and 4.4 with Llama-3-Instruct.)"""
    dpo = home_of(runs, "dpo")
    arms = [arm for arm in arms_of(runs) if arm != dpo]
    if dpo is None or not arms:
        raise plot.NothingToDraw("DPO was not trained beside another loss.")
    panels = [("mean score of the judge, points", _judged(runs, verdicts, answers, arms, dpo), {})]
    evidence = Evidence(runs, benchmarks=benchmarks, questions=questions)
    for benchmark, metric, says in BENCHMARKS:
        rows = _measured(evidence, (benchmark, metric), arms, dpo)
        panels.append((f"{says}, points", rows, _printed(paper, runs, benchmark, metric)))
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
                colour, marker, _ = look_of(row.arm.loss)
                ax.plot(
                    [printed[row.arm.loss]], [place], marker=marker, color=colour, markerfacecolor="none", markersize=8
                )
        ax.set_xlabel(f"{says}, above DPO")
        data = plot.rows_data(rows).assign(quantity=says, beside=dpo.label)
        parts.append(data.assign(paper=data["loss"].map(printed).astype(float)))
    return plot.Drawing(figure, pd.concat(parts, ignore_index=True))


def _judged(
    runs: pd.DataFrame, verdicts: pd.DataFrame, answers: pd.DataFrame | None, arms: list[Arm], dpo: Arm
) -> list[plot.Row]:
    groups, theirs = prompt_groups(answers), 100 * scores(verdicts, runs, dpo)
    rows = []
    for arm in arms:
        ours = 100 * scores(verdicts, runs, arm)
        estimate = compare(ours, theirs, (-100.0, 100.0), groups).estimate
        by_seed = _by_seed((ours - theirs).dropna())
        rows.append(plot.Row(arm, estimate, by_seed, values=values_of(runs, arm)))
    return _ranked(rows)


def _by_seed(gap: pd.Series) -> list[float]:
    """The mean difference of each seed that both have, where there are several."""
    means = list(gap.groupby(level=0).mean()) if len(gap) else []
    return means if len(means) > 1 else []


def _measured(e: Evidence, result: Result, arms: list[Arm], dpo: Arm) -> list[plot.Row]:
    """The gain of each arm. Where both were run once and their questions are not those of this number, the errors of both are
    added as far as their results, question by question, do not go together."""
    rows = []
    for arm in arms:
        found, not_paired = of_results(e, [(1.0, arm, result), (-1.0, dpo, result)])
        estimate = found.estimate
        if not_paired and found.seeds < 2:
            benchmark, metric = result
            sides = [of_metric(e.rows("benchmarks", side), benchmark, metric) for side in (arm, dpo)]
            estimate = _gap(*map(pooled, sides), _correlation(e, benchmark, arm, dpo))
        rows.append(plot.Row(arm, estimate))
    return _ranked(rows)


def _correlation(e: Evidence, benchmark: str, arm: Arm, dpo: Arm) -> float:
    """Of two arms' raw win rates over the questions that both answered; 0, the wider side, where these were not stored."""
    both = [e.by_question(side, benchmark, "win_rate") for side in (arm, dpo)]
    if not all(map(len, both)):
        return 0.0
    ours, theirs = (values.groupby(level=1).mean() for values in both)
    found = ours.corr(theirs)
    return 0.0 if math.isnan(found) else float(found)


def _gap(a: Estimate, b: Estimate, together: float) -> Estimate:
    """a − b with its interval. together: the correlation of their errors."""
    if math.isnan(a.value) or math.isnan(b.value):
        return Estimate.missing()
    below, above = (a.value - a.low, b.high - b.value), (a.high - a.value, b.value - b.low)
    low, high = (math.sqrt(max(x * x + y * y - 2 * together * x * y, 0.0)) for x, y in (below, above))
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
