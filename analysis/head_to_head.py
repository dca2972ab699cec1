"""Figure `head-to-head` and table `head-to-head-pairs`: losses judged against each other."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from pobench.registry import register_figure, register_table
from pobench.reporting import plot
from pobench.reporting.looks import PAPER, look_of
from pobench.results import stats
from pobench.results.arms import Arm, arms_of
from pobench.results.bradley_terry import Battles, Fit, fit
from pobench.results.groups import labels, prompt_groups
from pobench.results.head_to_head import battles_of, compares
from pobench.types import Estimate


class _Fits(NamedTuple):
    """groups: of prompts. plain: of all battles. equal: the same with length controlled; None where the judge does not
    compare."""

    arms: list[Arm]
    battles: Battles
    groups: pd.Series | None
    plain: Fit
    equal: Fit | None


@register_figure("head-to-head", title="Head to head", chapter="results", order=21)
def head_to_head(
    runs: pd.DataFrame, verdicts: pd.DataFrame, answers: pd.DataFrame, comparisons: pd.DataFrame | None = None
) -> plot.Drawing:
    """How often a model's answer would beat that of another model drawn at random from those shown, by one Bradley-Terry
    fit of all their battles; 50 % is the average, the line a 95 % interval over prompts and seeds (of a single run over
    prompts alone). Every battle is of two answers to one prompt: two that a judge compared, or two that an exact judge
    scored, ties half. Hollow, for a judge that compares: the same at equal length, with the judge's taste for length
    fitted beside the strengths; a model whose hollow mark lies far to the left has won by length. The CSV has the
    strengths in Elo points too."""
    fits = _fits(runs, verdicts, answers, comparisons)
    figure, ax = plot.single(plot.dots_height(len(fits.arms)))
    of = {"all battles": fits.plain, **({"at equal length": fits.equal} if fits.equal else {})}
    shares = {name: [found.against_the_others(k) for k in range(len(fits.arms))] for name, found in of.items()}
    order = np.argsort([-e.value for e in shares["all battles"]], kind="stable").tolist()
    remarks = ["one run" if len(arm.runs) == 1 and not arm.is_start else "" for arm in fits.arms]
    rows = [plot.Row(fits.arms[k], shares["all battles"][k], remark=remarks[k]) for k in order]
    plot.dots(ax, rows, show=lambda v: f"{100 * v:.1f}", zero=0.5)
    for place, k in enumerate(order):
        if fits.equal is not None:
            _hollow(ax, fits.arms[k], shares["at equal length"][k], place + 0.26)
    plot.percent_axis(ax)
    ax.set_xlabel("would win against another of these models")
    data = [
        {
            **{"loss": arm.loss, "label": arm.label, "quantity": name, **plot.estimate_columns(shares[name][k])},
            **plot.estimate_columns(found.elo(k), "elo_"),
            **{"runs": len(arm.runs), "length_weight": found.length},
        }
        for name, found in of.items()
        for k, arm in enumerate(fits.arms)
    ]
    return plot.Drawing(figure, pd.DataFrame(data))


@register_table("head-to-head-pairs", title="Losses judged against each other", chapter="results", order=23)
def head_to_head_pairs(
    runs: pd.DataFrame, verdicts: pd.DataFrame, answers: pd.DataFrame, comparisons: pd.DataFrame
) -> pd.DataFrame:
    """Pairs of losses whose answers a judge has compared. Wins: the mean of its probabilities that the first's answer is
    better, in per cent. By all battles: what the Bradley-Terry fit of all pairs says of these two; where it is far from
    the wins, strengths on one line do not describe this judge. At equal length: the same fit with length controlled.
    Flipped: verdicts in which the order of the two answers decided."""
    fits = _fits(runs, verdicts, answers, comparisons)
    battles, place = fits.battles, {run: k for k, arm in enumerate(fits.arms) for run in arm.runs}
    sides = pd.MultiIndex.from_arrays([comparisons["run"].map(place), comparisons["opponent"].map(place)])
    rows = []
    for a, b in sorted({(int(a), int(b)) for a, b in sides.dropna()}, key=lambda pair: _rank(fits, *pair)):
        own = (battles.first == a) & (battles.second == b)
        other = (battles.first == b) & (battles.second == a)
        score = np.where(own, battles.score, 1 - battles.score)[own | other]
        prompts, seeds = battles.prompt[own | other], battles.seed[own | other]
        of_prompts = labels(pd.Series(prompts), fits.groups)
        flipped = comparisons["flipped"][np.array([pair in ((a, b), (b, a)) for pair in sides])]
        if (a, b) == tuple(sorted((a, b), key=lambda k: -fits.plain.strengths[k])):
            first, second, won = a, b, score
        else:
            first, second, won = b, a, 1 - score
        rows.append(
            {
                "Loss": fits.arms[first].label,
                "Against": fits.arms[second].label,
                "Wins": stats.mean(won, prompts, seeds, of_prompts, bounds=stats.UNIT).scaled(100),
                "By all battles": fits.plain.wins(first, second).scaled(100),
                "At equal length": (fits.equal.wins(first, second) if fits.equal else Estimate.missing()).scaled(100),
                "Flipped": 100 * float(flipped.mean()),
            }
        )
    return pd.DataFrame(rows)


def _rank(fits: _Fits, a: int, b: int) -> tuple[float, float]:
    strengths = sorted((-fits.plain.strengths[a], -fits.plain.strengths[b]))
    return float(strengths[0]), float(strengths[1])


def _fits(runs: pd.DataFrame, verdicts: pd.DataFrame, answers: pd.DataFrame, comparisons: pd.DataFrame | None) -> _Fits:
    """Of the models that battles connect. Raises NothingToDraw where these are fewer than two."""
    if compares(verdicts) and (comparisons is None or comparisons.empty):
        raise plot.NothingToDraw("No loss was judged against another (`--opponents all`).")
    every = arms_of(runs)
    battles = battles_of(runs, verdicts, answers, comparisons, every)
    met = battles.met(len(every))
    if len(met) < 2:
        raise plot.NothingToDraw("Fewer than two models have met.")
    among = np.isin(battles.first, met)
    number = np.full(len(every), -1)
    number[met] = range(len(met))
    kept = Battles(number[battles.first[among]], number[battles.second[among]], *(c[among] for c in battles[2:]))
    groups = prompt_groups(answers)
    equal = fit(kept, len(met), control_length=True, groups=groups) if compares(verdicts) else None
    return _Fits([every[k] for k in met], kept, groups, fit(kept, len(met), groups=groups), equal)


def _hollow(ax: plot.Axes, arm: Arm, e: Estimate, place: float) -> None:
    colour, marker, _ = look_of(arm.loss)
    if not np.isnan(e.low):
        ax.plot([e.low, e.high], [place, place], color=colour, linewidth=1.0, alpha=0.75)
    ax.plot([e.value], [place], marker=marker, color=colour, markerfacecolor=PAPER, markersize=5.5)
    plot.hint(ax, [e.value], [place], [f"{plot.short(arm.label)}, at equal length: {100 * e.value:.1f}"], aloud=False)
