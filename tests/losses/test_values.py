"""Every registered loss against its formula in 350 digits: value and gradient, extremes included."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from mpmath import mp, mpf
from oracles import EXPRESSIONS, ORACLES, ROWS, WORKED, Case, slope, value

from pobench.loss_math import exp_difference
from pobench.registry import get_loss, list_losses, modifiers

LOSSES = [name for name in list_losses() if "batch" not in get_loss(name).needs]  # those: test_whole_batches.py


def ordinary(n: int) -> list[Case]:
    draw = random.Random(20240514)
    cases = []
    for _ in range(n):
        nw, nl = draw.randint(1, 400), draw.randint(1, 400)
        w, l = -nw * draw.uniform(0.01, 3), -nl * draw.uniform(0.01, 3)  # noqa: E741
        ratings = round(draw.uniform(0, 3), 3), round(draw.uniform(0, 3), 3)
        cases.append(
            Case(w, l, w - draw.gauss(0, 9), l - draw.gauss(0, 9), nw, nl, draw.gauss(2, 6), *ratings, nw / 100)
        )
    return cases


EXTREMES = [
    Case(*sums, nw, nl, 3.0) for sums in itertools.product((-1e4, 1e4), repeat=4) for nw, nl in ((1, 1), (7, 900))
]
EDGES = [
    Case(-40.0, -40.0, -42.0, -42.0, 20, 20, 0.0),  # equal responses
    Case(-40.0, -40.0, -40.0, -40.0, 20, 20, -5.0),  # nothing has moved; kl below its clamp
    Case(-0.3, -4.0, -0.5, -3.0, 1, 1, 0.7),  # one token each
    Case(-0.3, -600.0, -0.5, -700.0, 1, 300, 1e4),  # one token against many; kl far out
    Case(-1e-9, -1e-9, -1e-3, -1e-3, 3, 5, 0.0),  # sure answers
    Case(0.0, -50.0, 0.0, -50.0, 10, 10, 0.0),  # probability one
]


def test_every_loss_has_an_oracle() -> None:
    missing = sorted(set(LOSSES) - set(ORACLES))
    assert not missing, f"write a row in tests/losses/oracles.py for: {', '.join(missing)}"
    assert not sorted(set(ORACLES) - set(LOSSES)), "an oracle without a loss"
    around = {part.name for name in EXPRESSIONS for part in get_loss(name).parts}
    assert set(modifiers.names()) <= around, "a modifier without an oracle: write a row of `EXPRESSIONS`"
    assert not set(modifiers.names()) & set(LOSSES)


def test_random_cases_vary() -> None:
    cases = ordinary(50)
    assert all(len({c[i] for c in cases}) > 25 for i in range(10))
    assert {c.nw > c.nl for c in cases} == {c.w > c.l for c in cases} == {c.kl > 0 for c in cases} == {True, False}


@pytest.mark.parametrize("name", ROWS)
def test_the_value_worked_by_hand(name, evaluate) -> None:
    row = ROWS[name]
    assert evaluate(name, WORKED, **row.settings[0]).output.loss.item() == pytest.approx(row.worked, rel=1e-8)
    assert float(value(name, WORKED, row.settings[0])) == pytest.approx(row.worked, rel=1e-8)


def batches(name: str, cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that may be evaluated together: pairs of one call share a kl."""
    if "kl" not in get_loss(name).needs:
        return [list(cases)]
    return [[c for c in cases if c.kl == kl] for kl in dict.fromkeys(c.kl for c in cases)]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("cases", [ordinary(20), EXTREMES, EDGES], ids=["ordinary", "extremes", "edges"])
def test_value_and_gradient_agree_with_the_formula(name, cases, evaluate) -> None:
    for settings in ROWS[name].settings:
        for batch in batches(name, cases):
            got = evaluate(name, batch, **settings)
            losses, by_w, by_l = got.output.loss.tolist(), got.by_w.tolist(), got.by_l.tolist()
            for case, loss, *gradients in zip(batch, losses, by_w, by_l, strict=True):
                here = value(name, case, settings)
                assert loss == pytest.approx(float(here), rel=1e-10, abs=1e-290), case
                beside = 1e-290 + (1e-15 * abs(gradients[1]) if ROWS[name].cancels else 0.0)
                for by, gradient in zip("wl", gradients, strict=True):
                    right = left = slope(name, case, settings, by, here, 1)
                    if (
                        abs(gradient - right) > 1e-10 * abs(right) + beside
                    ):  # at a kink, subgradients lie between the two
                        left = slope(name, case, settings, by, here, -1)
                    low, high = sorted((left, right))
                    slack = 1e-10 * max(abs(low), abs(high)) + beside
                    assert low - slack <= gradient <= high + slack, (case, by, gradient, low, high)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_at_the_extremes(name, dtype, evaluate) -> None:
    for settings in ({}, *ROWS[name].settings):
        for batch in batches(name, EXTREMES + EDGES):
            got = evaluate(name, batch, dtype=dtype, **settings)
            for tensor in (*got.output, got.by_w, got.by_l):
                assert tensor.dtype == dtype
                assert tensor.isfinite().all(), (settings, batch[int(tensor.isfinite().logical_not().nonzero()[0])])


def test_orpo_of_a_sure_answer_is_finite_in_fp32(evaluate) -> None:
    # log(1 - exp(-1e-8)) is -inf in fp32; with a held at -1e-6, log-odds = -1e-6 - log(1e-6) = 13.8155
    got = evaluate("orpo", Case(-1e-8, -2.0, 0.0, 0.0, 1, 1), dtype=torch.float32, odds_weight=1.0)
    assert got.output.chosen_reward.item() == pytest.approx(-math.log(1e-6), rel=1e-5)
    assert got.output.loss.isfinite().all() and got.by_w.isfinite().all() and got.by_l.isfinite().all()


def test_a_difference_of_exponentials_keeps_its_digits_near_a_tie_and_far_from_one() -> None:
    for gap in (0.0, 1e-12, -1e-12, 0.69, -0.69, 0.7, -0.7, 40.0, -40.0):
        a = torch.tensor([-0.5 + gap], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([-0.5], dtype=torch.float64, requires_grad=True)
        got = exp_difference(a, b)
        by_a, by_b = torch.autograd.grad(got.sum(), (a, b))
        assert got.item() == pytest.approx(float(mp.exp(mpf(a.item())) - mp.exp(mpf(b.item()))), rel=1e-14, abs=0)
        assert (by_a.item(), -by_b.item()) == pytest.approx((math.exp(a.item()), math.exp(b.item())), rel=1e-14, abs=0)


@pytest.mark.parametrize("name", ROWS)
def test_each_pair_stands_for_itself(name, evaluate) -> None:
    cases = [c._replace(kl=2.0) for c in ordinary(8)]
    together = evaluate(name, cases)
    close = {"rtol": 1e-12 if "tokens" in get_loss(name).needs else 1e-14, "atol": 0}  # tokens are padded together
    alone = [evaluate(name, c) for c in cases]
    for field in ("loss", "chosen_reward", "rejected_reward"):
        each = torch.cat([getattr(a.output, field) for a in alone])
        assert getattr(together.output, field).shape == (8,)
        torch.testing.assert_close(getattr(together.output, field), each, **close)
    torch.testing.assert_close(together.by_w, torch.cat([a.by_w for a in alone]), **close)


@pytest.mark.parametrize("name", ROWS)
def test_rewards_carry_no_gradient(name, evaluate) -> None:
    output = evaluate(name, WORKED).output
    assert output.loss.requires_grad
    assert not output.chosen_reward.requires_grad and not output.rejected_reward.requires_grad


@pytest.mark.parametrize("name", ROWS)
def test_the_reward_has_its_documented_unit(name, evaluate) -> None:
    row = ROWS[name]
    assert evaluate(name, WORKED, **row.settings[0]).output.chosen_reward.item() == pytest.approx(row.reward, rel=1e-12)
    assert "\nReward: " in get_loss(name).doc
