"""A value model beside the policy: what trains it, at what rate, and that a resumed run has it where it was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.types import TokenPair
from pobench.workflows.invariance import SPLITS, TOLERANCE, WHOLE, difference, take_steps


class Killed(BaseException):
    pass


def weights(model: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def stored(checkpoint: Path, kind: str) -> dict[str, Tensor]:
    """The value model's tensors in a checkpoint."""
    found: dict[str, Tensor] = {}
    for file in checkpoint.glob(f"{kind}-*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys() if "value." in name}  # noqa: SIM118
    return found


def rated(pairs: list[TokenPair]) -> Tensor:
    return torch.tensor([pair.scores for pair in pairs])


def test_the_first_step_begins_at_value_0_and_has_the_printed_gradient(fit, pairs, start_model) -> None:
    _, _, rows = fit(pairs[:4], "dro_v", max_grad_norm=math.inf, settings={"tau": 2.0})
    scores = rated(pairs[:4])
    # nothing has moved and V is 0, so that what is missed is the rating
    assert rows[0]["loss"] == pytest.approx(float((scores**2 / 4).mean()), rel=1e-4) and rows[0]["value"] == 0
    with torch.no_grad():
        states = [start_model.base_model(torch.tensor([p.prompt])).last_hidden_state[0, -1] for p in pairs[:4]]
    by_head = -(scores.mean(1)[:, None] * torch.stack(states)).mean(0)  # the body's is 0, as the head is
    norm = torch.cat([by_head, -scores.mean()[None]]).norm()
    assert rows[0]["value_grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_the_value_of_a_prompt_becomes_its_mean_rating(fit, pairs) -> None:
    few = pairs[:5]
    _, _, rows = fit(few, "dro_v", epochs=30, lr=1e-9, value_learning_rate=3e-2, schedule="constant", batch_size=5)
    spread = ((rated(few) - rated(few).mean(1, keepdim=True)) ** 2).mean() / 2  # what no value of a prompt explains
    assert rows[-1]["value"] == pytest.approx(float(rated(few).mean()), rel=0.05)
    assert rows[-1]["loss"] == pytest.approx(float(spread), rel=0.1) and rows[0]["loss"] > 5 * rows[-1]["loss"]


def test_its_learning_rate_is_the_policys_or_its_own(fit, pairs) -> None:
    def values(**changes: Any) -> list[float]:
        _, _, rows = fit(pairs, "dro_v", folder=str(changes), **changes)
        assert [row["lr"] for row in rows] == [1e-3 * row["lr"] / rows[0]["lr"] for row in rows]
        return [row["value"] for row in rows]

    assert values() == values(value_learning_rate=1e-3)
    assert abs(values(value_learning_rate=1e-2)[1]) > 5 * abs(values()[1]) > 0


def test_the_gradient_of_each_model_is_clipped_by_itself(fit, pairs) -> None:
    clipped: list[list[float]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        squares = [sum(float((p.grad**2).sum()) for p in group["params"]) for group in optimizer.param_groups]
        clipped.append([math.sqrt(squares[0] + squares[1]), math.sqrt(squares[2] + squares[3])])

    watching = register_optimizer_step_pre_hook(keep)
    try:
        _, _, rows = fit(pairs[:4], "dro_v", max_grad_norm=1e-3)
    finally:
        watching.remove()
    assert min(rows[0]["grad_norm"], rows[0]["value_grad_norm"]) > 1e-2
    assert clipped == [pytest.approx([1e-3, 1e-3], rel=1e-3)]


def test_a_loss_without_a_value_logs_none(fit, pairs) -> None:
    _, _, rows = fit(pairs[:4], "dpo")
    assert not {"value", "value_grad_norm"} & rows[0].keys()


def test_a_resumed_run_has_the_value_model_where_it_was(fit, pairs, tmp_path) -> None:
    options = {"epochs": 2, "checkpoint_seconds": 0, "content": "a job"}
    whole, _, all_rows = fit(pairs, "dro_v", folder="whole", **options)

    def log(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(pairs, "dro_v", log=log, **options)
    found = stored(tmp_path / "run" / "checkpoint-4", "weights")
    assert {"value.head.weight", "value.head.bias"} < found.keys() and found["value.head.weight"].any()
    assert len(stored(tmp_path / "run" / "checkpoint-4", "adam")) == 3 * len(found)
    resumed, _, rows = fit(pairs, "dro_v", **options)
    assert rows[0]["step"] == 5
    assert torch.equal(weights(resumed), weights(whole))
    same = ("loss", "value", "value_grad_norm", "grad_norm")
    assert [[row[k] for k in same] for row in rows] == [[row[k] for k in same] for row in all_rows[4:]]
    last = [stored(tmp_path / folder / "checkpoint-5", "weights") for folder in ("run", "whole")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in found)


def test_a_loss_of_pairs_or_of_lists_may_ask_for_a_value(losses_that_ask, tmp_path) -> None:
    for name in ("t_valued_pairs", "t_valued_lists"):
        loss = get_loss(name)
        whole, cut = (take_steps(loss, loss.settings, split, tmp_path / name) for split in (WHOLE, SPLITS[3]))
        assert difference(cut, whole) <= TOLERANCE


def test_a_memory_probe_sends_prompts_through_the_value_model(fit, pairs) -> None:
    _, trained, _ = fit(pairs, "dro_v", micro_tokens="auto", gradient_checkpointing=True)
    assert trained.gradient_checkpointing and "tokens of the longest rows take" in trained.memory_reason


def test_a_reference_may_move_beside_it(losses_that_ask, fit, pairs, moving) -> None:
    options = {"settings": {"tr.every": 2}, "checkpoint_seconds": 0, "epochs": 2, "content": "a job"}
    _, _, rows = fit(pairs, "tr(t_valued_pairs)", reference=moving(), **options)
    assert all(math.isfinite(row["loss"]) for row in rows) and rows[-1]["value"] != 0


def test_an_adapter_is_refused(fit, pairs) -> None:
    pytest.importorskip("peft")
    with pytest.raises(PobenchError, match="trains all of its weights; some of these are frozen"):
        fit(pairs, "dro_v", adapter={"r": 2})
