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
from pobench.results.crossed import Crossed, Source, _moderated, crossed, pool_seeds


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
    if p == 1e-12:  # no smaller one is given
        assert found.half_width(1 - p) < abs(found.value)
    else:
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


def family_of(models: list[np.ndarray]) -> tuple[list[Crossed], list[tuple[int, int]]]:
    """Every pair of models, and which two each is about."""
    sides = [(i, j) for i in range(len(models)) for j in range(i)]
    return [crossed([(1.0, models[i] - models[j])]) for i, j in sides], sides


def test_a_family_lends_its_pairs_the_variance_of_seeds_and_never_takes_any() -> None:
    luck = np.random.default_rng(9).normal(0, 0.3, (8, 3))
    family, sides = family_of([world(seed, luck=0.0) + own for seed, own in enumerate(luck)])
    pooled = pool_seeds(family, sides)
    for own, lent in zip(family, pooled, strict=True):
        assert lent.seeds[0].variance >= own.seeds[0].variance and lent.seeds[0].excess >= own.seeds[0].excess
        assert lent.seeds[0].freedom == 7 * 2, "losses alike lend each other all they have"
        assert lent.prompts == own.prompts and lent.value == own.value
    assert min(lent.seeds[0].variance for lent in pooled) > 0.3 * np.mean([own.seeds[0].variance for own in family])
    assert pool_seeds(family[:1], sides[:1]) == family[:1] and pool_seeds([], []) == []


def test_a_loss_whose_runs_differ_widens_its_own_pairs_and_no_other() -> None:
    rng = np.random.default_rng(2)
    models = [world(seed, luck=0.0) + rng.normal(0, 5.0 if seed == 0 else 0.1, 3) for seed in range(8)]
    family, sides = family_of(models)
    calm = [lent for lent, pair in zip(pool_seeds(family, sides), sides, strict=True) if 0 not in pair]
    wild = [lent for lent, pair in zip(pool_seeds(family, sides), sides, strict=True) if 0 in pair]
    assert max(one.seeds[0].variance for one in calm) < 0.2 * min(one.seeds[0].variance for one in wild)
    assert {one.seeds[0].freedom for one in calm} == {one.seeds[0].freedom for one in wild}
    assert 2 < calm[0].seeds[0].freedom < 7 * 2, "losses that differ lend each other less"


def test_seeds_that_two_losses_do_not_share_are_lent_loss_by_loss() -> None:
    rng = np.random.default_rng(5)
    models = {name: world(k, seeds=k % 2 + 3) + rng.normal(0, 0.3, k % 2 + 3) for k, name in enumerate("abcdef")}
    sides = [(a, b) for a in "ace" for b in "bdf"] + [("a", None), ("c", None), ("e", None)]
    family = [
        crossed([(1.0, models[a]), *([(-1.0, models[b])] if b else [(-1.0, np.zeros((len(models[a]), 1)))])])
        for a, b in sides
    ]
    for own, lent in zip(family, pool_seeds(family, sides), strict=True):
        assert len(lent.seeds) == len(own.seeds)
        assert all(
            x.variance >= y.variance and x.freedom >= y.freedom for x, y in zip(lent.seeds, own.seeds, strict=True)
        )


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=12), st.integers(2, 9))
def test_moderated_variances_keep_their_order_and_no_degree_is_invented(variances, freedom) -> None:
    drawn, degrees = _moderated(dict(enumerate(variances)), freedom)
    assert np.all(np.diff(np.array(list(drawn.values()))[np.argsort(variances)]) >= -1e-12)
    assert freedom <= degrees <= (len(variances) - 1) * freedom


def test_the_prior_of_variances_is_found_again() -> None:
    """Variances from a scaled inverse chi-square distribution, which is the model."""
    rng, prior, common, freedom = np.random.default_rng(1), 6.0, 2.0, 4
    true = prior * common / rng.chisquare(prior, 20_000)
    drawn, degrees = _moderated(dict(enumerate(true * rng.chisquare(freedom, 20_000) / freedom)), freedom)
    assert degrees == pytest.approx(prior + freedom, rel=0.1)
    assert (np.array(list(drawn.values())) / true).mean() == pytest.approx(
        1, rel=0.02
    )  # 1 / drawn is the mean of 1 / true


def test_more_seeds_and_more_prompts_detect_less() -> None:
    few, seeds, prompts = (
        np.median([crossed([(1.0, world(s, n, k))]).detectable() for s in range(9)])
        for n, k in ((40, 3), (40, 8), (160, 3))
    )
    assert seeds < few and prompts < few
