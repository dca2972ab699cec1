"""Estimates: laws that hold for any data, arithmetic by hand, and intervals that cover what they claim."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from pobench.results import stats
from pobench.results.arms import arms_of, judges_of, score_of, scores_by_prompt, seed_values
from pobench.types import Estimate

numbers = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=30)


def test_nothing_measured_is_missing_with_n_zero() -> None:
    for estimate in (
        stats.mean([]),
        stats.mean([math.nan, math.nan]),
        stats.ratio([], []),
        stats.spearman([1.0], [2.0]),
        stats.proportion(0, 0),
    ):
        assert estimate.n == 0 and math.isnan(estimate.value) and math.isnan(estimate.low) and math.isnan(estimate.high)


def test_nan_is_dropped_and_n_counts_what_is_left() -> None:
    estimate = stats.mean([1.0, math.nan, 3.0, math.nan])
    assert (estimate.value, estimate.n) == (2.0, 2)


@settings(max_examples=40)
@given(numbers)
def test_the_interval_holds_the_value_and_stays_inside_the_data(values) -> None:
    e = stats.mean(values, resamples=200)
    assert e.value == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
    if len(values) > 1:
        slack = 1e-9 * (1 + max(map(abs, values)))
        assert min(values) - slack <= e.low <= e.value + slack and e.value - slack <= e.high <= max(values) + slack


@settings(max_examples=30)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(-50, 50), st.floats(0.1, 10))
def test_shifting_and_scaling_the_data_shifts_and_scales_the_interval(values, shift, scale) -> None:
    base = stats.mean(values, resamples=100)
    moved = stats.mean(np.asarray(values) * scale + shift, resamples=100)
    assert (moved.value, moved.low, moved.high) == pytest.approx(
        (base.value * scale + shift, base.low * scale + shift, base.high * scale + shift), abs=1e-6
    )


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=25))
def test_swapping_the_sides_mirrors_wins(pairs) -> None:
    ours, theirs = np.array(pairs).T
    assert stats.outcomes(ours, theirs) + stats.outcomes(theirs, ours) == pytest.approx(1)


def test_a_tie_counts_half() -> None:
    # two wins, one tie, one loss: (2 + 0.5) / 4
    assert stats.outcomes([1, 1, 0.5, 0], [0, 0, 0.5, 1]).mean() == 0.625


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=40)
    assert stats.mean(values, seed=3) == stats.mean(values, seed=3)
    assert stats.mean(values, seed=3).low != stats.mean(values, seed=4).low


def test_each_cluster_counts_once_however_many_samples_it_has() -> None:
    # prompt a: mean 1 over three samples; prompt b: 0 over one; not 3/4
    e = stats.mean([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert (e.value, e.n) == (0.5, 2)


def test_repeating_every_sample_does_not_make_the_interval_narrower() -> None:
    values = np.random.default_rng(1).normal(size=20)
    once = stats.mean(values, np.arange(20))
    thrice = stats.mean(np.repeat(values, 3), np.repeat(np.arange(20), 3))
    assert once == thrice
    naive = stats.mean(np.repeat(values, 3))
    assert naive.high - naive.low < 0.7 * (thrice.high - thrice.low)


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    prompts = np.tile(np.arange(60), 3)
    seeds = np.repeat([1, 2, 3], 60)
    values = rng.normal(size=180) * 0.1 + np.repeat([-1.0, 0.0, 1.0], 60)
    blind, honest = stats.mean(values, prompts), stats.mean(values, prompts, seeds)
    assert honest.value == pytest.approx(blind.value)
    assert honest.high - honest.low > 5 * (blind.high - blind.low)


def test_one_cluster_has_a_value_but_no_interval() -> None:
    e = stats.mean([0.3])
    assert e.value == 0.3 and e.n == 1 and math.isnan(e.low)
    assert not stats.excludes(e)


def test_all_passed_is_not_certainty() -> None:
    # Clopper-Pearson for 10 of 10: low = 0.025 ** (1 / 10)
    e = stats.mean(np.ones(10), bounds=stats.UNIT)
    assert (e.low, e.high) == pytest.approx((0.025**0.1, 1.0))
    # the same holds in the middle of the scale: ten equal differences of zero do not prove equality
    none = stats.mean(np.zeros(10), bounds=stats.SIGNED)
    assert none.low == pytest.approx(-none.high) and none.high == pytest.approx(1 - 0.025**0.1)


@pytest.mark.parametrize(
    ("n", "draw"),
    [
        (8, "normal"),
        (25, "exponential"),
        pytest.param(15, "normal", marks=pytest.mark.slow),
        pytest.param(60, "bernoulli", marks=pytest.mark.slow),
    ],
)
def test_the_interval_covers_the_truth_about_as_often_as_it_says(n, draw) -> None:
    rng = np.random.default_rng(5)
    draws = {
        "normal": (lambda: rng.normal(size=n), 0.0),
        "exponential": (lambda: rng.exponential(size=n), 1.0),
        "bernoulli": (lambda: (rng.random(n) < 0.3).astype(float), 0.3),
    }
    make, truth = draws[draw]
    found = [stats.mean(make(), seed=k, resamples=1000) for k in range(1000)]
    covered = np.mean([e.low <= truth <= e.high for e in found])
    # 1000 trials: two standard errors are 1.4 points; a skewed mean is allowed a little less
    assert 0.90 <= covered <= 0.98
    if draw == "normal":
        assert covered >= 0.93


def test_a_cluster_interval_covers_where_a_naive_one_does_not() -> None:
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(20), 5)
    hits, naive_hits = 0, 0
    for k in range(200):
        values = np.repeat(rng.normal(size=20), 5) + 0.2 * rng.normal(size=100)
        e, naive = stats.mean(values, clusters, seed=k, resamples=300), stats.mean(values, seed=k, resamples=300)
        hits += e.low <= 0 <= e.high
        naive_hits += naive.low <= 0 <= naive.high
    assert hits / 200 > 0.9 > 0.75 > naive_hits / 200


def test_a_ratio_weighs_by_its_denominator() -> None:
    # (1 + 9) / (10 + 10) = 0.5; (1/1 + 0/99) pooled = 0.01
    assert stats.ratio([1, 9], [10, 10]).value == 0.5
    assert stats.ratio([1, 0], [1, 99]).value == 0.01
    assert stats.ratio([1, 2], [0, 0]).n == 0


def test_a_proportion_has_wilsons_interval() -> None:
    e = stats.proportion(8, 10)
    assert (e.low, e.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    with pytest.raises(ValueError, match="between 0 and n"):
        stats.proportion(3, 2)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=40))
def test_spearman_is_scipys_with_ties_too(pairs) -> None:
    x, y = np.array(pairs, dtype=float).T
    e = stats.spearman(x, y, resamples=50)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert e.n == 0
    else:
        assert e.value == pytest.approx(scipy_stats.spearmanr(x, y).statistic, abs=1e-12)
        assert e.low <= e.value <= e.high and e.n == len(x)


def test_the_weighted_ranks_are_those_of_the_resampled_data() -> None:
    rng = np.random.default_rng(9)
    x, y = rng.integers(0, 8, 30).astype(float), rng.integers(0, 8, 30).astype(float)
    weights = rng.multinomial(30, [1 / 30] * 30).astype(float)[None]
    fast = stats._weighted_pearson(stats._mid_ranks(x, weights), stats._mid_ranks(y, weights), weights)[0]
    counts = weights[0].astype(int)
    assert fast == pytest.approx(scipy_stats.spearmanr(np.repeat(x, counts), np.repeat(y, counts)).statistic)


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then never falling: .04 .06 .06 .06
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert stats.holm([]).size == 0
    with_nan = stats.holm([0.02, math.nan, 0.04])
    assert math.isnan(with_nan[1]) and with_nan[[0, 2]] == pytest.approx([0.04, 0.04])


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_plain_and_bonferronis_and_keeps_the_order(p) -> None:
    p = np.array(p)
    adjusted = stats.holm(p)
    assert (adjusted >= p - 1e-12).all() and (adjusted <= np.minimum(1, p * len(p)) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= -1e-12).all()


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        stats.outcomes([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="2 labels for 3 values"):
        stats.mean([1, 2, 3], ["a", "b"])


# ---------------------------------------------------------------- arms


def runs(*rows) -> pd.DataFrame:
    columns = ["run", "setting", "loss", "title", "seed", "settings", "lr", "epochs", "batch_size", "pairs"]
    return pd.DataFrame([(*row, 1e-6, 1.0, 8, 100)[: len(columns)] for row in rows], columns=columns)


def test_seeds_are_pooled_and_settings_are_not() -> None:
    frame = runs(
        ("t/a", "t", "dpo", "DPO", 1, '{"beta": 0.1}'),
        ("t/b", "t", "dpo", "DPO", 2, '{"beta": 0.1}'),
        ("t/c", "t", "dpo", "DPO", 1, '{"beta": 0.01}'),
        ("t/s", "t", "start", "start model", -1, "{}"),
    )
    start, low, high = arms_of(frame)
    assert start.is_start and start.runs == ("t/s",)
    assert (low.label, low.runs) == ("DPO (β = 0.01)", ("t/c",))
    assert (high.label, high.runs) == ("DPO (β = 0.1)", ("t/a", "t/b"))


def test_an_arm_does_not_depend_on_the_order_of_runs() -> None:
    frame = runs(
        ("t/a", "t", "dpo", "DPO", 1, "{}"), ("t/b", "t", "ipo", None, 1, "{}"), ("t/c", "t", "ipo", None, 2, "{}")
    )
    assert arms_of(frame) == arms_of(frame.iloc[::-1])
    assert [arm.label for arm in arms_of(frame)] == ["DPO", "ipo"]


def test_a_score_of_several_seeds_without_a_pooled_row_has_no_interval() -> None:
    frame = runs(("t/a", "t", "dpo", "DPO", 1, "{}"), ("t/b", "t", "dpo", "DPO", 2, "{}"))
    (arm,) = arms_of(frame)
    rows = [("t/a", "pass_rate", 0.4, 0.3, 0.5, 10), ("t/b", "pass_rate", 0.6, 0.5, 0.7, 12)]
    table = pd.DataFrame(rows, columns=["run", "metric", "value", "low", "high", "n"])
    e = score_of(table, arm, "pass_rate")
    assert (e.value, e.n) == (0.5, 10) and math.isnan(e.low)
    assert seed_values(table, arm, "pass_rate") == [0.4, 0.6]
    pooled = pd.concat([table, pd.DataFrame([(arm.id, "pass_rate", 0.5, 0.4, 0.6, 12)], columns=table.columns)])
    assert score_of(pooled, arm, "pass_rate") == Estimate(0.5, 0.4, 0.6, 12)


def test_judges_are_never_averaged() -> None:
    frame = runs(("t/a", "t", "dpo", "DPO", 1, "{}"))
    rows = [("t/a", "p", 0, "verifiable", 1.0), ("t/a", "p", 0, "other", 0.0)]
    verdicts = pd.DataFrame(rows, columns=["run", "prompt", "sample", "judge", "score"])
    assert judges_of(verdicts) == ["verifiable", "other"]
    (arm,) = arms_of(frame)
    assert scores_by_prompt(verdicts, [arm]).loc["p", arm.id] == 1.0


# ---------------------------------------------------------------- how large a difference must be


def test_a_difference_of_correlations_is_resampled_together() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 200))
    sides = [{-1: (x, x + 0.5 * noise)}, {-1: (x, x + 1.5 * noise)}]
    e, crossing = stats.spearman_contrast([(1.0, sides[0]), (-1.0, sides[1])])
    apart = [stats.spearman(*side[-1]) for side in sides]
    assert e.value == pytest.approx(apart[0].value - apart[1].value) and e.n == 200 and e.low > 0 and crossing is None
    assert e.high - e.low < np.hypot(*(a.high - a.low for a in apart))  # what both share does not count twice
    same, _ = stats.spearman_contrast([(1.0, sides[0]), (-1.0, sides[0])])
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_a_difference_of_correlations_is_paired_by_seed_where_the_seeds_are_the_same() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=80)
    luck = rng.normal(size=(3, 80))
    ours = {seed: (x, x + luck[seed]) for seed in range(3)}
    theirs = {seed: (x, x + luck[seed] + 0.3 * rng.normal(size=80)) for seed in range(3)}
    paired, _ = stats.spearman_contrast([(1.0, ours), (-1.0, theirs)])
    apart, _ = stats.spearman_contrast([(1.0, ours), (-1.0, {seed + 3: pair for seed, pair in theirs.items()})])
    each = [stats.spearman(*ours[seed]).value - stats.spearman(*theirs[seed]).value for seed in range(3)]
    assert paired.value == pytest.approx(np.mean(each)) == pytest.approx(apart.value)
    assert paired.high - paired.low < apart.high - apart.low


def test_an_observation_that_one_side_lacks_is_dropped_from_both() -> None:
    x, a, b = np.random.default_rng(2).normal(size=(3, 60))
    a[:5] = np.nan
    assert stats.spearman_contrast([(1.0, {0: (x, a)}), (-1.0, {0: (x, b)})])[0].n == 55
    assert stats.spearman_contrast([(1.0, {0: (x * 0, a)}), (-1.0, {0: (x, b)})])[0].n == 0


def test_a_deviation_has_the_interval_of_normal_theory() -> None:
    # s = 1 of three values: [s·√(2/χ²(0.975)), s·√(2/χ²(0.025))] with two degrees of freedom, χ² = 7.378 and 0.0506
    e = stats.deviation([1.0, 2.0, 3.0, np.nan])
    assert (e.value, e.n) == (1.0, 3) and e.low == pytest.approx((2 / 7.3778) ** 0.5, rel=1e-3)
    assert e.high == pytest.approx((2 / 0.050636) ** 0.5, rel=1e-3)
    assert stats.deviation([1.0]).n == 0


def test_ranks_that_seeds_cannot_change_are_kept_and_others_are_not() -> None:
    assert stats.rank_stability([[0.9, 0.8], [0.1, 0.2]]) == [1.0, 1.0]
    first, second, third = stats.rank_stability([[0.5, 0.4], [0.45, 0.35], [0.1, 0.1]])
    assert first == second == pytest.approx(0.75, abs=0.05) and third == 1.0  # one of four draws turns them round


# ---------------------------------------------------------------- few seeds, and the smallest of several


def test_an_interval_of_a_few_seeds_knows_that_they_are_few() -> None:
    rng = np.random.default_rng(0)
    prompts, seeds = np.repeat(np.arange(200), 3), np.tile(np.arange(3), 200)
    luck = np.array([-0.1, 0.0, 0.1])  # the seeds differ, prompts hardly do
    values = luck[seeds] + rng.normal(0, 0.05, 600)
    e = stats.mean(values, prompts, seeds)
    # Student's interval of three means: ± 4.303 × 0.1 / √3 = ± 0.248. Resampling alone never leaves [-0.1, 0.1].
    assert e.high - e.low > 0.3
    same = stats.mean(rng.normal(0, 1, 200)[prompts] + rng.normal(0, 0.1, 600), prompts, seeds)
    assert same.high - same.low < 1.1 * 2 * 1.96 / math.sqrt(200)  # where prompts make the variance, nothing is added


def test_a_correlation_of_several_seeds_varies_with_the_seeds() -> None:
    rng = np.random.default_rng(1)
    x = np.tile(np.arange(100.0), 3)
    seeds = np.repeat([1, 2, 3], 100)
    noise = rng.normal(0, 1, 300)
    y = np.where(seeds == 1, x, np.where(seeds == 2, 0 * x, -x)) + noise  # ρ of about 1, 0 and -1
    e = stats.spearman(x, y, seeds)
    assert e.low < -0.8 and e.high > 0.8 and e.n == 100


def test_students_interval_of_three_runs_leaves_their_range() -> None:
    e = stats.student([0.5, 1.0, 2.0])  # logarithms -0.693, 0, 0.693: mean 0, s 0.693, t 4.303: ± 1.722
    assert (round(e.low, 3), e.value, round(e.high, 3), e.n) == (0.179, pytest.approx(1.0), 5.595, 3)
    assert math.isnan(stats.student([1.0]).low) and stats.student([]).n == 0
