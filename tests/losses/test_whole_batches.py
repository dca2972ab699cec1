"""Losses of a whole optimiser batch against their formulas in 350 digits: value and gradient, extremes included."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from mpmath import mpf
from oracles import BATCHES, TWO, WORKED, Case, exact

from pobench.registry import get_loss, list_losses
from pobench.types import Pair, SequenceLogps

LOSSES = [name for name in list_losses() if "batch" in get_loss(name).needs]


def ordinary(n: int, seed: int) -> list[Case]:
    draw = random.Random(seed)
    cases = []
    for _ in range(n):
        nw, nl = draw.randint(1, 40), draw.randint(1, 40)
        w, l = -nw * draw.uniform(0.01, 3), -nl * draw.uniform(0.01, 3)  # noqa: E741
        cases.append(Case(w, l, w - draw.gauss(0, 5), l - draw.gauss(0, 5), nw, nl))
    return cases


def sizes(name: str) -> tuple[int, ...]:
    return (2,) if name == "beta_dpo" else (1, 2, 7)  # of a larger batch it leaves some out, by a draw


def formula(name: str, cases: Sequence[Case], before: Sequence[Case], settings: dict[str, Any]) -> Any:
    exactly = [[Case(*map(mpf, case)) for case in batch] for batch in (cases, before)]
    return BATCHES[name].formula(*exactly, **{key: exact(value) for key, value in settings.items()})


def test_every_loss_of_a_batch_has_an_oracle() -> None:
    assert sorted(BATCHES) == LOSSES, "write a row of `BATCHES` in tests/losses/oracles.py"


@pytest.mark.parametrize("name", LOSSES)
def test_the_value_worked_by_hand(name, evaluate) -> None:
    row = BATCHES[name]
    assert float(formula(name, TWO, TWO, row.settings[0])) == pytest.approx(row.worked, rel=1e-9)
    assert evaluate(name, TWO, **row.settings[0]).output.loss.mean().item() == pytest.approx(row.worked, rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_agree_with_the_formula(name, evaluate) -> None:
    for settings, n in itertools.product(BATCHES[name].settings, sizes(name)):
        cases, h = ordinary(n, seed=n), mpf(10) ** -30
        got, here = evaluate(name, cases, **settings), formula(name, cases, cases, settings)
        assert got.output.loss.mean().item() == pytest.approx(float(here), rel=1e-10)
        for i, case in enumerate(cases):
            for by, slope in (("w", got.by_w[i]), ("l", got.by_l[i])):
                moved = [*cases[:i], case._replace(**{by: mpf(getattr(case, by)) + h}), *cases[i + 1 :]]
                expected = float((formula(name, moved, cases, settings) - here) / h * n)
                assert slope.item() == pytest.approx(expected, rel=1e-9, abs=1e-200), (settings, n, i, by)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_finite_at_the_extremes(name, dtype, evaluate) -> None:
    sums = itertools.product((-1e4, 1e4), repeat=4)
    far = [Case(*four, *lengths) for four, lengths in zip(sums, itertools.cycle([(1, 1), (7, 900)]), strict=False)]
    equal = [Case(-40.0, -40.0, -40.0, -40.0, 20, 20)] * 3
    for cases in (far, equal, far[:1], far[5:6], equal[:1]):
        for settings in ({}, *BATCHES[name].settings):
            got = evaluate(name, cases, dtype=dtype, **settings)
            for tensor in (*got.output, got.by_w, got.by_l):
                assert tensor.dtype == dtype and tensor.isfinite().all(), (settings, cases[0])


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_batch_does_not_matter(name, evaluate) -> None:
    if name == "beta_dpo":
        pytest.skip("it draws which pairs it keeps by their places")
    cases = ordinary(9, seed=4)
    got, turned = evaluate(name, cases), evaluate(name, cases[::-1])
    torch.testing.assert_close(got.by_w, turned.by_w.flip(0), rtol=1e-10, atol=1e-14)
    assert got.output.loss.mean().item() == pytest.approx(turned.output.loss.mean().item(), rel=1e-12)


def test_what_is_another_loss_with_a_setting_changed(evaluate) -> None:
    for name in ("aot", "aot_unpaired", "dr_dpo"):  # of one pair
        assert evaluate(name, WORKED, beta=0.1).output.loss.item() == pytest.approx(0.437487950393)
    cases = ordinary(6, seed=1)
    nearly = evaluate("dr_dpo", cases, beta=0.1, robustness=1e6)
    torch.testing.assert_close(nearly.by_w, evaluate("dpo", cases, beta=0.1).by_w, rtol=1e-5, atol=1e-9)
    simpo = evaluate("simpo", cases, beta=2.5, gamma_beta_ratio=0.3)
    torch.testing.assert_close(evaluate("alpha_dpo", cases, alpha=0.0).output.loss, simpo.output.loss)
    for name, target, at in (
        ("gamma_po", "simpo", {"beta": 2.5, "gamma_beta_ratio": 0.3}),
        ("gamma_po_dpo", "dpo", {"beta": 0.1}),
    ):
        stiff, plain = evaluate(name, cases, tau=1e6, **at), evaluate(target, cases, **at)
        torch.testing.assert_close(stiff.output.loss, plain.output.loss, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(stiff.by_w, plain.by_w, rtol=1e-5, atol=1e-9)
    level = [WORKED, WORKED._replace(rw=WORKED.w - -4.0, rl=WORKED.l - 2.0)]  # log-ratios 4, -2 and -4, 2: mean 0
    shifted, plain = (evaluate(name, level, beta=0.1).output.loss for name in ("bco_shift", "bco_pair"))
    torch.testing.assert_close(shifted, plain)


def pairs_of(cases: Sequence[Case]) -> tuple[Pair, Pair]:
    """(policy, reference), in fp64."""
    totals = [torch.tensor([case[i] for case in cases], dtype=torch.float64) for i in range(4)]
    lengths = [torch.tensor([case[i] for case in cases]) for i in (4, 5, 4, 5)]
    sides = [SequenceLogps(total, length) for total, length in zip(totals, lengths, strict=True)]
    return Pair(*sides[:2]), Pair(*sides[2:])


@pytest.mark.parametrize("name", ["gamma_po", "gamma_po_dpo"])
def test_gamma_po_shares_its_margins_with_the_latest_pairs_of_the_steps_before(name, evaluate) -> None:
    cases, loss = ordinary(7, seed=6), get_loss(name)
    settings = {**loss.settings, "tau": 1.0}
    first = loss.batch_of(*pairs_of(cases[:4]), settings)
    second = loss.batch_of(*pairs_of(cases[4:]), settings, first.state)
    got = loss.evaluate(*pairs_of(cases[4:]), batch=second, **settings).loss
    together = evaluate(name, cases, **settings).output.loss  # all seven as one batch
    torch.testing.assert_close(got, together[4:], rtol=1e-12, atol=0)
    alone = evaluate(name, cases[4:], **settings).output.loss
    assert not torch.allclose(got, alone, rtol=1e-6)
    many = loss.batch_of(*pairs_of(ordinary(300, seed=7)), settings)
    later = loss.batch_of(*pairs_of(cases), settings, many.state).state["gaps"]
    assert len(many.state["gaps"]) == 300 and len(later) == 256 and later[-7:] == second.state["gaps"]


def test_the_shift_of_bco_is_the_mean_of_all_answers_so_far_whatever_their_label() -> None:
    loss = get_loss("bco_unpaired")

    def answers(*moved: float) -> tuple[SequenceLogps, SequenceLogps]:
        totals, length = torch.tensor(moved, dtype=torch.float64), torch.full((len(moved),), 9)
        return SequenceLogps(totals - 40, length), SequenceLogps(torch.full_like(totals, -40), length)

    settings = {"beta": 0.1}
    first = loss.batch_of(*answers(4.0, -2.0, -8.0), settings, label=torch.tensor([True, True, False]))
    policy, reference = answers(6.0)
    second = loss.batch_of(policy, reference, settings, first.state, label=torch.tensor([False]))
    output = loss(policy, torch.tensor([False]), reference, second, **settings)
    # the mean of 4, -2, -8 and 6 is 0: log(1 + e^0.6)
    assert second.state == {"rewards": 0.0, "answers": 4}
    assert output.loss.tolist() == pytest.approx([1.037487950393]) and output.reward.tolist() == pytest.approx([0.6])
    # of the first batch alone it is -2, and the shift -0.2: log(1 + e^-0.6), log(1 + e^0), log(1 + e^-0.6)
    policy, reference = answers(4.0, -2.0, -8.0)
    output = loss(policy, torch.tensor([True, True, False]), reference, first, **settings)
    assert output.loss.tolist() == pytest.approx([0.437487950393, 0.693147180560, 0.437487950393])


def test_udm_weighs_undesirable_answers_by_their_clipped_ratios_and_desirable_ones_by_1() -> None:
    loss, label = get_loss("bco_udm"), torch.tensor([True, False, False, False])
    length, reference = torch.full((4,), 9), torch.full((4,), -40.0, dtype=torch.float64)
    policy = (torch.tensor([4.0, -2.0, -8.0, 6.0], dtype=torch.float64) - 40).requires_grad_()
    sums, known = SequenceLogps(policy, length), SequenceLogps(reference, length)
    settings = {"beta": 0.1, "min_ratio": 0.5, "max_ratio": 10.0}
    batch = loss.batch_of(sums, known, settings, label=label)
    ratios = torch.tensor([3.0, 0.2, 1.5, 70.0], dtype=torch.float64, requires_grad=True)
    output = loss(sums, label, known, batch, ratios, **settings)
    # the mean log-ratio is 0: log(1 + e^-0.4), half of log(1 + e^-0.2), 1.5 times log(1 + e^-0.8), ten times log(1 + e^0.6)
    expected = [0.513015252, 0.5 * 0.598138869, 1.5 * 0.371100666, 10 * 1.037487950]
    assert output.loss.tolist() == pytest.approx(expected, rel=1e-8)
    output.loss.sum().backward()
    assert ratios.grad is None and bool((policy.grad != 0).all())
    plain = get_loss("bco_unpaired")(sums, label, known, batch, beta=0.1).loss
    torch.testing.assert_close(loss(sums, label, known, batch, torch.ones(4), **settings).loss, plain)


def test_beta_dpo_leaves_out_the_oddest_pairs_and_the_same_ones_each_time(evaluate) -> None:
    cases = [*ordinary(9, seed=2), Case(-10.0, -4000.0, -2000.0, -10.0, 5, 5)]
    got, again = evaluate("beta_dpo", cases), evaluate("beta_dpo", cases)
    assert int((got.by_w == 0).sum()) == 2 and got.by_w[-1] == 0  # eight of ten are kept
    torch.testing.assert_close(got.by_w, again.by_w, rtol=0, atol=0)


def test_rounding_does_not_choose_the_pairs_that_beta_dpo_keeps_before_the_first_step(evaluate) -> None:
    drawn = random.Random(7)
    still = [case._replace(rw=case.w, rl=case.l) for case in ordinary(20, seed=5)]  # the policy is the reference
    noisy = [case._replace(w=case.w + drawn.gauss(0, 1e-5), l=case.l + drawn.gauss(0, 1e-5)) for case in still]
    kept, kept_too = ((evaluate("beta_dpo", cases).by_w != 0).tolist() for cases in (still, noisy))
    assert kept == kept_too and sum(kept) == 16
