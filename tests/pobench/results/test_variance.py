"""Components of variance: what they are, what they cannot be, and what a design can be expected to detect."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from pobench.results.arms import arms_of
from pobench.results.crossed import crossed
from pobench.results.variance import Components, Readings, components, median, noise_of, readings_of


def series(values: np.ndarray) -> Readings:
    """(prompts, seeds, samples, orders) as readings."""
    p, *others = values.shape
    return Readings(values, (pd.Index([f"p{i:03d}" for i in range(p)]), *(pd.RangeIndex(n) for n in others)))


def drawn(rng, shape, prompt=0.0, seed=0.0, cell=0.0, decoding=0.0, judge=0.0) -> np.ndarray:
    """Values with these variances."""
    p, s, d, _ = shape
    sizes = ((p, 1, 1, 1), (1, s, 1, 1), (p, s, 1, 1), (p, s, d, 1), shape)
    parts = zip((prompt, seed, cell, decoding, judge), sizes, strict=True)
    return np.asarray(sum(rng.normal(0, math.sqrt(v), size) for v, size in parts) + np.zeros(shape))


def test_a_balanced_case_is_the_analysis_of_variance_of_statsmodels() -> None:
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    p, s, d = 7, 3, 4
    values = series(drawn(np.random.default_rng(1), (p, s, d, 1), 100, 400, 30, 90))
    prompt, seed, _ = np.indices((p, s, d))
    frame = pd.DataFrame({"y": values.values.ravel(), "prompt": prompt.ravel(), "seed": seed.ravel()})
    square = anova_lm(ols("y ~ C(prompt) * C(seed)", frame).fit())["mean_sq"]
    found = components(values)
    assert found is not None and found.negative == ()
    assert found.decoding == pytest.approx(square["Residual"])
    assert found.cell == pytest.approx((square["C(prompt):C(seed)"] - square["Residual"]) / d)
    assert found.seed == pytest.approx((square["C(seed)"] - square["C(prompt):C(seed)"]) / (d * p))
    assert found.prompt == pytest.approx((square["C(prompt)"] - square["C(prompt):C(seed)"]) / (d * s))


def test_each_component_is_found_where_it_was_put_in() -> None:
    # 4,000 cells with 3 samples in 2 orders; 5 points of order are no noise
    true = {"prompt": 100.0, "seed": 60.0, "cell": 30.0, "decoding": 90.0, "judge": 50.0}
    values = drawn(np.random.default_rng(2), (100, 40, 3, 2), **true) + np.array([0.0, 5.0])
    found = components(series(values))
    assert found is not None
    for name, variance in true.items():
        tolerance = 0.6 if name in ("prompt", "seed") else 0.15
        assert getattr(found, name) == pytest.approx(variance, rel=tolerance), name
    assert (found.prompts, found.seeds) == (100, 40) and (found.samples, found.readings) == pytest.approx((3, 2))


def test_what_cannot_be_told_apart_is_nan() -> None:
    one_sample = components(series(drawn(np.random.default_rng(3), (30, 3, 1, 1), 100, 10, 30, 90)))
    assert one_sample is not None
    assert math.isnan(one_sample.decoding) and math.isnan(one_sample.judge) and one_sample.cell > 0
    assert one_sample.of_cell(16) == one_sample.cell  # more samples promise nothing
    assert components(series(drawn(np.random.default_rng(3), (30, 1, 4, 1), 100))) is None
    assert components(series(drawn(np.random.default_rng(3), (1, 3, 4, 1), 100))) is None


def test_a_negative_component_is_0_and_named() -> None:
    # seeds with equal means: variance of the means 0, less the residual's share
    values = np.array([[1.0, -1.0], [-1.0, 1.0]])[:, :, None, None]
    found = components(series(values))
    assert found is not None and found.seed == 0.0 and set(found.negative) == {"seed", "prompt"}


def test_a_missing_verdict_and_a_prompt_without_a_seed_are_left_out() -> None:
    values = drawn(np.random.default_rng(4), (20, 3, 2, 1), 100, 20, 30, 90)
    values[0, 1] = np.nan
    values[1, 1, 0] = np.nan
    found, without = components(series(values)), components(series(values[1:]))
    assert found is not None and without is not None and found.prompts == 19
    assert repr(found) == repr(without)  # nan is not equal to itself
    assert found.samples == pytest.approx(1 / (1 / 2 + 1 / 2 / (19 * 3)))  # one cell of 57 has one sample


def test_the_parts_add_up_to_what_the_crossed_interval_sees() -> None:
    values = drawn(np.random.default_rng(5), (40, 4, 2, 1), 100, 400, 300, 90)
    found = components(series(values))
    seen = crossed([(1.0, values.mean(axis=(2, 3)))])
    assert found is not None and found.negative == ()
    planned = found.crossed(4, 40, 2)
    assert planned.prompts.variance == pytest.approx(seen.prompts.variance)
    assert planned.seeds[0].variance == pytest.approx(seen.seeds[0].variance)
    assert planned.prompts.freedom == 39 and planned.seeds[0].freedom == 3
    assert sum(share for share in found.shares().values() if share == share) == pytest.approx(1.0)


@pytest.mark.parametrize(("seed", "seeds"), [(0.0, 3), (3.0, 3), (20.0, 5)])
def test_a_planned_difference_is_seen_four_times_in_five(seed, seeds) -> None:
    found = Components(400.0, seed, 100.0, 900.0, math.nan, 50, seeds, 4.0, 1.0)
    effect, rng = found.detectable(seeds, 50, 4), np.random.default_rng(6)
    seen = 0
    for _ in range(400):
        table = effect + drawn(rng, (50, seeds, 1, 1), found.prompt, found.seed, found.of_cell(4))[:, :, 0, 0]
        estimate = crossed([(1.0, table)])
        seen += estimate.value > estimate.half_width()
    assert 0.74 < seen / 400 < 0.86  # 0.8 ± 3 standard errors


def test_more_of_anything_detects_less() -> None:
    found = Components(400.0, 4.0, 100.0, 900.0, math.nan, 50, 3, 4.0, 1.0)
    plain = found.detectable(3, 50, 4)
    assert (
        found.detectable(5, 50, 4) < plain
        and found.detectable(3, 100, 4) < plain
        and found.detectable(3, 50, 16) < plain
    )


def test_prompts_that_share_a_topic_count_less() -> None:
    by_topic = np.repeat(np.random.default_rng(7).normal(0, 10, (10, 1, 1, 1)), 4, axis=0)
    values = series(by_topic + drawn(np.random.default_rng(8), (40, 3, 1, 1), 1, 1, 1))
    topics = pd.Series({f"p{p:03d}": p // 4 for p in range(40)})
    alone, grouped = components(values), components(values, topics)
    assert alone is not None and grouped is not None
    assert grouped.grouped == pytest.approx(4, rel=0.15) and grouped.crossed(3, 40, 1).prompts.freedom == 9
    assert grouped.detectable(3, 40, 1) > alone.detectable(3, 40, 1)


def test_a_difference_is_taken_seed_by_seed_and_sample_by_sample(synthetic) -> None:
    frames = synthetic.make_frames(seeds=(1, 2, 3), prompts=12)
    runs, verdicts = frames["runs"], frames["verdicts"]
    arms = {arm.loss: arm for arm in arms_of(runs)}
    noise = noise_of(runs, verdicts, None, list(arms.values()))
    assert set(noise.of_arms) == set(arms.values()) - {arms["start"]}
    assert len(noise.of_pairs) == 10
    same = verdicts[verdicts["run"].isin(arms["dpo"].runs)]
    run_of = {(row.loss, row.seed): row.run for row in runs.itertuples()}
    twin = {run_of["dpo", seed]: run_of["ipo", seed] for seed in (1, 2, 3)}
    copied = pd.concat([same, same.assign(run=same["run"].map(twin))])  # IPO has DPO's verdicts: nothing is left
    pair = noise_of(runs, copied, None, [arms["dpo"], arms["ipo"]]).of_pairs[arms["dpo"], arms["ipo"]]
    assert (pair.prompt, pair.seed, pair.cell, pair.decoding) == (0, 0, 0, 0) and (pair.seeds, pair.samples) == (3, 2)


def test_both_orders_of_a_judge_are_its_two_readings(synthetic) -> None:
    frames = synthetic.make_frames({"dpo": synthetic.LOSSES["dpo"]}, seeds=(1, 2), prompts=3, samples=1)
    arm = next(arm for arm in arms_of(frames["runs"]) if arm.loss == "dpo")
    verdicts = frames["verdicts"].assign(forward=0.25, backward=0.75, score=0.5)
    verdicts.loc[verdicts.index[-1], "backward"] = np.nan  # this one is known by its score alone
    readings = readings_of(verdicts, frames["runs"], arm)
    assert readings.values.shape == (3, 2, 1, 3) and list(readings.axes[3]) == ["0", "backward0", "forward0"]
    assert np.isnan(readings.values).sum(axis=(0, 1, 2)).tolist() == [5, 1, 1]
    assert np.nanmean(readings.values, axis=(0, 1, 2)).tolist() == [50.0, 75.0, 25.0]


def test_a_median_is_taken_component_by_component() -> None:
    first = Components(1.0, 2.0, 3.0, math.nan, math.nan, 10, 3, 1.0, 1.0, negative=("seed",))
    second = Components(3.0, 6.0, 1.0, 4.0, math.nan, 20, 5, 4.0, 1.0)
    found = median([first, second])
    assert (found.prompt, found.seed, found.cell, found.decoding) == (2.0, 4.0, 2.0, 4.0)
    assert math.isnan(found.judge) and (found.prompts, found.seeds, found.negative) == (15, 4, ())
    with pytest.raises(ValueError, match="no components"):
        median([])
