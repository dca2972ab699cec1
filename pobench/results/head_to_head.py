"""Battles of two models' answers to one prompt: from verdicts on both, or from the scores of an exact judge."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from pobench.results.arms import Arm, by_main_judge
from pobench.results.bradley_terry import Battles

COLUMNS = ("first", "second", "score", "length", "prompt", "seed")


def compares(verdicts: pd.DataFrame) -> bool:
    """Whether the main judge looks at two answers."""
    return bool((by_main_judge(verdicts, verdicts)["against"] == "start").any())


def battles_of(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame,
    comparisons: pd.DataFrame | None,
    arms: Sequence[Arm],
) -> Battles:
    """All battles of the arms, which are numbered as they stand, by the main judge.

    Of a judge that compares: its verdicts beside the start model, and those on two losses. Of a judge that scores single
    answers: for every two arms, the share of samples in which the one scores higher than the other's sample of the same
    number, ties half; one battle a prompt and seed.
    """
    if not compares(verdicts):
        return Battles.of(_scored(runs, by_main_judge(verdicts, verdicts), arms))
    met = [_beside_start(by_main_judge(verdicts, verdicts), answers, arms)]
    if comparisons is not None and len(comparisons):
        met.append(by_main_judge(comparisons, verdicts))
    place = {run: number for number, arm in enumerate(arms) for run in arm.runs}
    both = pd.concat(met, ignore_index=True)
    both = both[both["run"].isin(list(place)) & both["opponent"].isin(list(place))]
    total = (both["tokens"] + both["opponent_tokens"]).clip(lower=1)
    return Battles.of(
        pd.DataFrame(
            {
                "first": both["run"].map(place),
                "second": both["opponent"].map(place),
                "score": both["score"],
                "length": ((both["tokens"] - both["opponent_tokens"]) / total).fillna(0.0),
                "prompt": both["prompt"],
                "seed": both["run"].map(dict(zip(runs["run"], runs["seed"], strict=True))),
            }
        )
    )


def _beside_start(verdicts: pd.DataFrame, answers: pd.DataFrame, arms: Sequence[Arm]) -> pd.DataFrame:
    """The verdicts of trained models, in the columns of `comparisons`."""
    start = next((arm.runs[0] for arm in arms if arm.is_start), "")
    keys = ["prompt", "sample"]
    tokens = answers[["run", *keys, "tokens"]]
    of_start = tokens[tokens["run"] == start].drop(columns="run").rename(columns={"tokens": "opponent_tokens"})
    trained = verdicts[(verdicts["against"] == "start") & (verdicts["run"] != start)]
    joined = trained.merge(tokens, on=["run", *keys], how="left").merge(of_start, on=keys, how="left")
    return joined.assign(opponent=start)


def _scored(runs: pd.DataFrame, verdicts: pd.DataFrame, arms: Sequence[Arm]) -> pd.DataFrame:
    """One row for every two arms, prompt and seed. A start model, which has no seed, stands beside every seed."""
    table = verdicts.set_index(["run", "prompt", "sample"])["score"].unstack("sample")
    seed_of = dict(zip(runs["run"], runs["seed"], strict=True))
    by_seed = [{seed_of[run]: table.loc[run] for run in arm.runs if run in table.index} for arm in arms]
    rows = []
    for a, b in combinations(range(len(arms)), 2):
        first, second = by_seed[a], by_seed[b]
        seeds = second if arms[a].is_start else first
        for seed in sorted(seeds):
            one = first.get(-1 if arms[a].is_start else seed)
            other = second.get(-1 if arms[b].is_start else seed)
            if one is not None and other is not None:
                score = _shares(one, other)
                rows.append(pd.DataFrame({"first": a, "second": b, "score": score, "seed": seed}))
    if not rows:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(rows).rename_axis("prompt").reset_index()


def _shares(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Prompt → the share of samples that the first wins, ties half; nan where no sample has both scores."""
    a, b = one.align(other, join="inner")
    outcome = np.where(a.isna() | b.isna(), np.nan, 0.5 + 0.5 * np.sign(a - b))
    return pd.DataFrame(outcome, index=a.index).mean(axis=1)
