"""What must hold between losses and within each: closed-form gradients, identities, reductions, directions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ORACLES, UNRANKED, WORKED, Case, drifted

from pobench.registry import get_loss, list_losses

LOSSES = [name for name in list_losses() if "batch" not in get_loss(name).needs]  # those: test_whole_batches.py
REFERENCED = [name for name in LOSSES if "reference" in get_loss(name).needs]

nats = st.floats(-2000, 0)
tokens = st.integers(1, 2000)
cases = st.builds(
    Case,
    nats,
    nats,
    nats,
    nats,
    tokens,
    tokens,
    st.floats(-50, 50),
    *map(st.just, (WORKED.sw, WORKED.sl, WORKED.value)),
)
laws = settings(max_examples=60, derandomize=True)
# A law of every loss is tried on a dozen pairs at once, which share a kl: an evaluation costs as much as of one.
batches = st.builds(
    lambda kl, pairs: [case._replace(kl=kl) for case in pairs],
    st.floats(-50, 50),
    st.lists(cases, min_size=12, max_size=12),
)
laws_of_batches = settings(max_examples=10, derandomize=True)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def swapped(case: Case) -> Case:
    return Case(case.l, case.w, case.rl, case.rw, case.nl, case.nw, case.kl)


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
    for name in ("cdpo", "robust_dpo", "dpop"):
        assert at(name) == near(math.log(2))
    assert at("rpo", sft_weight=2.0) == near(math.log(2) - 2 * w / nw)
    assert at("rso") == at("apo_zero") == at("apo_down") == 1.0
    assert at("nca_pair") == at("bco_pair") == near(2 * math.log(2))
    assert at("exo_pair", label_smoothing=0.2) == near(-math.log(2) - math.log(0.2 * 0.8) / 2)
    assert at("sppo_hard", beta=0.25) == near(8.0)  # 2² up and 2² down
    assert at("caldpo", beta=0.25, calibration_weight=0.5) == near(math.log(2) + 4.0)
    assert at("discopop") == near((math.log(2) + 1) / 2)  # half logistic, half exponential


def test_rdpo_saturates_as_its_docstring_says(evaluate) -> None:
    # slope = -β σ(-α(|w| - |l|)): σ(-5) = 6.7e-3 at α = 0.05 and 100 tokens, σ(-25) = 1.4e-11 at α = 0.5 and 50
    assert -evaluate("rdpo", Case(-9, -9, -9, -9, 200, 100), beta=1.0, alpha=0.05).by_w.item() == pytest.approx(
        6.7e-3, rel=0.01
    )
    assert -evaluate("rdpo", Case(-9, -9, -9, -9, 100, 50), beta=1.0, alpha=0.5).by_w.item() == pytest.approx(
        1.4e-11, rel=0.01
    )


# ---------------------------------------------------------------- one loss as a special case of another


DECLARED = [(name, other) for name in list_losses() for other in get_loss(name).becomes]


@pytest.mark.parametrize(("name", "other"), DECLARED)
@settings(laws_of_batches, max_examples=3)
@given(batch=batches)
def test_a_loss_becomes_the_other_that_its_registration_names(name, other, batch, evaluate) -> None:
    loss, target, at = get_loss(name), get_loss(other), get_loss(name).becomes[other]
    own = loss.canonical({**loss.settings, **{key: value for key, value in at.items() if "." not in key}})
    shared = {key: value for key, value in own.items() if key in target.settings}
    theirs = {key.partition(".")[2]: value for key, value in at.items() if "." in key}
    first, second = evaluate(name, batch, **own), evaluate(other, batch, **{**shared, **theirs})
    assert first.output.loss.tolist() == near(second.output.loss.tolist())
    assert first.by_w.tolist() == near(second.by_w.tolist())
    assert first.by_l.tolist() == near(second.by_l.tolist())


@laws_of_batches
@given(batch=batches)
def test_reductions(batch, evaluate) -> None:
    def same(one: tuple, other: tuple, **at: float) -> None:
        (a, ka), (b, kb) = one, other
        changed = [case._replace(**at) for case in batch]
        first, second = evaluate(a, changed, **ka), evaluate(b, changed, **kb)
        assert first.output.loss.tolist() == near(second.output.loss.tolist())
        assert first.by_w.tolist() == near(second.by_w.tolist())
        assert first.by_l.tolist() == near(second.by_l.tolist())

    short = {"nw": 1, "nl": 1}
    same(("dpo_ln", {"beta": 0.05}), ("dpo", {"beta": 0.05}), **short)
    same(("simpo", {"beta": 0.05, "gamma": 0.5}), ("simpo_no_ln", {"beta": 0.05, "gamma": 0.5}), **short)
    same(("ipo", {"tau": 0.1, "average": True}), ("ipo", {"tau": 0.1, "average": False}), **short)
    same(("apo_zero", {"beta": 0.05}), ("kto", {"beta": 0.05}), kl=0.0)
    same(("rpo", {"beta": 0.05, "sft_reduction": "sum"}), ("cpo", {"beta": 0.05}), rw=0.0, rl=0.0)
    for name in ("cpo", "simpo_sft", "rrhf", "slic_hf", "rpo"):
        same((name, {"sft_reduction": "mean"}), (name, {"sft_reduction": "sum"}), **short)


@laws
@given(case=cases)
def test_rrhf_ranks_by_the_hinge_of_simpos_margin(case, evaluate) -> None:
    margin = evaluate("simpo", case, beta=1.0).margin.item()
    assert evaluate("rrhf", case, sft_weight=0.0).output.loss.item() == pytest.approx(
        max(0.0, -margin), rel=1e-10, abs=1e-12
    )


@laws
@given(case=cases)
def test_alphapo_becomes_simpo_as_alpha_vanishes(case, evaluate) -> None:
    bent = evaluate("alphapo", case, alpha=1e-9, beta=2.5, gamma=0.3)
    straight = evaluate("simpo", case, beta=2.5, gamma=0.3)
    # the reward is a + α a² / 2 + …: with a of at most 2000 nats a token, and a slope that gains α a
    assert bent.output.loss.item() == pytest.approx(straight.output.loss.item(), rel=1e-5, abs=1e-2)
    assert bent.by_w.item() == pytest.approx(straight.by_w.item(), rel=1e-2)


@laws
@given(case=cases)
def test_repo_is_the_hinge_of_simpos_margin(case, evaluate) -> None:
    margin = evaluate("simpo", case, beta=1.0).margin.item()
    assert evaluate("repo", case, gamma=0.5).output.loss.item() == pytest.approx(
        max(0.0, 0.5 - margin), rel=1e-10, abs=1e-12
    )


@laws
@given(case=cases)
def test_rso_is_slics_hinge_on_log_ratios(case, evaluate) -> None:
    drift = case._replace(w=case.w - case.rw, l=case.l - case.rl)
    hinge = evaluate("slic_hf", drift, delta=20.0, sft_weight=0.0).output.loss.item()
    assert evaluate("rso", case, beta=0.05).output.loss.item() == pytest.approx(0.05 * hinge, rel=1e-9, abs=1e-12)


@laws
@given(case=cases)
def test_sums_of_losses(case, evaluate) -> None:
    def at(name: str, **settings: float) -> float:
        return evaluate(name, case, **settings).output.loss.item()

    calibration = at("sppo_hard", beta=0.01)
    assert at("caldpo", beta=0.01, calibration_weight=0.5) == near(at("dpo", beta=1.0) + 0.5 * calibration)
    # cDPO adds what robust DPO takes away
    both = 0.9 * at("dpo") + 0.1 * evaluate("dpo", swapped(case)).output.loss.item()
    assert at("cdpo", label_smoothing=0.1) == near(both)
    # NCA and BCO share the rejected answer's term, but for a half
    chosen = 0.01 * (case.w - case.rw)
    assert at("nca_pair") == near((at("bco_pair") - math.log(sigma(chosen)) - math.log(sigma(-chosen))) / 2)


@pytest.mark.parametrize(
    ("name", "of_pairs", "weights"),
    [
        ("kto_unpaired", "kto", {"beta": 0.05, "desirable_weight": 0.7, "undesirable_weight": 1.3}),
        ("apo_zero_unpaired", "apo_zero", {"beta": 0.05}),
        ("bco_unpaired", "bco_shift", {"beta": 0.05}),
    ],
)
@settings(laws_of_batches, max_examples=3)
@given(batch=batches)
def test_a_loss_of_single_answers_is_half_of_the_one_of_pairs(name, of_pairs, weights, batch, evaluate) -> None:
    alone, pairs = evaluate(name, batch, **weights), evaluate(of_pairs, batch, **weights)
    assert alone.output.loss.tolist() == near((pairs.output.loss / 2).tolist())
    assert alone.by_w.tolist() == near((pairs.by_w / 2).tolist())
    assert alone.by_l.tolist() == near((pairs.by_l / 2).tolist())
    assert alone.margin.tolist() == pairs.margin.tolist()


@laws
@given(case=cases)
def test_lipo_of_two_answers_is_dpo_times_a_constant_of_their_ratings(case, evaluate) -> None:
    # 2^2 - 2^0.5, and the places' discounts 1 / log 2 and 1 / log 3
    weight = (4 - math.sqrt(2)) * (1 / math.log(2) - 1 / math.log(3))
    assert evaluate("lipo_lambda", case).output.loss.item() == near(weight * evaluate("dpo", case).output.loss.item())


@laws
@given(case=cases)
def test_robust_dpo_is_unbiased(case, evaluate) -> None:
    # a pair as it was, seen right in 80 % of draws and swapped in 20 %: the mean is DPO's loss of the pair as it was
    right = evaluate("robust_dpo", case, label_smoothing=0.2).output.loss.item()
    wrong = evaluate("robust_dpo", swapped(case), label_smoothing=0.2).output.loss.item()
    expected = evaluate("dpo", case).output.loss.item()
    assert 0.8 * right + 0.2 * wrong == pytest.approx(expected, rel=1e-10, abs=1e-12)


@laws
@given(case=cases)
def test_simpo_ranks_as_the_mean_likelihood_does(case, evaluate) -> None:
    # The paper's 2×2 table of reward order against likelihood order: SimPO's off-diagonal is empty
    likelier = case.w / case.nw - case.l / case.nl
    assert evaluate("simpo", case).margin.sign().item() == (likelier > 0) - (likelier < 0)


# ---------------------------------------------------------------- directions


PULLS_BACK = {name: row.pull for name, row in ORACLES.items() if row.pull is not None}


def pulls_back(name: str, case: Case, **given: Any) -> bool:
    settings = {**get_loss(name).settings, **given}
    return name in PULLS_BACK and PULLS_BACK[name].where(*PULLS_BACK[name].of(case), **settings)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_falls_when_chosen_rises_and_when_rejected_falls(name, evaluate) -> None:
    chosen_settings = ORACLES[name].settings[0]
    case = ORACLES[name].unranked or UNRANKED
    assert not pulls_back(name, case, **chosen_settings)
    got = evaluate(name, case, **chosen_settings)
    assert got.by_w.item() < 0 < got.by_l.item()


@laws_of_batches
@given(batch=batches)
def test_no_loss_ever_pulls_the_wrong_way(batch, evaluate) -> None:
    for name in LOSSES:
        got = evaluate(name, batch)
        for case, by_w, by_l in zip(batch, got.by_w.tolist(), got.by_l.tolist(), strict=True):
            assert by_w <= 0 <= by_l or pulls_back(name, case), (name, case)


@pytest.mark.parametrize("name", PULLS_BACK)
def test_what_is_said_to_pull_back_does(name, evaluate) -> None:
    witness = PULLS_BACK[name].witness
    got = evaluate(name, witness)
    assert pulls_back(name, witness)
    assert got.by_w.item() > 0 or got.by_l.item() < 0


@laws
@given(case=cases, tau=st.sampled_from([0.1, 1.0, 5.0]))
def test_the_steps_of_dro_v_are_those_of_the_printed_loss_and_the_policys_is_divided_by_tau(
    case, tau, evaluate
) -> None:
    got = evaluate("dro_v", case, tau=tau)
    w, l = case.w - case.rw, case.l - case.rl  # noqa: E741
    missed = [score - case.value - tau * u for score, u in ((case.sw, w), (case.sl, l))]
    # half the square: -tau * miss by a log-probability, -miss by the value; the mean of the two answers
    assert (got.by_w.item() * tau, got.by_l.item() * tau) == near((-tau * missed[0] / 2, -tau * missed[1] / 2))
    assert got.by_value.item() == near(-(missed[0] + missed[1]) / 2)


def test_apo_down_lowers_both_answers(evaluate) -> None:
    got = evaluate("apo_down", drifted(1.0, -9.0))
    assert got.by_w.item() > 0 and got.by_l.item() > 0


def test_discopops_ridge_lies_where_its_docstring_says(evaluate) -> None:
    def slope(m_over_tau: float) -> float:  # by the margin, at beta = tau = 0.05: a nat of drift is one m / tau
        return evaluate("discopop", drifted(m_over_tau, 0.0)).by_w.item()

    assert slope(-2.4) < 0 < slope(-2.3)
    assert slope(1.4) > 0 > slope(1.5)


@laws_of_batches
@given(batch=batches)
def test_swapping_the_pair_negates_the_margin(batch, evaluate) -> None:
    for name in LOSSES:
        there = evaluate(name, [swapped(case) for case in batch])
        assert there.margin.tolist() == (-evaluate(name, batch).margin).tolist(), name


@laws_of_batches
@given(batch=batches, shift=st.floats(-500, 500))
def test_a_reference_counts_only_as_a_difference(batch, shift, evaluate) -> None:
    moved = [Case(*(sums + shift for sums in case[:4]), *case[4:]) for case in batch]
    for name in REFERENCED:
        here, there = (evaluate(name, cases).margin.tolist() for cases in (batch, moved))
        assert there == pytest.approx(here, rel=1e-9, abs=1e-9), name
