"""The length-only win rate: it finds what it should where the truth is known, and says so where there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from pobench.results import stats
from pobench.types import Estimate

REAL = Path(__file__).parents[3] / "../shared/data/alpaca_eval/results"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="real annotations are not part of the project")


def world(n: int, theta: float, phi: float, seed: int, shift: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Results, our lengths, theirs: P(we win) = sigmoid(theta + phi tanh(difference / its deviation))."""
    rng = np.random.default_rng(seed)
    difference = rng.normal(shift, 1, n)
    x = np.tanh(difference / difference.std(ddof=1))
    won = rng.random(n) < 1 / (1 + np.exp(-(theta + phi * x)))
    return won.astype(float), 10 + difference, np.full(n, 10.0)


def test_it_is_the_maximum_of_the_penalised_likelihood() -> None:
    won, ours, theirs = world(120, 0.3, 1.5, 0)
    x = np.tanh((ours - theirs) / (ours - theirs).std(ddof=1))

    def loss(b: np.ndarray) -> float:
        z = b[0] + b[1] * x
        return float(np.sum(np.logaddexp(0, z) - won * z) + b[1] ** 2 / 200)

    theta = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-10}).x[0]
    found = stats.length_controlled_win_rate(won, ours, theirs, resamples=50)
    assert found.value == pytest.approx(1 / (1 + math.exp(-theta)), abs=1e-6) and found.n == 120


@pytest.mark.parametrize("shares", [False, True])
def test_it_is_statsmodels_binomial_glm(shares) -> None:
    won, ours, theirs = world(4000, 0.3, 1.5, 5)
    if shares:  # a judge's probabilities, which quasi-likelihood takes as they are
        won = 0.1 + 0.8 * won
    x = np.tanh((ours - theirs) / (ours - theirs).std(ddof=1))
    glm = sm.GLM(won, sm.add_constant(x), family=sm.families.Binomial()).fit()
    found = stats.length_controlled_win_rate(won, ours, theirs, resamples=2 if shares else 600)
    # of 4000 pairs the weak prior of φ, 1/100 against an information of hundreds, moves less than 1e-5
    assert found.value == pytest.approx(1 / (1 + math.exp(-glm.params[0])), abs=1e-5)
    if not shares:  # results of 0 and 1 vary as the binomial law says, so both intervals are the same but for chance
        low, high = 1 / (1 + np.exp(-np.asarray(glm.conf_int())[0]))
        assert (found.low, found.high) == pytest.approx((low, high), abs=4e-3)


def test_a_judge_that_only_wants_length_is_seen_through() -> None:
    won, ours, theirs = world(4000, 0.0, 2.0, 1)
    raw, only = stats.mean(won), stats.length_controlled_win_rate(won, ours, theirs, resamples=300)
    assert raw.low > 0.55 and only.low < 0.5 < only.high


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth = 1 / (1 + math.exp(-0.4))
    found = [stats.length_controlled_win_rate(*world(100, 0.4, 1.0, s), seed=s, resamples=300) for s in range(150)]
    covered = sum(e.low <= truth <= e.high for e in found)
    assert 132 <= covered <= 150  # 142.5 expected of 95 %; four deviations to either side


def test_equal_lengths_leave_the_raw_win_rate() -> None:
    found = stats.length_controlled_win_rate([1, 0, 0.5, 1, 1], [7] * 5, [7] * 5)
    assert found.value == pytest.approx(0.7, abs=1e-5) and found.n == 5


@settings(max_examples=25)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=30))
def test_swapping_the_sides_mirrors_it_and_the_value_lies_in_its_interval(rows) -> None:
    won, ours, theirs = np.array(rows, dtype=float).T
    forth = stats.length_controlled_win_rate(won, ours, theirs, resamples=40)
    back = stats.length_controlled_win_rate(1 - won, theirs, ours, resamples=40)
    tolerance = 2e-5  # a weak prior of θ keeps a rate a little off 0 and 1, unless every result is exactly the same
    assert forth.value + back.value == pytest.approx(1, abs=tolerance)
    assert 0 <= forth.low <= forth.value + tolerance and forth.value - tolerance <= forth.high <= 1


def test_the_unit_of_length_does_not_matter() -> None:
    won, ours, theirs = world(60, 0.0, 1.0, 2)
    first, second = (stats.length_controlled_win_rate(won, k * ours, k * theirs, resamples=60) for k in (1, 4))
    assert first == second


def test_nothing_paired_is_missing_and_gaps_are_dropped() -> None:
    nan = math.nan
    for gap in (([], [], []), ([nan, 1], [3, nan], [1, 2]), ([1], [3], [nan])):
        found = stats.length_controlled_win_rate(*gap)
        assert found.n == 0 and math.isnan(found.value)
    whole = stats.length_controlled_win_rate([1, 0, 1, 0], [4, 3, 2, 6], [1, 2, 3, 5])
    assert stats.length_controlled_win_rate([1, 0, nan, 1, 0], [4, 3, 9, 2, 6], [1, 2, 1, 3, 5]) == whole


def test_winning_everything_is_one_without_certainty() -> None:
    found = stats.length_controlled_win_rate([1] * 20, range(20), [5] * 20)
    # 1 - 0.025^(1/20) of the prompts may be lost and yet go unseen
    assert (found.value, found.high, found.n) == (1, 1, 20) and found.low == pytest.approx(0.025 ** (1 / 20))


def test_where_length_decides_everything_nothing_is_known_at_equal_length() -> None:
    found = stats.length_controlled_win_rate([1, 1, 1, 0, 0, 0], [9, 8, 7, 1, 2, 3], [5] * 6)
    assert found.value == pytest.approx(0.5, abs=1e-3) and found.low < 0.1 and found.high > 0.9


def test_a_prompt_counts_once_however_many_answers_it_has() -> None:
    won, ours, theirs = world(30, 0.2, 1.0, 3)
    once = stats.length_controlled_win_rate(won, ours, theirs, np.arange(30), resamples=100)
    often = [np.repeat(a, 3) for a in (won, ours, theirs)]
    # ddof = 1: the deviation of 90 repeated differences is a little smaller than that of the 30
    many = stats.length_controlled_win_rate(*often, np.repeat(np.arange(30), 3), resamples=100)
    assert many.n == 30 and many.value == pytest.approx(once.value, abs=5e-3)
    assert many.high - many.low == pytest.approx(once.high - once.low, rel=0.1)


@needs_data
@pytest.mark.parametrize(
    ("model", "official", "within"),
    [("FuseChat-Llama-3.1-8B-Instruct", 65.386, 1.0), ("gemma-2b-it", 5.437, 2.0)],
)
def test_on_real_annotations_it_is_close_to_the_official_lc(model, official, within) -> None:
    rows = json.loads((REAL / model / "annotations.json").read_text())
    won = [row["preference"] - 1 for row in rows]
    lengths = [[len(row[f"output_{i}"]) for row in rows] for i in (2, 1)]
    found = stats.length_controlled_win_rate(won, *lengths, resamples=300)
    assert abs(100 * found.value - official) < within and 100 * found.low < official < 100 * found.high


def test_a_constant_ratio_on_a_bounded_scale_is_no_certainty() -> None:
    bounded = stats.ratio([10, 20], [1, 2], ["a", "b"], bounds=(1.0, 10.0))
    assert bounded.value == 10 and bounded.low < 5 and bounded.high == 10
    assert stats.ratio([10, 20], [1, 2], ["a", "b"]) == Estimate(10, 10, 10, 2)
