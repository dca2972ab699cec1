"""The loop: the split of a batch changes nothing, a killed run resumes bit for bit, a NaN stops."""

from __future__ import annotations

import copy
import gc
import itertools
import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pobench.errors import PobenchError
from pobench.registry import get_loss, list_losses, losses, register_loss
from pobench.settings.schema import TrainConfig
from pobench.training.loop import NonFiniteError, _refuse_unlike_steps, learning_rate
from pobench.training.objectives import PreferenceObjective
from pobench.training.reference import EveryStep, ReferenceSums
from pobench.types import Group, LossOutput, Pair


def is_tensor(thing: object) -> bool:
    return type(thing) in (torch.Tensor, torch.nn.Parameter)


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# One of each kind of input; `pobench.workflows.invariance` cuts a batch for every registered loss.
@pytest.mark.parametrize("loss", ["simpo", "dpo", "kto"])
def test_neither_micro_batches_nor_layout_change_a_step(loss, fit, pairs) -> None:
    results = []
    for i, changes in enumerate(
        ({"micro_tokens": 10_000}, {"micro_tokens": 40}, {"micro_tokens": 1}, {"micro_tokens": 60, "layout": "padded"})
    ):
        _, _, rows = fit(pairs, loss, folder=f"run{i}", batch_size=8, max_grad_norm=1e9, **changes)
        results.append(rows)
    assert len(results[0]) == 2  # 8 pairs, then a short last batch of 3
    for rows in results[1:]:
        for row, first in zip(rows, results[0], strict=True):
            for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm"):
                # a margin is a difference of sums of about 50 nats, each known to fp32's 4e-6
                assert row[name] == pytest.approx(first[name], rel=2e-5, abs=2e-5), name


@pytest.mark.parametrize("loss", list_losses())
def test_every_loss_falls_on_the_pairs_it_trains_on(loss, fit, pairs) -> None:
    _, _, rows = fit(pairs[:8], loss, batch_size=8, epochs=6, lr=3e-3)
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_killed_run_resumes_bit_for_bit(fit, pairs) -> None:
    undisturbed, _, rows = fit(pairs, "kto", folder="a", epochs=3, checkpoint_seconds=0)

    class Killed(BaseException):
        pass

    seen = []

    def log(row):
        seen.append(row)
        if row["step"] in (2, 5, 6) and len([r for r in seen if r["step"] == row["step"]]) == 1:
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            fit(pairs, "kto", folder="b", epochs=3, checkpoint_seconds=0, log=log)
    resumed, trained, _ = fit(pairs, "kto", folder="b", epochs=3, checkpoint_seconds=0, log=seen.append)
    assert torch.equal(weights(undisturbed), weights(resumed))
    last = {row["step"]: row["loss"] for row in seen}
    assert [last[row["step"]] for row in rows] == [row["loss"] for row in rows]
    assert seen[-1]["step"] == trained.steps == 9


def test_processes_whose_checkpoints_are_of_unlike_steps_are_refused_together() -> None:
    for found, refused in (([4, 4], False), ([4, 0], True)):
        two = SimpleNamespace(device=torch.device("cpu"), gather=lambda step, found=found: torch.tensor(found))
        with pytest.raises(PobenchError, match=r"different steps: \[4, 0\]") if refused else nullcontext():
            _refuse_unlike_steps(two, Path("checkpoints"), 4)


def test_watching_the_held_out_pairs_changes_no_weight_and_is_logged_where_it_was_done(fit, pairs) -> None:
    groups = [Group.of(p) for p in pairs[:3]]

    def watch(scorer) -> dict[str, float]:
        return {"heldout/kl": float(scorer.sums(groups).sum())}

    alone, _, _ = fit(pairs, "dpo", folder="a", epochs=2)
    watched, trained, rows = fit(pairs, "dpo", folder="b", epochs=2, watch=watch, evaluate_every=4)
    assert torch.equal(weights(alone), weights(watched))
    assert [row["step"] for row in rows if "heldout/kl" in row] == [4, trained.steps] == [4, 6]
    assert rows[3]["heldout/kl"] != rows[-1]["heldout/kl"]
    _, _, rows = fit(pairs, "dpo", folder="c", watch=watch)
    assert not any("heldout/kl" in row for row in rows)  # off by default


def test_only_a_loss_that_asks_for_a_reference_needs_its_sums(fit, pairs, monkeypatch) -> None:
    read = []
    of = ReferenceSums.of
    monkeypatch.setattr(ReferenceSums, "of", lambda self, groups: (read.append(len(groups)), of(self, groups))[1])
    fit(pairs, "simpo")
    assert read == []
    fit(pairs, "dpo", folder="dpo")
    assert read == [len(pairs)]
    fit(pairs, "kto", folder="kto")
    assert read == [len(pairs)] * 3  # and the borrowed answers
    with pytest.raises(PobenchError, match="dpo needs reference, and there are no reference sums"):
        PreferenceObjective(pairs, get_loss("dpo"), {})


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_sums_computed_in_every_step_train_as_stored_ones_do(loss, fit, pairs, start_model, scorer_of) -> None:
    asked = []

    class Counted(EveryStep):
        def of(self, groups):
            asked.append(len(groups))
            return super().of(groups)

    frozen = copy.deepcopy(start_model)
    stored, _, rows = fit(pairs, loss)
    live, trained, live_rows = fit(pairs, loss, folder="live", reference=Counted(scorer_of(frozen)))
    twice = 2 if loss == "kto" else 1  # and the borrowed answers
    # the probe of the first batch before step 1, then 4, 4 and 3 of 11 pairs
    assert asked == [count for count in (4, 4, 4, 3) for _ in range(twice)]
    for ours, theirs in zip(live_rows, rows, strict=True):
        for name in ("loss", "rewards/margins", "grad_norm", *(["kl"] if loss == "kto" else [])):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(live.parameters(), stored.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(frozen.parameters(), start_model.parameters(), strict=True))
    assert trained.step0_gap < 1e-5


def test_dpo_starts_at_ln_2_because_policy_and_reference_are_one(fit, pairs) -> None:
    _, trained, rows = fit(pairs, "dpo")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert trained.step0_gap < 1e-5


def test_a_reference_of_other_weights_is_noticed_before_step_one(fit, pairs, start_model, scorer_of) -> None:
    other = copy.deepcopy(start_model)
    with torch.no_grad():
        other.model.norm.weight.mul_(1.5)
    reference = ReferenceSums.of_groups([Group.of(p) for p in pairs], scorer_of(other))
    with pytest.raises(PobenchError, match=r"before step 1 policy and reference differ by .* nats a token"):
        fit(pairs, "dpo", reference=reference)


def test_training_leaves_nothing_but_the_weights(fit, pairs, tmp_path) -> None:
    def held() -> int:
        gc.collect()
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if is_tensor(t)
        }
        return sum(storages.values())

    before = held()
    model, _, rows = fit(pairs, "dpo", epochs=2)
    parameters = sum(p.nbytes for p in model.parameters())
    assert len(rows) == 6
    assert held() - before < 1.5 * parameters  # gradients would be twice, moments four times; a batch's input may stay
    assert all(p.grad is None for p in model.parameters())
    model.train()
    (3 * sum(p.sum() for p in model.parameters())).backward()  # and it can be trained on, by whoever holds it
    assert all((p.grad == 3).all() for p in model.parameters())


def test_a_nan_stops_at_its_step_and_names_the_pairs(fit, pairs, monkeypatch) -> None:
    longest = max(len(p.chosen) for p in pairs)

    @register_loss("nan_when_it_rises", source="this test")
    def nan_when_it_rises(policy: Pair) -> LossOutput:
        broken = policy.chosen.total * torch.where(policy.chosen.length == longest, math.nan, 1.0)
        return LossOutput(-broken, policy.chosen.total.detach(), policy.rejected.total.detach())

    try:
        at = next(i for i, p in enumerate(pairs) if len(p.chosen) == longest)
        with pytest.raises(NonFiniteError, match=rf"step {at // 4 + 1}: .*\b{pairs[at].id}\b"):
            fit(pairs, "nan_when_it_rises")
    finally:
        losses._items.pop("nan_when_it_rises")
        losses._aliases.pop("nanwhenitrises")


def test_a_loss_that_changes_what_it_is_given_is_refused_at_step_one(fit, pairs, forget) -> None:
    @register_loss("in_place", source="this test")
    def in_place(policy: Pair, reference: Pair) -> LossOutput:
        difference = policy.chosen.total - policy.rejected.total
        reference.chosen.total.mul_(0)
        return LossOutput(-difference, policy.chosen.total.detach(), policy.rejected.total.detach())

    with pytest.raises(PobenchError, match="'in_place' changes the tensors that it is given"):
        fit(pairs, "in_place")


@pytest.mark.parametrize("power", [0.5, -1.0])  # at 0: a gradient that is infinite times 0; an infinite value
def test_what_is_not_finite_stops_before_the_weights_change_and_the_last_checkpoint_stays(
    power, fit, pairs, tmp_path, forget
) -> None:
    calls: list[int] = []

    @register_loss("breaks", source="this test")
    def breaks(policy: Pair) -> LossOutput:
        calls.append(1)
        margin = policy.chosen.total - policy.rejected.total
        loss = (0 * margin).pow(power) if len(calls) == 3 else -margin
        return LossOutput(loss, margin.detach(), margin.detach())

    with pytest.raises(NonFiniteError, match=r"step 3: .*The last checkpoint is kept"):
        fit(pairs, "breaks", checkpoint_seconds=0)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()


def test_a_loss_of_the_wrong_shape_is_refused(fit, pairs) -> None:
    @register_loss("mean_by_itself", source="this test")
    def mean_by_itself(policy: Pair) -> LossOutput:
        return LossOutput(-policy.chosen.total.mean(), policy.chosen.total.detach(), policy.rejected.total.detach())

    try:
        with pytest.raises(PobenchError, match="one value per pair"):
            fit(pairs, "mean_by_itself")
    finally:
        losses._items.pop("mean_by_itself")
        losses._aliases.pop("meanbyitself")


def test_half_precision_weights_are_refused(fit, pairs) -> None:
    with pytest.raises(PobenchError, match="must be float32"):
        fit(pairs, dtype=torch.bfloat16)


def test_the_schedule_is_warm_up_then_cosine() -> None:
    config = TrainConfig(lr=1.0, warmup_ratio=0.1)
    rates = [learning_rate(config, s, 100) for s in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and rates[5] == pytest.approx(6 / 11) and rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 1e-3
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.99])
def test_no_step_has_the_rate_0_and_one_has_the_full_rate(schedule: Any, ratio: float) -> None:
    config = TrainConfig(lr=1.0, warmup_ratio=ratio, schedule=schedule)
    for total in (1, 2, 3, 10, 99):
        rates = [learning_rate(config, s, total) for s in range(total)]
        assert min(rates) > 0 and max(rates) == 1.0


def test_a_run_of_one_step_trains_and_says_that_its_warm_up_is_too_short(fit, pairs) -> None:
    notes: list[str] = []
    options = {"batch_size": len(pairs), "warmup_ratio": 0.1}
    moved, _, (row,) = fit(pairs, **options, say=notes.append)
    still, *_ = fit(pairs, **options, lr=1e-30)
    assert row["lr"] == 1e-3 and not torch.equal(weights(moved), weights(still))
    assert any("1 step, too short for its warm-up of 1" in note for note in notes)
    notes.clear()
    fit(pairs, batch_size=len(pairs) // 2, warmup_ratio=0.1, say=notes.append)
    assert not any("warm-up" in note for note in notes)
