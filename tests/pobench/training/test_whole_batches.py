"""Losses of the whole optimiser batch: however it is cut, value and gradient are those of the formula on all of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench.errors import PobenchError
from pobench.registry import get_loss, register_loss
from pobench.training import checkpoint
from pobench.types import Pair, SequenceLogps
from pobench.workflows.invariance import SPLITS, TOLERANCE, WHOLE, difference, take_steps

N, BETA = 13, 0.1
WITH_BATCH = ("t_aot", "t_aot_unpaired", "t_dr_dpo", "t_beta_dpo", "t_bco")


def sums(seed: int) -> Tensor:
    """(4, pairs) fp64: chosen and rejected under policy and reference."""
    drawn = torch.Generator().manual_seed(seed)
    reference = -40 + 9 * torch.randn(2, N, generator=drawn, dtype=torch.float64)
    moved = 7 * torch.randn(2, N, generator=drawn, dtype=torch.float64)
    return torch.cat([reference + moved, reference])


def aot(w: Tensor, l: Tensor, rw: Tensor, rl: Tensor) -> Tensor:  # noqa: E741 (the papers' own name)
    return -logsigmoid(BETA * ((w - l).sort().values - (rw - rl).sort().values)).mean()


def aot_unpaired(w: Tensor, l: Tensor, rw: Tensor, rl: Tensor) -> Tensor:  # noqa: E741
    return -logsigmoid(BETA * ((w - rw).sort().values - (l - rl).sort().values)).mean()


def dr_dpo(w: Tensor, l: Tensor, rw: Tensor, rl: Tensor) -> Tensor:  # noqa: E741
    return -logsigmoid(BETA * (w - rw - l + rl)).exp().mean().log()  # at robustness 1: -log of the mean σ


def beta_dpo(w: Tensor, l: Tensor, rw: Tensor, rl: Tensor) -> Tensor:  # noqa: E741
    gap = w - rw - l + rl
    mean, spread = 0.1 * gap.detach().mean(), 0.1 * gap.detach().std(unbiased=False)
    far = (gap.detach() - mean).abs() / (spread + 1e-6)
    kept = gap[far <= far.quantile(0.8)]
    own = BETA * (1 + 0.6 * (kept.detach().mean() - mean))
    return -logsigmoid(own.clamp(min=0.001) * kept).mean()


def bco(w: Tensor, l: Tensor, rw: Tensor, rl: Tensor) -> Tensor:  # noqa: E741
    u, v = BETA * (w - rw), BETA * (l - rl)
    shift = torch.cat([u, v]).detach().mean()
    return (-logsigmoid(u - shift) - logsigmoid(shift - v)).mean()


WHOLE_FORMULA: dict[str, Callable[..., Tensor]] = dict(
    zip(WITH_BATCH, (aot, aot_unpaired, dr_dpo, beta_dpo, bco), strict=True)
)


def pairs_of(totals: Tensor) -> tuple[Pair, Pair]:
    """(policy, reference) of (4, pairs)."""
    sides = [SequenceLogps(total, torch.full((totals.shape[1],), 9)) for total in totals]
    return Pair(*sides[:2]), Pair(*sides[2:])


@pytest.mark.parametrize("name", WITH_BATCH)
@pytest.mark.parametrize("parts", [[N], [5, 8], [1] * N, [3, 1, 7, 2]])
def test_value_and_gradient_are_those_of_the_formula_on_the_whole_batch(name, parts, losses_that_ask) -> None:
    loss, drawn = get_loss(name), sums(1)
    leaf = drawn[:2].clone().requires_grad_()
    expected = WHOLE_FORMULA[name](*leaf, *drawn[2:])
    (slope,) = torch.autograd.grad(expected, leaf)
    batch = loss.batch_of(*pairs_of(drawn), loss.settings)
    value, got = 0.0, torch.zeros_like(drawn[:2])
    for place in torch.randperm(N, generator=torch.Generator().manual_seed(2)).split(parts):
        part = drawn[:2, place].clone().requires_grad_()
        policy, reference = pairs_of(torch.cat([part, drawn[2:, place]]))
        own = loss.evaluate(policy, reference, batch=batch._replace(place=place), **loss.settings).loss.sum() / N
        (got[:, place],) = torch.autograd.grad(own, part)
        value += own.item()
    assert value == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(got, slope, rtol=1e-11, atol=1e-15)


def test_the_law_tells_which_gradient_holds_the_batch_fixed(losses_that_ask) -> None:
    from pobench.workflows.check import Subject, _of_the_batch

    verdicts = {name: _of_the_batch(Subject(get_loss(name)))[0] for name in WITH_BATCH}
    assert verdicts == {**dict.fromkeys(WITH_BATCH, "holds"), "t_beta_dpo": "note", "t_bco": "note"}
    assert _of_the_batch(Subject(get_loss("dpo")))[0] == "holds"


@pytest.mark.parametrize(
    "name",
    [
        "t_ld",
        "t_worst",
        "t_aot",
        "t_beta_dpo",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("t_aot_unpaired", "t_dr_dpo", "t_bco")),
    ],
)
def test_a_step_is_the_same_however_the_batch_is_cut(name, tmp_path, losses_that_ask) -> None:
    loss = get_loss(name)
    whole = take_steps(loss, loss.settings, WHOLE, tmp_path)
    assert (whole.gradient.norm(dim=1) > 0).all()
    for split in [s for s in SPLITS if s.micro_batches == 8]:
        assert difference(take_steps(loss, loss.settings, split, tmp_path), whole) <= TOLERANCE, split.name


@pytest.mark.parametrize("name", ["t_beta_dpo", pytest.param("t_bco", marks=pytest.mark.slow)])
def test_what_a_loss_carries_over_steps_is_resumed_bit_for_bit(
    name, fit, pairs, tmp_path, losses_that_ask, monkeypatch
) -> None:
    _, _, undisturbed = fit(pairs, name, folder="a", epochs=2, lr=1e-2)

    class Killed(BaseException):
        pass

    seen: list[dict[str, Any]] = []

    def log(row: dict[str, Any]) -> None:
        seen.append(row)
        if row["step"] == 4 and len(seen) == 4:
            raise Killed

    with pytest.raises(Killed):
        fit(pairs, name, folder="b", epochs=2, lr=1e-2, checkpoint_seconds=0, log=log)
    stored = checkpoint.about(tmp_path / "b" / "checkpoint-3")["objective"]
    assert stored and all(math.isfinite(value) for value in stored.values())
    with monkeypatch.context() as patch:  # a state that is lost is seen
        patch.setattr(
            checkpoint, "load", lambda *a, load=checkpoint.load: {k: v for k, v in load(*a).items() if k != "objective"}
        )
        _, _, forgot = fit(pairs, name, folder="b", epochs=2, lr=1e-2)
    assert [row["loss"] for row in forgot] != [row["loss"] for row in undisturbed[3:]]
    _, _, rows = fit(pairs, name, folder="b", epochs=2, lr=1e-2)
    assert [row["loss"] for row in rows] == [row["loss"] for row in undisturbed[3:]]


@pytest.mark.parametrize(
    ("function", "update", "fault"),
    [
        (lambda policy, *, beta=1.0: 0, lambda batch: {}, "which it does not ask for"),
        (lambda policy, batch: 0, lambda batch, state: {}, "update: takes `batch`"),
        (
            lambda policy, batch, *, beta=1.0: 0,
            lambda batch, *, bta: {},
            "'bta' is no setting of the loss; did you mean 'beta'",
        ),
    ],
)
def test_an_update_that_cannot_be_served_is_refused(function, update, fault, forget) -> None:
    with pytest.raises(PobenchError, match=fault):
        register_loss("bad_update", source="here", update=update)(function)


def test_a_state_that_json_does_not_hold_is_refused(forget) -> None:
    register_loss("tensor_state", source="here", update=lambda batch: {"mean": torch.zeros(1)})(lambda policy, batch: 0)
    with pytest.raises(
        PobenchError, match="loss 'tensor_state': `update` must return numbers, texts and lists of them"
    ):
        get_loss("tensor_state").batch_of(*pairs_of(sums(1)), {})
