"""How hard a pair pulls, from stored sums; and how far it moves the weights, from three numbers a pair."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from small_chat_model import chat_model

from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.registry import get_loss
from pobench.results import stats
from pobench.results.cross_loss import inputs_of
from pobench.results.derived import Frames
from pobench.results.gradients import gradients, weights
from pobench.runs.stages.gradient_norms import COLUMNS, norms_of, picked_pairs
from pobench.types import Group, TokenPair

PAIRS = 40


def held(run: str, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"run": run, "pair": [f"p{i}" for i in range(PAIRS)]})
    for side in ("chosen", "rejected"):
        frame[f"{side}_length"] = rng.integers(2, 60, PAIRS)
        frame[f"reference_{side}_logp"] = -frame[f"{side}_length"] * rng.uniform(0.5, 2, PAIRS)
        frame[f"{side}_logp"] = frame[f"reference_{side}_logp"] + rng.normal(0, 2, PAIRS)
    return frame


def runs(*names: str) -> pd.DataFrame:
    settings = {"dpo": '{"beta": 0.3}', "simpo": '{"beta": 2.0, "gamma": 1.0}', "kto": "{}", "start": "{}"}
    return pd.DataFrame(
        [{"run": f"s/{n}", "setting": "s", "loss": n, "settings": settings[n], "seed": 1} for n in names]
    )


def test_dpos_pull_is_beta_times_the_doubt() -> None:
    # loss = softplus(-margin), so d loss / d chosen = -beta sigmoid(-margin), and the rejected one is its mirror
    frame = held("s/dpo")
    view = inputs_of(frame)
    found = weights(get_loss("dpo"), {"beta": 0.3}, view)
    moved = (frame["chosen_logp"] - frame["reference_chosen_logp"]) - (
        frame["rejected_logp"] - frame["reference_rejected_logp"]
    )
    expected = 0.3 / (1 + np.exp(0.3 * moved.to_numpy()))
    assert found[:, 0] == pytest.approx(-expected, rel=1e-4)
    assert found[:, 1] == pytest.approx(expected, rel=1e-4)


def test_simpos_pull_on_a_side_falls_with_the_sides_length_and_dpos_does_not() -> None:
    view = inputs_of(held("s/simpo"))
    simpo = weights(get_loss("simpo"), {"beta": 2.0, "gamma": 1.0}, view)
    assert simpo[:, 0] * view.policy.chosen.length.numpy() == pytest.approx(
        -simpo[:, 1] * view.policy.rejected.length.numpy(), rel=1e-4
    )
    dpo = weights(get_loss("dpo"), {"beta": 0.3}, view)
    assert abs(stats.spearman(view.policy.chosen.length, np.abs(dpo[:, 0])).value) < 0.5
    assert stats.spearman(view.policy.chosen.length, np.abs(simpo[:, 0])).value < -0.7


def test_a_run_stands_under_its_own_loss_and_the_start_model_under_all_that_were_trained() -> None:
    known = runs("start", "dpo", "simpo", "kto")
    frame = gradients(known, pd.concat([held(run) for run in known["run"]], ignore_index=True))
    under = frame.groupby("run")["evaluated"].agg(lambda v: sorted(set(v))).to_dict()
    assert under == {"s/start": ["dpo", "kto", "simpo"], "s/dpo": ["dpo"], "s/simpo": ["simpo"], "s/kto": ["kto"]}
    assert frame["norm"].isna().all()  # nobody has measured the model's part
    missing = frame[frame["evaluated"] == "kto"]  # no mismatched sums are stored
    assert missing[["chosen_weight", "rejected_weight"]].isna().all(axis=None)


def test_frames_are_derived_when_asked_for_and_follow_a_choice_of_runs() -> None:
    known = runs("dpo", "simpo")
    frames = Frames({"runs": known, "heldout": pd.concat([held(run) for run in known["run"]], ignore_index=True)})
    assert "gradients" in frames and "steps" not in frames and not frames._made
    assert len(frames["gradients"]) == 2 * PAIRS and frames["gradients"] is frames["gradients"]
    only = frames.of_runs(["s/dpo"])
    assert set(only["gradients"]["run"]) == {"s/dpo"} and set(only["cross_loss"]["run"]) == {"s/dpo"}
    with pytest.raises(KeyError):
        frames["steps"]


@pytest.fixture(scope="module")
def model():
    return chat_model(loud=1.0)


PAIR = TokenPair("one", (5, 6, 7), (8, 9, 10, 11, 2), (12, 13, 2))


def test_three_numbers_give_the_norm_of_any_losss_gradient(model) -> None:
    known = runs("dpo")
    policy = ResponseLogps(model, None)
    measured = pd.DataFrame(norms_of(policy, [PAIR]), columns=COLUMNS)
    totals = policy(get_layout("padded").collate([Group.of(PAIR)], None))
    frame = pd.DataFrame(
        {
            "run": "s/dpo", "pair": ["one"], "chosen_length": 5, "rejected_length": 3,
            "chosen_logp": totals[0].item(), "rejected_logp": totals[1].item(),
            "reference_chosen_logp": totals[0].item() - 1.0, "reference_rejected_logp": totals[1].item() + 0.5,
        }
    )  # fmt: skip
    found = gradients(known, frame, measured.assign(run="s/dpo"))["norm"].iloc[0]
    moved = (totals[0] - frame["reference_chosen_logp"][0]) - (totals[1] - frame["reference_rejected_logp"][0])
    loss = torch.nn.functional.softplus(-0.3 * moved)
    slopes = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    whole = math.sqrt(sum(float(s.double().pow(2).sum()) for s in slopes if s is not None))
    assert found == pytest.approx(whole, rel=1e-4) and whole > 0


def test_pairs_to_measure_are_spread_over_their_lengths(monkeypatch) -> None:
    monkeypatch.setattr("pobench.runs.stages.gradient_norms.MOST_PAIRS", 3)
    pairs = [TokenPair(f"p{n}", (5,), (6,) * n, (7, 2)) for n in range(1, 10)]
    assert [pair.id for pair in picked_pairs(pairs)] == ["p1", "p4", "p7"]
