"""Groups: what prompts and pairs share counts once in every interval, however few groups there are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from pobench.results import stats
from pobench.results.contrast import compare
from pobench.results.evidence import Evidence
from pobench.results.groups import FEWEST_GROUPS, labels, pair_groups, prompt_groups, prompts_of
from pobench.results.metrics import score
from pobench.results.pair_values import kl


def test_pairs_of_one_prompt_are_told_by_the_names_that_the_data_gives_them() -> None:
    found = pair_groups(["a#1", "b", "a#2", "a#1", "c#12"])
    assert found is not None and found.to_dict() == {"a#1": "a", "a#2": "a", "b": "b", "c#12": "c"}
    assert pair_groups(["a#1", "b#1", "c"]) is None and pair_groups([]) is None
    assert pair_groups(["a#x", "a#y"]) is None, "only a number behind # names a pair"
    assert prompts_of(pd.Series(["p#1", "p#2", "q"])).to_list() == ["p", "p", "q"]


def test_a_few_topics_are_a_list_that_somebody_chose_and_many_are_a_sample() -> None:
    def answers(topics: int) -> pd.DataFrame:
        return pd.DataFrame(
            [{"prompt": f"{t}-{k}", "topic": f"t{t}", "kind": ""} for t in range(topics) for k in (0, 1)]
        )

    assert prompt_groups(answers(FEWEST_GROUPS - 1)) is None and prompt_groups(None) is None
    found = prompt_groups(answers(FEWEST_GROUPS))
    assert found is not None and found["3-0"] == found["3-1"] == "t3"
    assert labels(pd.Series(["3-0", "elsewhere"]), found).to_list() == ["t3", "elsewhere"]
    assert labels(pd.Series(["3-0"]), None) is None


def heldout(prompts: int, each: int, seeds: int = 3, shared: float = 1.0) -> pd.DataFrame:
    """Pairs of which those of one prompt resemble each other, for several runs."""
    rng = np.random.default_rng(prompts + each)
    own = np.repeat(rng.normal(0, shared, prompts), each) + rng.normal(0, 0.2, prompts * each)
    names = [f"p{k // each}#{k % each + 1}" for k in range(prompts * each)]
    return pd.concat(
        pd.DataFrame(
            {
                "run": f"s/simpo-{seed}", "pair": names, "chosen_length": 10.0, "rejected_length": 9.0,
                "chosen_logp": -20.0 - 10 * own - rng.normal(0, 1, len(own)), "rejected_logp": -20.0,
                "reference_chosen_logp": -20.0, "reference_rejected_logp": -20.0, "chosen_reward": 1.0, "rejected_reward": 0.0,
            }
        )
        for seed in range(seeds)
    )  # fmt: skip


def runs(seeds: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"run": f"s/simpo-{k}", "setting": "s", "loss": "simpo", "title": "SimPO", "seed": k, "settings": "{}"}
            for k in range(seeds)
        ]
    )


@pytest.mark.parametrize("prompts", [6, 60])
def test_a_claim_on_pairs_has_the_cluster_robust_error_of_statsmodels(prompts) -> None:
    frame = heldout(prompts, 4)
    e = Evidence(runs(), heldout=frame)
    values = e.pairs(e.arm("simpo"), kl)
    found = e.contrast([(1.0, values)])
    means = values.groupby(level=1).mean()
    fitted = sm.OLS(means, np.ones(len(means))).fit(
        cov_type="cluster", cov_kwds={"groups": pd.factorize(means.index.str.partition("#").get_level_values(0))[0]}
    )
    assert found.crossed.prompts.variance == pytest.approx(float(fitted.cov_params().iloc[0, 0]))
    assert found.crossed.prompts.freedom == prompts - 1 and found.estimate.n == 4 * prompts
    alone = compare(values, values * 0).estimate
    assert found.estimate.high - found.estimate.low > 1.5 * (alone.high - alone.low)


def test_metrics_of_pairs_count_a_prompt_once_too() -> None:
    def width(frame: pd.DataFrame, metric: str) -> float:
        row = next(row for row in score({"heldout": frame}) if row["metric"] == metric)
        return float(row["high"] - row["low"])

    together = heldout(30, 4)
    apart = together.assign(pair=together["pair"].str.replace("#", "-"))
    lengths = np.random.default_rng(0).integers(5, 50, 30)[together["pair"].str.extract(r"p(\d+)")[0].astype(int)]
    rises = together.assign(chosen_length=lengths.astype(float), chosen_logp=together["chosen_logp"] * lengths / 10)
    for frame, metric in ((together, "chosen_logp_per_token"), (rises, "length_correlation")):
        other = frame.assign(pair=apart["pair"].to_numpy())
        for part in (slice(None), frame["run"] == "s/simpo-0"):  # of three seeds, and of one
            assert width(frame[part], metric) > 1.3 * width(other[part], metric), metric


@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 1000))
def test_members_that_are_copies_count_as_one_rank_and_one_number(groups, copies, seed) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, groups))
    group = np.repeat(np.arange(groups), copies)
    once, often = (
        stats.spearman(x, y, resamples=40),
        stats.spearman(x[group], y[group], groups=group, resamples=40),
    )
    assert often.value == pytest.approx(once.value) and often.n == groups * copies
    assert (often.low, often.high) == pytest.approx((once.low, once.high), nan_ok=True)
    (grouped,) = stats.means(x[group][:, None], [None], group, resamples=40)
    single = stats.mean(x, resamples=40)
    assert (grouped.value, grouped.low, grouped.high) == pytest.approx((single.value, single.low, single.high))
