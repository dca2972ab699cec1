"""Strengths from battles: planted ones are found, two models have a closed form, and the interval is the sandwich's."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from pobench.results import stats
from pobench.results.bradley_terry import ELO, Battles, fit

STRENGTHS = np.array([0.8, 0.2, -0.1, -0.9])


def drawn(
    strengths: np.ndarray = STRENGTHS, *, prompts: int = 300, seeds: int = 1, length: float = 0.0, seed: int = 0
) -> Battles:
    """Battles of every two models on every prompt. Longer models are the stronger ones; length: what the judge likes of it."""
    rng, rows = np.random.default_rng(seed), []
    for a, b in combinations(range(len(strengths)), 2):
        for s in range(seeds):
            z = np.clip(0.2 * (strengths[a] - strengths[b]) + rng.normal(0, 0.2, prompts), -1, 1)
            p = expit(strengths[a] - strengths[b] + length * z)
            score = (rng.random(prompts) < p).astype(float)
            names = [f"p{i}" for i in range(prompts)]
            rows.append(
                pd.DataFrame({"first": a, "second": b, "score": score, "length": z, "prompt": names, "seed": s})
            )
    return Battles.of(pd.concat(rows, ignore_index=True))


def test_planted_strengths_are_found() -> None:
    found = fit(drawn(prompts=4000), 4)
    assert found.strengths == pytest.approx(STRENGTHS - STRENGTHS.mean(), abs=0.06) and found.length == 0.0
    assert found.strengths.sum() == pytest.approx(0, abs=1e-9)


def test_length_that_the_judge_likes_is_taken_out() -> None:
    battles = drawn(prompts=4000, length=4.0)
    plain, equal = fit(battles, 4), fit(battles, 4, control_length=True)
    planted = STRENGTHS - STRENGTHS.mean()
    assert equal.strengths == pytest.approx(planted, abs=0.08)
    assert plain.strengths[0] > planted[0] + 0.3, "without control the longest answers look best"
    scale = math.sqrt(float(np.mean(battles.length**2)))
    assert equal.length / scale == pytest.approx(4.0, abs=0.3)


def test_two_models_have_the_closed_form_and_a_draw_is_half() -> None:
    score = [1.0, 1.0, 1.0, 0.5, 0.5, 0.0, 0.25, 1.0]
    rows = pd.DataFrame({"first": 0, "second": 1, "score": score, "prompt": list("abcdefgh"), "seed": 1})
    found = fit(Battles.of(rows), 2)
    mean = sum(score) / 8
    assert found.strengths[0] - found.strengths[1] == pytest.approx(math.log(mean / (1 - mean)), abs=1e-5)
    assert found.wins(0, 1).value == pytest.approx(mean, abs=1e-6)
    assert found.against_the_others(1).value == pytest.approx(1 - mean, abs=1e-6)
    direct, fitted = stats.mean(score, list("abcdefgh"), bounds=stats.UNIT), found.wins(0, 1)
    assert (fitted.low, fitted.high, fitted.n) == pytest.approx((direct.low, direct.high, 8), abs=1e-5)
    draws = fit(Battles.of(rows.assign(score=0.5)), 2)
    assert draws.strengths == pytest.approx([0, 0], abs=1e-9)


def test_it_is_the_logistic_regression_of_statsmodels_and_its_sandwich_by_prompt() -> None:
    sm = pytest.importorskip("statsmodels.api")
    battles = drawn(prompts=120, length=2.0)
    found = fit(battles, 4, control_length=True)
    design = np.zeros((len(battles.score), 4))
    for model in (1, 2, 3):  # the first is the base
        design[:, model - 1] = (battles.first == model) * 1.0 - (battles.second == model)
    design[:, 3] = battles.length / math.sqrt(float(np.mean(battles.length**2)))
    groups = pd.factorize(battles.prompt)[0]
    reference = sm.GLM(battles.score, design, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False}
    )
    assert found.strengths[1:] - found.strengths[0] == pytest.approx(reference.params[:3], abs=1e-5)
    assert found.length == pytest.approx(reference.params[3], abs=1e-5)
    slope = np.array([-1.0, 0.0, 0.0, 1.0])  # the influence values' variance is the sandwich's
    spread = (found.influence @ slope).std() / math.sqrt(120)
    assert spread == pytest.approx(reference.bse[2], rel=1e-4)
    interval = found.estimate(float(found.strengths[3] - found.strengths[0]), slope)
    half = (interval.high - interval.low) / 2
    assert half == pytest.approx(1.98 * reference.bse[2], rel=0.08)
    topics = pd.Series([f"t{k % 30}" for k in range(120)], pd.unique(battles.prompt))  # four prompts each
    grouped = fit(battles, 4, control_length=True, groups=topics)
    by_topic = sm.GLM(battles.score, design, family=sm.families.Binomial()).fit(
        cov_type="cluster",
        cov_kwds={"groups": pd.factorize(topics[battles.prompt])[0], "use_correction": False},
    )
    wider = grouped.estimate(float(found.strengths[3] - found.strengths[0]), slope)
    assert (wider.high - wider.low) / (interval.high - interval.low) == pytest.approx(
        by_topic.bse[2] / reference.bse[2], rel=0.1
    )


def test_prompts_resampled_and_fitted_anew_give_the_same_spread() -> None:
    battles, rng = drawn(prompts=100, seed=3), np.random.default_rng(0)
    found = fit(battles, 4)
    of_prompt = {prompt: np.flatnonzero(battles.prompt == prompt) for prompt in np.unique(battles.prompt)}
    values = []
    for _ in range(60):
        names = rng.choice(list(of_prompt), len(of_prompt))
        index = np.concatenate([of_prompt[name] for name in names])
        again = fit(Battles(*(column[index] for column in battles)), 4)
        values.append(again.against_the_others(0).value)
    slope_spread = (found.against_the_others(0).high - found.against_the_others(0).low) / 2 / 1.98
    assert np.std(values) == pytest.approx(slope_spread, rel=0.3)


def test_a_seed_that_trains_better_widens_the_interval() -> None:
    one = drawn(prompts=80, seeds=3)
    lucky = np.where((one.seed == 0) & (one.first == 0), 1.0, one.score)
    narrow, wide = fit(one, 4).against_the_others(0), fit(one._replace(score=lucky), 4).against_the_others(0)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low) and wide.n == narrow.n == 80


def test_a_model_that_wins_everything_stays_finite_and_those_who_never_met_are_left_out() -> None:
    rows = pd.DataFrame({"first": 0, "second": 1, "score": 1.0, "prompt": list("abcdef"), "seed": 1})
    found = fit(Battles.of(rows), 2)
    best = found.against_the_others(0)
    assert np.isfinite(found.strengths).all() and 0.99 < best.value <= 1.0 and best.low < 0.9
    apart = pd.concat([rows, rows.assign(first=2, second=3).head(2), rows.assign(first=1, second=4)])
    assert Battles.of(apart).met(6) == [0, 1, 4]
    assert Battles.of(rows.assign(score=np.nan)).met(2) == []


def test_points_are_elos() -> None:
    found = fit(drawn(prompts=50), 4)
    gap = found.elo(0).value - found.elo(1).value
    assert 10 ** (gap / 400) == pytest.approx(math.exp(found.strengths[0] - found.strengths[1]))
    assert found.elo(0).value == pytest.approx(ELO * found.strengths[0])
