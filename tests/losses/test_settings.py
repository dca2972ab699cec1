"""What each loss declares about its settings, and what it refuses."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import get_type_hints

import pytest
from oracles import ORACLES, WORKED

from pobench.errors import PobenchError
from pobench.loss_math import absolute_gamma
from pobench.registry import get_loss, list_losses
from pobench.settings.faults import check_loss_settings
from pobench.types import Finite

LOSSES = list_losses()
WITH_GAMMA = [
    n for n in LOSSES if {"gamma", "gamma_beta_ratio"} <= set(get_loss(n).settings)
]  # RePO and α-DPO have one
WITH_SFT = [n for n in LOSSES if "sft_reduction" in get_loss(n).settings]


def test_the_families_are_not_empty() -> None:
    assert {"alphapo", "dpo_gamma", "simpo", "simpo_no_ln", "simpo_sft"} <= set(WITH_GAMMA)
    assert {"cpo", "rpo", "rrhf", "simpo_sft", "slic_hf"} <= set(WITH_SFT)


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_and_published_ranges_are_allowed(name) -> None:
    loss = get_loss(name)
    assert check_loss_settings(loss, dict(loss.settings)) == []
    for setting, values in loss.ranges.items():
        for value in values:
            assert check_loss_settings(loss, {setting: value}) == []


@pytest.mark.parametrize("name", LOSSES)
def test_numbers_out_of_range_are_refused_by_name(name) -> None:
    loss = get_loss(name)
    numbers = [s for s, default in loss.settings.items() if default is None or type(default) is float]
    assert numbers or not loss.settings
    signed = {s for s, kind in get_type_hints(loss.function, include_extras=True).items() if kind == Finite}
    for setting in numbers:
        for bad in (-1.0, math.nan, math.inf, "much"):
            if bad == -1.0 and setting in signed:
                assert check_loss_settings(loss, {setting: bad}) == []
                continue
            faults = check_loss_settings(loss, {setting: bad})
            assert len(faults) == 1 and faults[0].startswith(f"{name}.{setting}: got {bad!r}"), faults
    for setting in {"beta", "tau"} & set(numbers):
        assert check_loss_settings(loss, {setting: 0.0})


@pytest.mark.parametrize("name", [n for n in LOSSES if "label_smoothing" in get_loss(n).settings])
def test_a_flip_rate_stays_below_a_half(name) -> None:
    assert check_loss_settings(get_loss(name), {"label_smoothing": 0.49}) == []
    (fault,) = check_loss_settings(get_loss(name), {"label_smoothing": 0.5})
    assert fault.startswith(f"{name}.label_smoothing: got 0.5; input should be less than 0.5")
    assert bool(check_loss_settings(get_loss(name), {"label_smoothing": 0.0})) == (name == "exo_pair")  # log of it


def test_discopops_blend_is_no_softer_than_its_exponential_is_steep() -> None:
    assert check_loss_settings(get_loss("discopop"), {"tau": 1.0}) == []
    assert check_loss_settings(get_loss("discopop"), {"tau": 1.01})


WRONG = WORKED._replace(w=WORKED.l, l=WORKED.w)  # a hinge is flat on a pair that is right


@pytest.mark.parametrize("name", WITH_GAMMA)
def test_gamma_and_its_ratio_are_one_setting(name, evaluate) -> None:
    absolute = evaluate(name, WRONG, beta=2.5, gamma=1.25).output.loss
    assert evaluate(name, WRONG, beta=2.5, gamma_beta_ratio=0.5).output.loss == absolute  # 0.5 · 2.5
    assert evaluate(name, WRONG, beta=2.5, gamma=1.26).output.loss != absolute
    with pytest.raises(PobenchError, match=r"gamma: 1\.0 and gamma_beta_ratio: 0\.5 .* one margin; .* gamma 1\.25"):
        evaluate(name, WRONG, beta=2.5, gamma=1.0, gamma_beta_ratio=0.5)


@pytest.mark.parametrize("name", WITH_GAMMA)
def test_a_margin_of_zero_is_a_margin(name, evaluate) -> None:
    default = evaluate(name, WRONG).output.loss
    assert evaluate(name, WRONG, gamma=0.0).output.loss < default
    assert evaluate(name, WRONG, gamma_beta_ratio=0.0).output.loss == evaluate(name, WRONG, gamma=0.0).output.loss


def test_gamma_left_alone_follows_beta() -> None:
    assert absolute_gamma(2.0, None, None, default_ratio=0.5) == 1.0
    assert absolute_gamma(10.0, None, None, default_ratio=0.5) == 5.0
    assert absolute_gamma(10.0, 3.0, None, default_ratio=0.5) == 3.0


@pytest.mark.parametrize("name", WITH_SFT)
def test_the_likelihood_term_is_a_sum_as_printed_or_each_responses_mean(name, evaluate) -> None:
    def term(**settings: object) -> float:
        with_term = evaluate(name, WORKED, sft_weight=1.0, **settings).output.loss
        return (with_term - evaluate(name, WORKED, sft_weight=0.0).output.loss).item()

    as_printed = ORACLES[name].settings[0]["sft_reduction"]
    assert get_loss(name).settings["sft_reduction"] == as_printed
    assert term() == term(sft_reduction=as_printed)
    assert term(sft_reduction="sum") == pytest.approx(8.0)
    assert term(sft_reduction="mean") == pytest.approx(1.0)  # 8 nats over 8 tokens
    with pytest.raises(PobenchError, match="sft_reduction: got 'batch'; allowed: 'sum', 'mean'"):
        term(sft_reduction="batch")
    assert check_loss_settings(get_loss(name), {"sft_reduction": "batch"})


def test_no_default_is_shared_between_losses_of_different_scale() -> None:
    units = defaultdict(set)
    for name in LOSSES:
        loss = get_loss(name)
        for setting, default in loss.settings.items():
            if type(default) is float:
                units[setting, default].add(loss.units[setting])
    assert {shared for shared, found in units.items() if len(found) > 1} == set()
    assert len({get_loss(n).settings["beta"] for n in ("simpo", "dpo", "dpo_ln")}) == 3


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_says_what_it_is(name) -> None:
    loss = get_loss(name)
    assert loss.source.startswith("arXiv ") and loss.source.split()[1].rstrip(",") in loss.doc
    assert loss.formula.startswith("loss = ")
    assert loss.doc.splitlines()[1] == "", "its first line is what lists print"
    assert loss.title != name
    assert get_loss(loss.title) is loss  # the printed title finds it
