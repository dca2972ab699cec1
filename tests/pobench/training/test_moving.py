"""A reference that follows the policy: when it moves and how far, and that a resumed run has it where it was."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.training.objectives import PreferenceObjective
from pobench.training.reference import EveryStep
from pobench.workflows.invariance import SPLITS, TOLERANCE, WHOLE, difference, take_steps

SOON = {"tr.every": 2, "tr.alpha": 0.6}


class Killed(BaseException):
    pass


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tr(dpo)", {"tr.alpha": 0.0, "tr.every": 1}),
        ("tr(dpo)", {"tr.every": 7}),
        ("tr(dpo)", {}),
        ("bema(dpo)", {}),
        ("bema(dpo)", {"bema.every": 4, "bema.after": 5}),
    ],
)
def test_a_reference_that_takes_nothing_trains_as_the_loss_itself_does(
    name, settings, fit, pairs, start_model, moving
) -> None:
    plain, _, rows = fit(pairs, "dpo", epochs=2, reference=moving())  # six steps
    reference = moving()
    model, _, same = fit(pairs, name, epochs=2, folder="moved", reference=reference, settings=settings)
    assert torch.equal(weights(model), weights(plain))
    assert [row["loss"] for row in same] == [row["loss"] for row in rows]
    assert torch.equal(weights(reference.scorer.policy), weights(start_model))


def test_the_reference_is_the_mix_that_trl_makes(fit, pairs, start_model, moving) -> None:
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    theirs, reference, moved = copy.deepcopy(start_model), moving(), []

    def watch(scorer: Any) -> dict[str, float]:
        moved.append(weights(reference.scorer.policy))
        if len(moved) % 2 == 0:
            callbacks.SyncRefModelCallback._sync_target_model(scorer.policy.model, theirs, 0.6)
        return {"apart": float((moved[-1] - weights(theirs)).abs().max())}

    _, _, rows = fit(pairs, "tr(dpo)", epochs=2, reference=reference, settings=SOON, evaluate_every=1, watch=watch)
    _, _, still = fit(pairs, "dpo", epochs=2, folder="still", reference=moving())
    assert [row["apart"] for row in rows] == [0.0] * 6  # to the bit
    assert [torch.equal(a, b) for a, b in zip(moved, [weights(start_model), *moved], strict=False)] == [True, False] * 3
    assert [row["loss"] for row in rows[:2]] == [row["loss"] for row in still[:2]]
    assert all(abs(a["loss"] - b["loss"]) > 1e-5 for a, b in zip(rows[2:], still[2:], strict=True))


@pytest.mark.parametrize(("after", "least"), [(0, 0.0), (2, 0.9)])
def test_an_average_that_leads_is_the_reference_that_trl_makes(after, least, fit, pairs, start_model, moving) -> None:
    bema = pytest.importorskip("trl.experimental.bema_for_ref_model")
    shared = {"ema_power": 0.5, "bias_power": 0.2, "lag": 3, "multiplier": 0.5}
    own = {"update_freq": 2, "update_after": after, "min_ema_multiplier": least}
    of_reference = {"update_ref_model": True, "ref_model_update_freq": 2, "ref_model_update_after": after}
    callback = bema.BEMACallback(**shared, **own, **of_reference)
    policy, theirs, reference = copy.deepcopy(start_model), copy.deepcopy(start_model), moving()
    callback.on_train_begin(None, None, None, model=policy)
    apart: list[float] = []

    def watch(scorer: Any) -> dict[str, float]:
        policy.load_state_dict(scorer.policy.model.state_dict())
        state = SimpleNamespace(global_step=len(apart) + 1)
        callback.on_step_end(None, state, None, model=policy, ref_model=theirs)
        apart.append(float((weights(reference.scorer.policy) - weights(theirs)).abs().max()))
        return {}

    settings = {f"bema.{k}": v for k, v in {**shared, "every": 2, "after": after, "least_share": least}.items()}
    fit(pairs, "bema(dpo)", epochs=2, reference=reference, settings=settings, evaluate_every=1, watch=watch)
    assert apart == [0.0] * 6  # to the bit
    assert not torch.equal(weights(theirs), weights(start_model))


def test_a_reference_that_is_the_policy_of_every_step_starts_each_at_ln_2_and_without_kl(fit, pairs) -> None:
    settings = {"tr.every": 1, "tr.alpha": 1.0}
    _, trained, rows = fit(pairs, "tr(dpo)", settings=settings)
    assert [row["loss"] for row in rows] == pytest.approx([math.log(2)] * 3, abs=1e-5) and trained.step0_gap < 1e-5
    _, _, rows = fit(pairs, "tr(ld(kto))", folder="kto", settings=settings)
    assert [row["kl"] for row in rows] == pytest.approx([0.0] * 3, abs=1e-4)
    assert [row["rewards/margins"] for row in rows] == pytest.approx([0.0] * 3, abs=1e-5)


@pytest.mark.parametrize(("name", "settings"), [("tr(dpo)", SOON), ("bema(dpo)", {"bema.every": 2, "bema.after": 1})])
def test_a_resumed_run_has_the_reference_where_it_was(name, settings, fit, pairs, moving, tmp_path) -> None:
    options = {"epochs": 2, "checkpoint_seconds": 0, "settings": settings, "content": "a job"}
    first, again = moving(), moving()
    whole, *_ = fit(pairs, name, folder="whole", reference=first, **options)

    def log(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(pairs, name, log=log, **options)
    assert list((tmp_path / "run" / "checkpoint-4").glob("reference-*.safetensors"))
    resumed, _, rows = fit(pairs, name, reference=again, **options)
    assert rows[0]["step"] == 5
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(weights(again.scorer.policy), weights(first.scorer.policy))
    assert len(again.weights) == len(first.weights) and all(
        torch.equal(again.weights[key], first.weights[key]) for key in first.weights
    )


def test_a_damaged_file_of_the_reference_is_a_damaged_checkpoint(fit, pairs, moving, tmp_path) -> None:
    options = {"checkpoint_seconds": 0, "settings": {"tr.every": 1}, "content": "a job", "reference": moving()}
    fit(pairs, "tr(dpo)", **options)
    file = next((tmp_path / "run" / "checkpoint-2").glob("reference-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    said: list[str] = []
    fit(pairs, "tr(dpo)", **{**options, "reference": moving()}, say=said.append)
    assert [
        text for text in said if file.name in text and text.endswith("training starts from the checkpoint of step 1")
    ], said


def test_a_batch_may_be_cut_in_any_way_while_the_reference_moves(tmp_path) -> None:
    loss = get_loss("tr(kto)")
    settings = {**loss.settings, "tr.every": 1}
    whole, cut = (take_steps(loss, settings, split, tmp_path) for split in (WHOLE, SPLITS[1]))
    assert difference(cut, whole) <= TOLERANCE
    assert difference(take_steps(loss, loss.settings, WHOLE, tmp_path / "still"), whole) > 1e-3


def test_stored_sums_do_not_serve_a_reference_that_moves(fit, pairs, reference_of, moving) -> None:
    for reference in (reference_of(pairs), EveryStep(moving().scorer)):
        with pytest.raises(PobenchError, match="moves its reference; pass `reference`, a model in `Moving`"):
            fit(pairs, "tr(dpo)", reference=reference)


@pytest.mark.slow
def test_held_out_rewards_are_against_the_start_model(work_here, tmp_path) -> None:
    moved, plain = (work_here(loss, ("train", "heldout"), tr__every=1, train__epochs=3) for loss in ("tr(dpo)", "dpo"))
    about = json.loads((moved / "trained.json").read_text())
    assert about["reference"] == "every_step" and about["step0_gap"] < 1e-5
    assert not list(tmp_path.glob("cache/reference/*/tokens-*")) and not list(moved.glob("checkpoint-*"))
    frames = [pd.read_parquet(next(run.glob("heldout-*/heldout.parquet"))) for run in (moved, plain)]
    known = [frame[["reference_chosen_logp", "reference_rejected_logp"]] for frame in frames]
    assert known[0].equals(known[1])
    reward = 0.1 * (frames[0]["chosen_logp"] - frames[0]["reference_chosen_logp"])
    assert np.allclose(frames[0]["chosen_reward"], reward, atol=1e-5) and frames[0]["chosen_reward"].abs().min() > 0
    assert not np.allclose(frames[0]["chosen_logp"], frames[1]["chosen_logp"], atol=1e-5)


# ---------------------------------------------------------------- tokens that are drawn
def test_tokens_are_drawn_anew_in_every_step_however_a_batch_is_cut(fit, pairs, reference_of, tmp_path: Path) -> None:
    def losses(folder: str, **changes: Any) -> list[float]:
        return [row["loss"] for row in fit(pairs, "sampo(dpo)", folder=folder, epochs=2, lr=1e-2, **changes)[2]]

    whole = losses("whole")
    assert losses("cut", micro_tokens=24) == pytest.approx(whole, rel=1e-5)
    loss, values = get_loss("sampo(dpo)"), -torch.rand(sum(len(r) for p in pairs for r in p.responses)).cumsum(0)

    def drawn(seed: int, step: int) -> Tensor:
        objective = PreferenceObjective(pairs, loss, loss.settings, reference_of(pairs, True), seed=seed)
        objective.step = step
        return objective.measure(list(range(len(pairs))), values).slope

    assert torch.equal(drawn(1, 1), drawn(1, 1))
    assert not torch.equal(drawn(1, 1), drawn(1, 2)) and not torch.equal(drawn(1, 1), drawn(2, 1))
    counted = (drawn(1, 1) != 0).long().split([len(r) for p in pairs for r in p.responses])
    shorter = [min(map(len, p.responses)) for p in pairs for _ in p.responses]
    assert [int(one.sum()) for one in counted] == shorter


def test_a_resumed_run_draws_the_tokens_of_its_steps(fit, pairs) -> None:
    options = {"epochs": 2, "checkpoint_seconds": 0, "content": "a job"}
    whole, *_ = fit(pairs, "sampo(dpo)", folder="whole", **options)

    def log(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(pairs, "sampo(dpo)", log=log, **options)
    resumed, *_ = fit(pairs, "sampo(dpo)", **options)
    assert torch.equal(weights(resumed), weights(whole))
