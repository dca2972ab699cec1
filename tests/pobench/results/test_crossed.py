"""Prompts crossed with seeds: the analysis of variance by hand and by statsmodels, and what the interval promises."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.formula.api import ols

from pobench.results import stats
from pobench.results.crossed import Crossed, Source, crossed, pool_seeds


def world(seed: int, prompts: int = 40, seeds: int = 3, luck: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 0.2 + rng.normal(0, 0.3, (prompts, 1)) + rng.normal(0, luck, seeds) + rng.normal(0, 0.4, (prompts, seeds))


def test_the_mean_squares_are_those_of_statsmodels() -> None:
    table = world(0)
    n, k = table.shape
    long = (
        pd.DataFrame(table)
        .melt(ignore_index=False, var_name="seed", value_name="y")
        .rename_axis("prompt")
        .reset_index()
    )
    anova = sm.stats.anova_lm(ols("y ~ C(prompt) + C(seed)", long).fit())
    square = anova["mean_sq"] / (n * k)
    found = crossed([(1.0, table)])
    (source,) = found.seeds
    assert found.value == pytest.approx(table.mean())
    assert found.prompts.variance == pytest.approx(square["C(prompt)"]) and found.prompts.freedom == n - 1
    assert source.variance == pytest.approx(square["C(seed)"]) and source.freedom == k - 1
    assert source.excess == pytest.approx(max(square["C(seed)"] - square["Residual"], 0))


def test_groups_give_the_cluster_robust_error_of_statsmodels() -> None:
    means = world(1, 60, 1)[:, 0]
    groups = np.random.default_rng(1).integers(0, 12, 60)
    fitted = sm.OLS(means, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    # statsmodels also counts the fitted mean: (n - 1)/(n - 1) for one parameter, so only G/(G - 1) is left, as here
    assert crossed([(1.0, means[:, None])], groups).variance == pytest.approx(float(fitted.cov_params()[0, 0]))


def test_without_seeds_it_is_students_interval_of_scipy() -> None:
    values = world(2, 25, 1)[:, 0]
    interval = scipy_stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = crossed([(1.0, values[:, None])])
    assert (found.value - found.half_width(), found.value + found.half_width()) == pytest.approx(tuple(interval))
    assert found.p_value() == pytest.approx(scipy_stats.ttest_1samp(values, 0.0).pvalue, rel=1e-6)


def test_where_only_seeds_vary_it_is_students_interval_of_their_means() -> None:
    table = np.tile([0.1, 0.4, 0.3], (50, 1))
    found = crossed([(1.0, table)])
    interval = scipy_stats.ttest_1samp([0.1, 0.4, 0.3], 0.0).confidence_interval(0.95)
    assert (found.value - found.half_width(), found.value + found.half_width()) == pytest.approx(tuple(interval))


def test_seeds_that_resemble_each_other_by_luck_add_nothing_and_take_nothing() -> None:
    table = world(3, luck=0.0)
    table -= table.mean(axis=0) - table.mean()  # the seeds' means are equal: the component would be negative
    found = crossed([(1.0, table)])
    assert found.seeds[0].excess == 0.0 and found.variance == found.prompts.variance > 0


@settings(max_examples=25)
@given(st.integers(0, 500), st.floats(0.0, 2.0), st.sampled_from([2, 3, 5]))
def test_the_p_value_is_the_level_at_which_the_interval_ends_at_zero(seed, luck, seeds) -> None:
    found = crossed([(1.0, world(seed, 30, seeds, luck))])
    p = found.p_value()
    assert found.half_width(1 - p) == pytest.approx(abs(found.value), rel=1e-6)
    assert (p < 0.05) == (found.half_width() < abs(found.value))


@settings(max_examples=20)
@given(st.integers(0, 500), st.floats(-5, 5), st.floats(0.1, 10))
def test_shifting_and_scaling_the_table_shifts_and_scales_the_interval(seed, shift, scale) -> None:
    table = world(seed, 20)
    base, moved = crossed([(1.0, table)]), crossed([(1.0, shift + scale * table)])
    assert moved.value == pytest.approx(shift + scale * base.value, abs=1e-9)
    assert moved.half_width() == pytest.approx(scale * base.half_width())


def test_models_with_seeds_of_their_own_bring_their_own_luck() -> None:
    ours, theirs = world(4, 50, 3, 0.5), world(5, 50, 5, 0.5)
    found = crossed([(1.0, ours), (-1.0, theirs)])
    assert found.value == pytest.approx(ours.mean() - theirs.mean())
    assert [source.freedom for source in found.seeds] == [2, 4]
    apart = crossed([(1.0, ours)]), crossed([(1.0, theirs)])
    assert [s.variance for s in found.seeds] == pytest.approx([one.seeds[0].variance for one in apart])


def test_a_start_model_has_no_seeds_and_its_luck_cancels_nowhere() -> None:
    start = world(6, 50, 1)
    found = crossed([(1.0, world(7, 50)), (-1.0, start)])
    assert len(found.seeds) == 1
    assert found.prompts.variance == pytest.approx((world(7, 50).mean(axis=1) - start[:, 0]).var(ddof=1) / 50)


def test_a_missing_cell_is_no_evidence_and_moves_little() -> None:
    table = world(8, 60)
    holes = table.copy()
    holes[[3, 17, 40], [0, 1, 2]] = np.nan
    whole, patched = crossed([(1.0, table)]), crossed([(1.0, holes)])
    assert patched.value == pytest.approx(whole.value, abs=0.02)
    assert patched.half_width() == pytest.approx(whole.half_width(), rel=0.1)
    additive = np.arange(6.0)[:, None] + np.array([0.0, 10.0, 20.0])
    pierced = additive.copy()
    pierced[2, 1] = np.nan
    assert crossed([(1.0, pierced)]).value == pytest.approx(additive.mean())  # an additive table is known from the rest


def test_nothing_that_varies_has_no_p_and_no_width() -> None:
    found = crossed([(1.0, np.full((5, 3), 0.5))])
    assert found.half_width() == 0.0 and np.isnan(found.p_value()) and np.isnan(found.detectable())
    estimate, _ = stats.of_tables([(1.0, np.ones((10, 3)))], bounds=stats.UNIT)
    assert (estimate.low, estimate.high) == pytest.approx((0.025**0.1, 1.0))  # as for one seed: ten prompts of ten


def test_power_is_how_often_the_interval_finds_the_effect() -> None:
    found = Crossed(0.0, Source(1.0, 1.0, 39), (Source(0.0, 0.0, 2),))
    needed = found.detectable()
    rng = np.random.default_rng(0)
    variance = rng.chisquare(39, 40_000) / 39
    seen = rng.normal(needed, 1.0, 40_000) > scipy_stats.t.ppf(0.975, found.freedom) * np.sqrt(variance)
    assert seen.mean() == pytest.approx(0.8, abs=0.01)
    assert found.power(needed) == pytest.approx(0.8) and found.power(0.0) == pytest.approx(0.025, abs=1e-3)


def test_a_family_lends_its_pairs_the_variance_of_seeds_and_never_takes_any() -> None:
    luck = np.random.default_rng(9).normal(0, 0.3, (4, 3))
    models = [world(seed, luck=0.0) + own for seed, own in enumerate(luck)]
    family = [crossed([(1.0, models[i] - models[j])]) for i in range(4) for j in range(i)]
    pooled = pool_seeds(family)
    mean = np.mean([one.seeds[0].variance for one in family])
    for own, lent in zip(family, pooled, strict=True):
        assert lent.seeds[0].variance == pytest.approx(max(own.seeds[0].variance, mean))
        assert lent.seeds[0].freedom == 3 * 2 and lent.prompts == own.prompts and lent.value == own.value
    assert pool_seeds(family[:1]) == family[:1] and pool_seeds([]) == []


def test_more_seeds_and_more_prompts_detect_less() -> None:
    few, seeds, prompts = (
        np.median([crossed([(1.0, world(s, n, k))]).detectable() for s in range(9)])
        for n, k in ((40, 3), (40, 8), (160, 3))
    )
    assert seeds < few and prompts < few
