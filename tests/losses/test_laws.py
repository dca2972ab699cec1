"""What must hold between losses and within each: closed-form gradients, identities, reductions, directions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ORACLES, Case

from pobench.registry import list_losses

LOSSES = list_losses()
REFERENCED = ["dpo", "ipo", "kto", "rdpo", "dpo_ln", "dpo_gamma"]

nats = st.floats(-2000, 0)
tokens = st.integers(1, 2000)
cases = st.builds(Case, nats, nats, nats, nats, tokens, tokens, st.floats(-50, 50))
laws = settings(max_examples=60, deadline=None, derandomize=True)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def near(expected: object) -> object:
    return pytest.approx(expected, rel=1e-10, abs=1e-280)


# ---------------------------------------------------------------- closed-form gradients


@laws
@given(case=cases)
def test_simpo_gradient_is_beta_s_over_length(case, evaluate) -> None:
    s = sigma(2.0 * case.l / case.nl - 2.0 * case.w / case.nw + 1.6)
    got = evaluate("simpo", case, beta=2.0, gamma=1.6)
    assert got.by_w.item() == near(-2.0 * s / case.nw)
    assert got.by_l.item() == near(2.0 * s / case.nl)


@laws
@given(case=cases)
def test_dpo_gradient_is_beta_d(case, evaluate) -> None:
    d = sigma(-0.1 * ((case.w - case.rw) - (case.l - case.rl)))
    got = evaluate("dpo", case, beta=0.1)
    assert got.by_w.item() == near(-0.1 * d)
    assert got.by_l.item() == near(0.1 * d)


@laws
@given(case=cases)
def test_kto_lowers_the_rejected_answer(case, evaluate) -> None:
    # λ_l (1 - σ(z - r)) has the slope +λ_l β σ(z - r) σ(r - z) by l; SimPO's table prints the negative
    z, r = max(0.0, 0.05 * case.kl), 0.05 * (case.l - case.rl)
    slope = 3.0 * 0.05 * sigma(z - r) * sigma(r - z)
    assert evaluate("kto", case, beta=0.05, undesirable_weight=3.0).by_l.item() == near(slope)


# ---------------------------------------------------------------- before the first step: policy == reference


@laws
@given(w=nats, l=nats, nw=tokens, nl=tokens)
def test_the_loss_before_the_first_step(w, l, nw, nl, evaluate) -> None:  # noqa: E741
    case = Case(w, l, w, l, nw, nl, 0.0)

    def at(name: str, **settings: float) -> float:
        return evaluate(name, case, **settings).output.loss.item()

    assert at("dpo") == near(math.log(2))
    assert at("dpo_ln") == near(math.log(2))
    assert at("ipo", tau=0.25) == near(4.0)  # (1 / (2 · 0.25))²
    assert at("kto") == near(1.0)  # 0.5 a side
    assert at("dpo_gamma", gamma=1.5) == near(math.log1p(math.exp(1.5)))
    gap = 0.01 * (nw - nl)
    assert at("rdpo", alpha=0.01) == near(math.log1p(math.exp(-abs(gap))) + max(0.0, -gap))


def test_rdpo_saturates_as_its_docstring_says(evaluate) -> None:
    # slope = -β σ(-α(|w| - |l|)): σ(-5) = 6.7e-3 at α = 0.05 and 100 tokens, σ(-25) = 1.4e-11 at α = 0.5 and 50
    assert -evaluate("rdpo", Case(-9, -9, -9, -9, 200, 100), beta=1.0, alpha=0.05).by_w.item() == pytest.approx(
        6.7e-3, rel=0.01
    )
    assert -evaluate("rdpo", Case(-9, -9, -9, -9, 100, 50), beta=1.0, alpha=0.5).by_w.item() == pytest.approx(
        1.4e-11, rel=0.01
    )


# ---------------------------------------------------------------- one loss as a special case of another


@laws
@given(case=cases)
def test_reductions(case, evaluate) -> None:
    def same(one: tuple, other: tuple, at: Case = case) -> None:
        (a, ka), (b, kb) = one, other
        first, second = evaluate(a, at, **ka), evaluate(b, at, **kb)
        assert first.output.loss.item() == near(second.output.loss.item())
        assert first.by_w.item() == near(second.by_w.item())
        assert first.by_l.item() == near(second.by_l.item())

    same(("simpo_sft", {"sft_weight": 0.0, "beta": 2.5, "gamma": 0.3}), ("simpo", {"beta": 2.5, "gamma": 0.3}))
    same(("rdpo", {"alpha": 0.0, "beta": 0.05}), ("dpo", {"beta": 0.05}))
    same(("dpo_gamma", {"gamma": 0.0, "beta": 0.05}), ("dpo", {"beta": 0.05}))
    same(("simpo_no_ln", {"gamma": 0.0, "beta": 0.05}), ("cpo", {"beta": 0.05, "sft_weight": 0.0}))
    short = case._replace(nw=1, nl=1)
    same(("dpo_ln", {"beta": 0.05}), ("dpo", {"beta": 0.05}), short)
    same(("simpo", {"beta": 0.05, "gamma": 0.5}), ("simpo_no_ln", {"beta": 0.05, "gamma": 0.5}), short)
    same(("ipo", {"tau": 0.1, "average": True}), ("ipo", {"tau": 0.1, "average": False}), short)
    for name in ("cpo", "simpo_sft", "rrhf", "slic_hf"):
        same((name, {"sft_reduction": "mean"}), (name, {"sft_reduction": "sum"}), short)


@laws
@given(case=cases)
def test_rrhf_ranks_by_the_hinge_of_simpos_margin(case, evaluate) -> None:
    margin = evaluate("simpo", case, beta=1.0).margin.item()
    assert evaluate("rrhf", case, sft_weight=0.0).output.loss.item() == pytest.approx(
        max(0.0, -margin), rel=1e-10, abs=1e-12
    )


@laws
@given(case=cases)
def test_simpo_ranks_as_the_mean_likelihood_does(case, evaluate) -> None:
    # The paper's 2×2 table of reward order against likelihood order: SimPO's off-diagonal is empty
    likelier = case.w / case.nw - case.l / case.nl
    assert evaluate("simpo", case).margin.sign().item() == (likelier > 0) - (likelier < 0)


# ---------------------------------------------------------------- directions


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_falls_when_chosen_rises_and_when_rejected_falls(name, evaluate) -> None:
    # An unranked pair inside every hinge, short of IPO's target of 5 nats
    got = evaluate(name, Case(-60.0, -58.0, -60.5, -59.0, 20, 22, 0.0), **ORACLES[name].settings[0])
    assert got.by_w.item() < 0 < got.by_l.item()


@laws
@given(case=cases)
def test_no_loss_ever_pulls_the_wrong_way(case, evaluate) -> None:
    for name in LOSSES:
        if name == "ipo" and (case.w - case.rw) - (case.l - case.rl) > 5:
            continue  # past its target it pulls back, by design
        got = evaluate(name, case)
        assert got.by_w.item() <= 0 <= got.by_l.item(), name


def test_ipo_pulls_back_past_its_target(evaluate) -> None:
    assert evaluate("ipo", Case(-1.0, -20.0, -10.0, -10.0, 5, 5), tau=0.1).by_w.item() > 0


@laws
@given(case=cases)
def test_swapping_the_pair_negates_the_margin(case, evaluate) -> None:
    swapped = Case(case.l, case.w, case.rl, case.rw, case.nl, case.nw, case.kl)
    for name in LOSSES:
        assert evaluate(name, swapped).margin.item() == -evaluate(name, case).margin.item(), name


@laws
@given(case=cases, shift=st.floats(-500, 500))
def test_a_reference_counts_only_as_a_difference(case, shift, evaluate) -> None:
    moved = Case(case.w + shift, case.l + shift, case.rw + shift, case.rl + shift, case.nw, case.nl, case.kl)
    for name in REFERENCED:
        assert evaluate(name, moved).margin.item() == pytest.approx(
            evaluate(name, case).margin.item(), rel=1e-9, abs=1e-9
        )
