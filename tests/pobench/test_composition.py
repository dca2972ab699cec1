"""Expressions of losses: what is read, what is refused, what they are called, and whose values they take."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

import pobench.registry as registry
from pobench.composition import folder_name, parse, split
from pobench.errors import PobenchError, UnknownNameError
from pobench.registry import STILL, Move, get_loss, losses, register_modifier
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
        ("f_divergence(ld(dpo))", "which ld adds up anew from the tokens; write ld around f_divergence"),
        ("sampo(aot)", "sampo changes a pair's sums, and aot reads batch"),
        ("tr(simpo)", "tr moves the reference, and simpo reads none"),
        ("tr(dpo) + 0.5*kto", "tr moves the one reference that all terms read; write tr around kto, too"),
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


def of_tokens(chosen: list[float], rejected: list[float]) -> tuple[Pair, Tensor, Tensor]:
    """Sums, tokens and mask of one pair."""
    width = max(len(chosen), len(rejected))
    rows = torch.tensor([[[*one, *[0.0] * (width - len(one))] for one in (chosen, rejected)]], dtype=torch.float64)
    mask = torch.arange(width) < torch.tensor([[len(chosen), len(rejected)]])[..., None]
    return Pair(*(SequenceLogps(rows[:, i].sum(-1), mask[:, i].sum(-1)) for i in (0, 1))), rows, mask


def by_tokens(name: str, policy: list[list[float]], reference: list[list[float]], **settings: Any) -> tuple[Any, Any]:
    """(output, its gradient by the policy's tokens) of a pair's tokens; draw: of the pair."""
    draw = torch.tensor([settings.pop("draw", 0)])
    (ours, rows, mask), (base, known, _) = of_tokens(*policy), of_tokens(*reference)
    rows.requires_grad_()
    ours = Pair(*(side._replace(total=rows[:, i].sum(-1)) for i, side in enumerate(ours)))
    loss = get_loss(name)
    given = {
        "tokens": TokenLogps(rows, known if "reference" in loss.needs else None, mask, draw),
        "kl": torch.tensor(2.0),
    }
    output = loss.evaluate(ours, base, **given, **{**loss.settings, **settings})
    return output, torch.autograd.grad(output.loss.sum(), rows)[0]


def test_a_token_beyond_the_limits_counts_as_one_at_the_limit_and_has_no_gradient() -> None:
    # log-ratios 3, 0.5 and -2 clamp to 1.5, 0.5 and -1; 0.5 and 0.25 stay: 1 - 0.75
    policy, reference = [[-1.0, -1.0, -3.0], [-1.0, -1.0]], [[-4.0, -1.5, -1.0], [-1.5, -1.25]]
    output, slopes = by_tokens("humanline(dpo)", policy, reference, **{"dpo.beta": 1.0})
    assert (output.chosen_reward.item(), output.rejected_reward.item()) == pytest.approx((1.0, 0.75))
    assert (slopes[0, 0] != 0).tolist() == [False, True, False] and (slopes[0, 1, :2] != 0).all()
    wide = {"humanline.low": -9.0, "humanline.high": 9.0}
    for name in ("dpo", "kto", "nca_pair"):
        inner = {f"{name}.beta": 0.3}
        plain = by_tokens(f"sampo({name})", [side[:2] for side in policy], [side[:2] for side in reference], **inner)[0]
        wider = by_tokens(f"humanline({name})", [p[:2] for p in policy], [r[:2] for r in reference], **wide, **inner)[0]
        assert wider.loss.item() == pytest.approx(plain.loss.item(), rel=1e-12), name


def test_of_the_longer_answer_as_many_tokens_are_drawn_as_the_shorter_has() -> None:
    policy, reference = [[-1.0, -2.0, -4.0, -8.0], [-3.0, -3.0]], [[-1.5, -2.5, -4.5, -8.5], [-3.25, -3.25]]
    settings = {"dpo.beta": 1.0}
    masks = [by_tokens("sampo(dpo)", policy, reference, draw=draw, **settings)[1][0] != 0 for draw in range(60)]
    assert all(mask.sum(-1).tolist() == [2, 2] for mask in masks)
    drawn = torch.stack([mask[0] for mask in masks]).double().mean(0)
    assert (
        len({tuple(mask[0].tolist()) for mask in masks}) == 6 and ((drawn - 0.5).abs() < 0.2).all()
    )  # all pairs of four
    output, _ = by_tokens("sampo(dpo)", policy, reference, draw=5, **settings)
    assert (output.chosen_reward.item(), output.rejected_reward.item()) == pytest.approx(
        (1.0, 0.5)
    )  # the same tokens' ratios
    means, slopes = by_tokens("sampo(simpo)", policy, reference, draw=5, **{"simpo.beta": 1.0})
    taken = torch.tensor(policy[0])[slopes[0, 0] != 0]
    assert means.chosen_reward.item() == pytest.approx(taken.mean().item())  # of the tokens that count
    equal, alike = [policy[0], [-3.0] * 4], [reference[0], [-3.5, -3.0, -3.0, -2.0]]
    at_zero = {"ld.alpha": 0.0, "dpo.beta": 0.3}
    assert by_tokens("sampo(dpo)", equal, alike, **{"dpo.beta": 0.3})[0].loss.item() == pytest.approx(
        by_tokens("ld(dpo)", equal, alike, **at_zero)[0].loss.item(), rel=1e-12
    )  # both are the loss itself where the answers are equally long


def test_the_outer_modifier_changes_the_tokens_that_the_inner_one_reads() -> None:
    # ratios 2, 2 and 1: clamped 1.5, 1.5 and 1
    policy, reference = [[-1.0, -1.0], [-1.0]], [[-3.0, -3.0], [-2.0]]
    settings = {"ld.alpha": 0.5, "dpo.beta": 1.0}
    clamped_first, _ = by_tokens("humanline(ld(dpo))", policy, reference, **settings)
    weighed_first, _ = by_tokens("ld(humanline(dpo))", policy, reference, **settings)
    assert clamped_first.chosen_reward.item() == pytest.approx(1.5 + 0.75)
    assert weighed_first.chosen_reward.item() == pytest.approx(1.5 + 1.0)  # half of the second token's 2 nats
    both = [by_tokens(name, policy, reference, **settings)[0].loss.item() for name in ("sampo(ld(dpo))", "sampo(dpo)")]
    assert both[0] == pytest.approx(both[1], rel=1e-12)  # equally long already


def test_a_reference_that_moves_changes_no_value_and_is_one_for_all_terms() -> None:
    for name in ("dpo", "kto", "label_smoothing(dpo)", "dpo + 0.2*sft"):
        moved = " + ".join(term if "sft" in term else f"tr({term})" for term in name.split(" + "))
        assert value(moved) == value(name) and not get_loss(name).moves_reference
    loss = get_loss("label_smoothing(tr(dpo)) + 0.5*tr(kto)")
    settings = {**loss.settings, "tr.alpha": 0.3, "tr.every": 4}
    assert loss.moves_reference
    assert [loss.move_of_reference(step, settings).share for step in range(1, 9)] == [0, 0, 0, 0.3, 0, 0, 0, 0.3]
    assert get_loss("dpo").move_of_reference(512, {}) == STILL


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
    monkeypatch.setattr(registry.modifiers, "_items", dict(registry.modifiers._items))

    def wrong(policy, strength=1.0): ...

    with pytest.raises(PobenchError, match="the first parameter is `loss`") as refused:
        register_modifier("wrong", source="here", units={"speed": "m/s"})(wrong)
    assert "units: 'speed' is no setting" in str(refused.value)
    with pytest.raises(PobenchError, match="'dpo' is the name of a loss"):
        register_modifier("dpo", source="here")(lambda loss: loss())
    with pytest.raises(PobenchError, match=r"moves: takes \(step, \*, share\)"):
        register_modifier("ema", source="here", moves=lambda step: 0.1)(lambda loss, *, share=0.1: loss())
    with pytest.raises(PobenchError, match="leads: it says of `moves`"):
        register_modifier("ema", source="here", leads=True)(lambda loss: loss())


def test_a_reference_is_led_only_where_that_is_declared_and_stays_without_a_share(monkeypatch) -> None:
    monkeypatch.setattr(registry.modifiers, "_items", dict(registry.modifiers._items))
    monkeypatch.setattr(registry.modifiers, "_aliases", dict(registry.modifiers._aliases))
    move = Move(share=0.5, lead=0.5)
    register_modifier("t_undeclared", source="here", moves=lambda step: move)(lambda loss: loss())
    with pytest.raises(PobenchError, match=r"t_undeclared: its `moves` gave .* a lead needs `leads=True`"):
        get_loss("t_undeclared(dpo)").move_of_reference(1, {})
    register_modifier("t_led", source="here", moves=lambda step: Move(lead=0.5) if step == 1 else move, leads=True)(
        lambda loss: loss()
    )
    assert [get_loss("t_led(dpo)").move_of_reference(step, {}) for step in (1, 2)] == [STILL, move]


def test_an_expression_describes_itself() -> None:
    loss = get_loss("0.5*label_smoothing(dpo) + sft")
    assert loss.title == "0.5 × Smoothed(DPO) + SFT"
    assert loss.formula.splitlines()[0] == f"loss = {loss.name}"
    assert "dpo: loss = -log sigmoid" in loss.formula and "arXiv 2305.18290" in loss.source
    assert {field.name for field in dataclasses.fields(loss)} >= {"parts"}
    assert loss.key("dpo.beta") == "dpo.beta" and get_loss("dpo").key("beta") == "dpo.beta"
