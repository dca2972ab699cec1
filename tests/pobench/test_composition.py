"""Expressions of losses: what is read, what is refused, what they are called, and whose values they take."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import pobench.registry as registry
from pobench.composition import folder_name, parse, split
from pobench.errors import PobenchError, UnknownNameError
from pobench.registry import Registry, get_loss, losses, register_modifier
from pobench.runs.content import _source
from pobench.runs.opponents import with_opponents
from pobench.settings.faults import check_loss_settings
from pobench.settings.job import Job
from pobench.settings.resolve import resolve
from pobench.types import Pair, SequenceLogps, TokenLogps
from pobench.workflows.grid import Grid, search_space


def pair(chosen: float, rejected: float) -> Pair:
    totals = (torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected))
    return Pair(*(SequenceLogps(total, torch.tensor([8])) for total in totals))


POLICY, REFERENCE = pair(-8.0, -24.0), pair(-12.0, -22.0)


def value(name: str, **settings: object) -> float:
    loss = get_loss(name)
    return loss.evaluate(POLICY, REFERENCE, torch.tensor(0.0), **{**loss.settings, **settings}).loss.item()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("label_smoothing( DPO )", "label_smoothing(dpo)"),
        ("dpo+0.80*BCO+SFT", "dpo + 0.8*bco_pair + sft"),
        ("1*dpo + 1e-2*SimPO w/o LN", "dpo + 0.01*simpo_no_ln"),
        (".5 * label-smoothing(f-DPO(r-dpo)) + sft", "0.5*label_smoothing(f_divergence(rdpo)) + sft"),
    ],
)
def test_an_expression_has_one_spelling(text, name) -> None:
    assert get_loss(text).name == losses.canonical(text) == name
    assert get_loss(name).name == name


def test_commas_inside_brackets_do_not_separate() -> None:
    assert split("ld(dpo), dpo + 0.8*x(a, b) ,, simpo") == ["ld(dpo)", "dpo + 0.8*x(a, b)", "simpo"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("dpo +", "behind 'dpo+' it ends; expected the name of a loss"),
        ("f_divergence(dpo", "expected ')'"),
        ("f_divergence(dpo))", "expected '+' or the end"),
        ("dpo*2", "got '*'"),
        ("0*dpo", "the weight of dpo is 0"),
        ("1e999*dpo", "the weight of dpo is inf"),
        ("dpo + 2*DPO", "dpo stands in it more than once"),
        ("label_smoothing(label_smoothing(dpo))", "label_smoothing is around dpo more than once"),
        ("2*sft", "sft is a term of a sum"),
        ("label_smoothing(aot)", "label_smoothing changes a pair's sums, and aot reads batch"),
        ("label_smoothing(sft) + dpo", "modifies a loss over pairs; sft is none"),
        ("f_divergance(dpo)", "unknown modifier 'f_divergance'; did you mean 'f_divergence'?"),
        ("dpo + simpo2 + ipo3", "unknown loss 'simpo2'"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_place(text, fault) -> None:
    with pytest.raises(PobenchError) as refused:
        get_loss(text)
    assert fault in str(refused.value)
    assert losses.canonical(text) == text


def test_all_unknown_names_of_an_expression_are_listed_at_once() -> None:
    with pytest.raises(PobenchError) as refused:
        resolve("tiny", "dpo + simpo2 + wrap(ipo3)")
    assert all(f"'{name}'" in str(refused.value) for name in ("simpo2", "wrap", "ipo3"))


def test_an_expression_may_have_opponents() -> None:
    assert with_opponents("dpo + 0.2*sft, simpo", "DPO+0.2*sft") == (
        ["dpo + 0.2*sft", "simpo", "dpo + 0.2*sft"],
        "dpo + 0.2*sft",
    )


def test_a_word_that_is_no_expression_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        get_loss("sft")


def test_a_sum_is_the_weighted_sum_of_its_terms() -> None:
    assert value("dpo + 0.5*ipo") == pytest.approx(value("dpo") + 0.5 * value("ipo"), rel=1e-14)
    assert value("0.25*simpo + sft") == pytest.approx(0.25 * value("simpo") + 1.0, rel=1e-14)  # the chosen's mean is -1


def test_each_term_of_a_sum_has_a_state_of_its_own() -> None:
    mixed, shifted = get_loss("dpo + 0.5*bco_shift + 2*alpha_dpo"), get_loss("bco_shift")
    batch = mixed.batch_of(POLICY, REFERENCE, mixed.settings)
    batch = mixed.batch_of(POLICY, REFERENCE, mixed.settings, batch.state)  # a second step
    alone = shifted.batch_of(POLICY, REFERENCE, shifted.settings, {"rewards": 0.02, "answers": 2})  # 0.01 (4 - 2)
    assert batch.state["bco_shift"] == alone.state and set(batch.state) == {"bco_shift", "alpha_dpo"}
    got = mixed.evaluate(POLICY, REFERENCE, batch=batch, **mixed.settings).loss.item()
    of_shift = shifted.evaluate(POLICY, REFERENCE, batch=alone, **shifted.settings).loss.item()
    alpha = get_loss("alpha_dpo")
    own = alpha.evaluate(POLICY, REFERENCE, batch=batch._replace(state=batch.state["alpha_dpo"]), **alpha.settings)
    assert got == pytest.approx(value("dpo") + 0.5 * of_shift + 2 * own.loss.item(), rel=1e-12)


def test_what_is_an_expression_with_a_setting_changed() -> None:
    smoothed = value("label_smoothing(dpo)", **{"label_smoothing.rate": 0.2})
    assert smoothed == pytest.approx(value("cdpo", label_smoothing=0.2), rel=1e-14)
    assert value("label_smoothing(ipo)", **{"label_smoothing.rate": 0.0}) == pytest.approx(value("ipo"), rel=1e-14)
    assert value("f_divergence(ipo)", **{"f_divergence.divergence": "reverse_kl"}) == pytest.approx(value("ipo"))
    assert value("dpo + 0.5*sft") == pytest.approx(value("rpo", sft_weight=0.5, sft_reduction="mean"), rel=1e-14)
    near_zero = value("f_divergence(dpo)", **{"f_divergence.alpha": 1e-9})
    assert near_zero == pytest.approx(value("dpo"), rel=1e-6)


def test_tokens_beyond_the_shorter_response_count_less() -> None:
    # sums of chosen and rejected are -4 and -4, their common tokens -2 and -4; of a reference at b a token 4b and 2b, 2b and 2b
    mask = torch.tensor([[[True] * 4, [True, True, False, False]]])
    logps = torch.tensor([[[-1.0] * 4, [-2.0, -2.0, 0.0, 0.0]]], dtype=torch.float64)
    policy = Pair(*(SequenceLogps(logps[:, i].sum(-1), mask[:, i].sum(-1)) for i in (0, 1)))
    for base, alpha, gap in ((-1.0, 0.3, 2.0), (-3.0, 0.25, 3.0), (-3.0, 0.0, 2.0), (-3.0, 1.0, 6.0)):
        known = torch.where(mask, torch.tensor(base, dtype=torch.float64), 0.0)
        reference = Pair(*(side._replace(total=known[:, i].sum(-1)) for i, side in enumerate(policy)))
        tokens = TokenLogps(logps, known, mask)
        got = get_loss("ld(dpo)").evaluate(policy, reference, tokens=tokens, **{"ld.alpha": alpha, "dpo.beta": 1.0})
        assert (got.chosen_reward - got.rejected_reward).item() == pytest.approx(gap), (base, alpha)
    settings = {"ld.alpha": 0.5, "simpo.beta": 1.0}
    means = get_loss("ld(simpo)").evaluate(policy, tokens=TokenLogps(logps, None, mask), **settings)
    assert means.chosen_reward.item() == pytest.approx(-3.0 / 4)  # of the whole length


def test_modifiers_apply_from_the_inside() -> None:
    rate = {"label_smoothing.rate": 0.2}
    inner, outer = "f_divergence(label_smoothing(dpo))", "label_smoothing(f_divergence(dpo))"
    assert value(inner, **rate) == pytest.approx(value(outer, **rate))  # these two commute
    assert value(outer, **rate) != pytest.approx(value("f_divergence(dpo)"))


@pytest.mark.parametrize(("name", "reads"), [("rpo", "rpo"), ("simpo", "simpo"), ("label_smoothing(rpo)", "rpo")])
def test_a_divergence_around_a_loss_that_reads_the_likelihood_is_refused(name, reads) -> None:
    loss = get_loss(f"f_divergence({name})")
    assert f"and {reads} reads the policy's log-probability itself" in " ".join(check_loss_settings(loss, {}))
    assert check_loss_settings(get_loss("f_divergence(nca_pair)"), {}) == []


def test_a_value_is_checked_where_its_part_declares_it() -> None:
    faults = check_loss_settings(get_loss("label_smoothing(dpo)"), {"label_smoothing.rate": 0.7, "dpo.beta": -1.0})
    assert [fault.partition(":")[0] for fault in faults] == ["label_smoothing.rate", "dpo.beta"]


def test_set_reaches_a_part_wherever_it_stands() -> None:
    jobs = resolve("tiny", "dpo, dpo + 0.2*sft, label_smoothing(dpo)", overrides={"dpo.beta": 0.07})
    assert [job.loss_settings.get("beta", job.loss_settings.get("dpo.beta")) for job in jobs] == [0.07] * 3
    (job,) = resolve("tiny", "label_smoothing(dpo)", overrides={"label_smoothing.rate": 0.3, "dpo.beta": 0.07})
    assert job.value("label_smoothing.rate") == 0.3 and job.value("dpo.beta") == 0.07
    assert job.origin["label_smoothing.rate"] == "--set"


def test_an_expression_takes_its_parts_values_and_not_their_learning_rate() -> None:
    dpo, mixed = resolve("tiny", "dpo, dpo + 0.2*sft")
    assert mixed.loss_settings["dpo.beta"] == dpo.loss_settings["beta"]
    assert mixed.train.lr != dpo.train.lr  # the setting's, not the one that was tuned for DPO
    assert (dpo.values_from, mixed.values_from) == ("tuned", "set")
    (given,) = resolve("tiny", "dpo+0.2*sft", overrides={"dpo + 0.2*sft.lr": 3e-5, "dpo + 0.2*sft.dpo.beta": 0.3})
    assert (given.train.lr, given.loss_settings["dpo.beta"]) == (3e-5, 0.3)


def test_an_unknown_setting_of_a_part_is_refused() -> None:
    with pytest.raises(PobenchError) as refused:
        resolve("tiny", "label_smoothing(dpo)", overrides={"label_smoothing.rat": 0.2, "label_smoothing.lr": 1e-5})
    assert "label_smoothing has no 'rat'; did you mean 'rate'?" in str(refused.value)
    assert "label_smoothing has no 'lr'" in str(refused.value)  # a modifier does not train


def test_two_names_of_one_margin_are_one_value_in_a_part() -> None:
    (job,) = resolve("tiny", "label_smoothing(simpo)", overrides={"simpo.beta": 2.0, "simpo.gamma_beta_ratio": 0.25})
    assert (job.loss_settings["simpo.gamma"], job.loss_settings["simpo.gamma_beta_ratio"]) == (0.5, None)


def test_a_value_that_is_not_read_makes_no_other_run() -> None:
    def job(divergence: str, alpha: float) -> Job:
        values = {"f_divergence.divergence": divergence, "f_divergence.alpha": alpha}
        (found,) = resolve("tiny", "f_divergence(dpo)", overrides=values)
        return found

    assert job("forward_kl", 0.2).key == job("forward_kl", 0.7).key
    assert job("alpha", 0.2).key != job("alpha", 0.7).key
    assert value("f_divergence(dpo)", **job("forward_kl", 0.2).loss_settings) != pytest.approx(
        value("f_divergence(dpo)")
    )


def test_a_folder_is_named_by_the_expression_and_its_content() -> None:
    assert folder_name("0.8*f_divergence(dpo) + sft") == "0.8-f_divergence-dpo+sft"
    assert len(folder_name(" + ".join(f"0.{i}*dpo" for i in range(1, 30)))) <= 48
    smoothed, plain = _source("loss", "label_smoothing(dpo)"), _source("loss", "dpo")
    assert smoothed != plain and smoothed != _source("loss", "label_smoothing(ipo)")
    assert parse("2*a(b(c))")[0] == (2.0, ("a", "b"), "c")


def test_a_grid_of_parts_is_the_grid_of_an_expression() -> None:
    grid = Grid(lr=[1e-5], losses={"dpo": {"beta": [0.1, 0.2], "lr": [1e-6]}, "label_smoothing": {"rate": [0.1, 0.3]}})
    space = search_space(get_loss("label_smoothing(dpo)"), grid)
    assert space == {"lr": [1e-5], "label_smoothing.rate": [0.1, 0.3], "dpo.beta": [0.1, 0.2]}


def test_a_modifier_says_what_is_wrong_with_its_signature(monkeypatch) -> None:
    monkeypatch.setattr(registry, "modifiers", Registry("modifier", "pobench.losses.modifiers"))

    def wrong(policy, strength=1.0): ...

    with pytest.raises(PobenchError, match="the first parameter is `loss`") as refused:
        register_modifier("wrong", source="here", units={"speed": "m/s"})(wrong)
    assert "units: 'speed' is no setting" in str(refused.value)
    with pytest.raises(PobenchError, match="'dpo' is the name of a loss"):
        register_modifier("dpo", source="here")(lambda loss: loss())


def test_an_expression_describes_itself() -> None:
    loss = get_loss("0.5*label_smoothing(dpo) + sft")
    assert loss.title == "0.5 × Smoothed(DPO) + SFT"
    assert loss.formula.splitlines()[0] == f"loss = {loss.name}"
    assert "dpo: loss = -log sigmoid" in loss.formula and "arXiv 2305.18290" in loss.source
    assert {field.name for field in dataclasses.fields(loss)} >= {"parts"}
    assert loss.key("dpo.beta") == "dpo.beta" and get_loss("dpo").key("beta") == "dpo.beta"
