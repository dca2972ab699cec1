"""One forward serves all losses: what is stored of a run's held-out pairs evaluates every registered loss."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from pobench.columns import FRAMES
from pobench.registry import list_losses, losses, register_loss
from pobench.results import stats
from pobench.results.arms import home_of
from pobench.results.cross_loss import cross_loss
from pobench.results.load import load_frames
from pobench.types import LossOutput, Pair

PAIRS = 25


def held(run: str, seed: int, *, mismatched: bool = True) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    length = {side: rng.integers(1, 40, PAIRS) for side in ("chosen", "rejected")}
    frame = pd.DataFrame({"run": run, "pair": [f"p{i}" for i in range(PAIRS)]})
    for side, n in length.items():
        frame[f"{side}_length"] = n
        frame[f"reference_{side}_logp"] = -n * rng.uniform(0.5, 2, PAIRS)
        frame[f"{side}_logp"] = frame[f"reference_{side}_logp"] + rng.normal(0, 3, PAIRS)
    if mismatched:
        frame["reference_mismatched_logp"] = -rng.uniform(20, 60, PAIRS)
        frame["mismatched_logp"] = frame["reference_mismatched_logp"] + 2.0
    return frame


def run_row(run: str, loss: str, settings: dict, setting: str = "s") -> dict:
    return {
        "run": run, "setting": setting, "kind": "start" if loss == "start" else "loss", "loss": loss, "title": loss,
        "seed": 1, "settings": json.dumps(settings), "lr": 1e-5, "epochs": 1, "batch_size": 8, "pairs": 10,
    }  # fmt: skip


@pytest.fixture
def made() -> pd.DataFrame:
    runs = pd.DataFrame([run_row("s/start", "start", {}), run_row("s/dpo", "dpo", {"beta": 0.3})])
    return cross_loss(runs, pd.concat([held("s/start", 1, mismatched=False), held("s/dpo", 2)], ignore_index=True))


def value(frame: pd.DataFrame, run: str, evaluated: str, metric: str = "loss") -> pd.Series:
    (row,) = [
        r
        for _, r in frame[(frame["run"] == run) & (frame["evaluated"] == evaluated)].iterrows()
        if r["metric"] == metric
    ]
    return row


def test_every_run_is_evaluated_by_every_registered_loss(made) -> None:
    assert list(made.columns) == FRAMES["cross_loss"].names
    assert len(made) == 2 * len(list_losses()) * 3
    for run in ("s/start", "s/dpo"):
        assert set(made.loc[made["run"] == run, "evaluated"]) == set(list_losses())


def test_a_number_is_the_formulas_mean_over_pairs(made) -> None:
    frame = held("s/dpo", 2)
    delta = (frame["chosen_logp"] - frame["reference_chosen_logp"]) - (
        frame["rejected_logp"] - frame["reference_rejected_logp"]
    )
    assert value(made, "s/dpo", "dpo")["value"] == pytest.approx(np.log1p(np.exp(-0.3 * delta)).mean(), rel=1e-5)
    assert value(made, "s/dpo", "dpo", "margin")["value"] == pytest.approx(0.3 * delta.mean(), rel=1e-4, abs=1e-5)
    assert value(made, "s/dpo", "dpo", "reward_accuracy")["value"] == pytest.approx((delta > 0).mean())
    row = value(made, "s/dpo", "ipo")
    assert row["low"] < row["value"] < row["high"] and row["n"] == PAIRS


def test_kto_takes_its_kl_from_the_mismatched_pairs_and_is_missing_without_them(made) -> None:
    frame = held("s/dpo", 2)
    chosen = 0.1 * (frame["chosen_logp"] - frame["reference_chosen_logp"])
    rejected = 0.1 * (frame["rejected_logp"] - frame["reference_rejected_logp"])
    z = 0.1 * 2.0  # beta times the drift of every mismatched pair

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    assert value(made, "s/dpo", "kto")["value"] == pytest.approx(
        (2 - sigmoid(chosen - z) - sigmoid(z - rejected)).mean(), rel=1e-5
    )
    absent = value(made, "s/start", "kto")
    assert math.isnan(absent["value"]) and absent["n"] == 0


def test_a_loss_is_evaluated_with_its_own_values_then_the_settings_then_the_defaults() -> None:
    runs = pd.DataFrame(
        [
            *(run_row(f"s/dpo-{beta}", "dpo", {"beta": beta}) for beta in (0.01, 0.5)),
            run_row("s/simpo", "simpo", {"beta": 2.5, "gamma": 0.3, "gamma_beta_ratio": None}),
            run_row("t/simpo", "simpo", {"beta": 9.0, "gamma": 1.0, "gamma_beta_ratio": None}, setting="t"),
        ]
    )
    made = cross_loss(runs, pd.concat([held(run, i) for i, run in enumerate(runs["run"])], ignore_index=True))

    def used(run: str, loss: str) -> dict:
        return json.loads(value(made, run, loss)["settings"])

    assert used("s/dpo-0.01", "dpo")["beta"] == 0.01 and used("s/dpo-0.5", "dpo")["beta"] == 0.5
    assert used("s/dpo-0.5", "simpo")["beta"] == 2.5
    home = home_of(runs[runs["setting"] == "s"], "dpo")
    assert used("s/simpo", "dpo")["beta"] == float(home.runs[0].partition("-")[2])
    assert used("t/simpo", "dpo") == dict(losses.get("dpo").canonical(losses.get("dpo").settings))


def test_a_loss_that_breaks_is_missing_and_the_others_stand() -> None:
    @register_loss("breaks", source="this test")
    def breaks(policy: Pair, *, how: str = "hard") -> LossOutput:
        raise RuntimeError(how)

    try:
        made = cross_loss(pd.DataFrame([run_row("s/dpo", "dpo", {"beta": 0.3})]), held("s/dpo", 2))
    finally:
        losses._items.pop("breaks")
        losses._aliases.pop("breaks")
    assert value(made, "s/dpo", "breaks")["n"] == 0 and math.isnan(value(made, "s/dpo", "breaks")["value"])
    assert value(made, "s/dpo", "dpo")["n"] == PAIRS


def test_many_means_are_the_means_one_by_one() -> None:
    rng = np.random.default_rng(3)
    table = rng.normal(size=(30, 5))
    table[:, 1] = 1.0
    table[4, 2] = np.nan
    table[:, 3] = np.nan
    bounds = [None, stats.UNIT, None, None, None]
    for got, column, bound in zip(stats.means(table, bounds), table.T, bounds, strict=True):
        expected = stats.mean(column, bounds=bound)
        assert got.n == expected.n
        assert [got.value, got.low, got.high] == pytest.approx(
            [expected.value, expected.low, expected.high], rel=1e-12, nan_ok=True
        )


def test_a_run_under_its_own_loss_is_what_its_worker_measured(work_here, tmp_path) -> None:
    for loss in ("kto", "simpo"):
        work_here(loss, train__epochs=3, train__lr=1e-2)
    frames = load_frames(tmp_path / "runs")
    made, scores = frames["cross_loss"], frames["scores"]
    for run, loss in zip(frames["runs"]["run"], frames["runs"]["loss"], strict=True):
        if loss == "start":
            assert value(made, run, "dpo")["value"] == pytest.approx(math.log(2), abs=1e-6)
            continue
        own = frames["heldout"][frames["heldout"]["run"] == run]
        assert value(made, run, loss)["value"] == pytest.approx(own["loss"].mean(), rel=1e-7)
        margin = own["chosen_reward"] - own["rejected_reward"]
        assert value(made, run, loss, "margin")["value"] == pytest.approx(margin.mean(), rel=1e-6, abs=1e-9)
        stored = scores[(scores["run"] == run) & (scores["metric"] == "reward_accuracy")].iloc[0]
        mine = value(made, run, loss, "reward_accuracy")
        assert [mine[k] for k in ("value", "low", "high", "n")] == pytest.approx(
            [stored[k] for k in ("value", "low", "high", "n")]
        )
    assert not made.loc[made["evaluated"] == "kto", "value"].isna().any()  # mismatched pairs are stored for every run
