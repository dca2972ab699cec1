"""`pobench check`: every registered loss passes, broken ones are caught for the right reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pobench.registry import get_loss, list_losses, modifiers
from pobench.workflows.check import LAWS, check
from pobench.workflows.check_units import OWN

BROKEN = Path(__file__).parent / "broken"
CAUGHT = {  # fixture: (the law that catches it, words of the reason)
    "wrong_sign": ("it pulls the right way", "a wrong sign?"),
    "micro_batch_mean": ("a pair stands for itself", "depends on the pairs beside it"),
    "wrong_shape": ("one value per pair", "loss ()"),
    "nan_on_equal_responses": ("equal responses", "is nan where both answers have the same log-probability"),
    "unused_reference": ("it uses what it asks for", "asks for reference and does not use it"),
    "unused_density_ratio": ("answers: it uses what it asks for", "asks for density_ratio and does not use it"),
    "list_by_place": ("lists: the order in which a list is written", "read `rank`, not the place"),
    "list_mean_over_pads": ("lists: pads", "three more pads change the loss"),
    "answers_in_twos": ("answers: one value each", "RuntimeError: shape '[-1, 2]' is invalid"),
}


@pytest.mark.parametrize(
    "name", [*list_losses(), *(f"{name}(dpo)" for name in modifiers.names()), "tr(humanline(kto))"]
)
def test_no_registered_loss_breaks_a_law(name) -> None:
    findings = list(check(get_loss(name), steps=False))
    assert [f.law for f in findings] == [law for law, _ in (*LAWS, *OWN[get_loss(name).unit])]
    assert not {f.law: f.seen for f in findings if f.verdict == "fails"}


def test_every_broken_fixture_has_its_reason() -> None:
    assert {p.stem for p in BROKEN.glob("*.py")} == set(CAUGHT)


@pytest.mark.parametrize("fixture", CAUGHT)
def test_a_broken_loss_is_caught_and_told_why(fixture, pobench_cli, forget) -> None:
    status, text, _ = pobench_cli("check", str(BROKEN / f"{fixture}.py"), "--quick", "--json")
    failed = {row["law"]: row["seen"] for row in json.loads(text) if row["verdict"] == "fails"}
    law, reason = CAUGHT[fixture]
    assert status == 1 and reason in failed[law]
    if fixture in (
        "wrong_sign",
        "micro_batch_mean",
        "unused_reference",
        "list_by_place",
    ):  # the others break several laws by one fault
        assert set(failed) == {law}


ASKING = ("t_offset", "t_ld", "t_worst", "t_aot", "t_aot_unpaired", "t_dr_dpo", "t_beta_dpo", "t_bco", "t_valued_pairs")
OF_LISTS = ("t_rated_list", "t_list_of_tokens", "t_list_of_a_batch", "t_valued_lists")
OF_ANSWERS = ("t_bco_answers", "t_rated_answers", "t_answers_of_tokens", "t_answers_of_a_batch")


@pytest.mark.parametrize("name", [*ASKING, *OF_LISTS, *OF_ANSWERS])
def test_a_loss_that_asks_for_more_keeps_every_law(name, losses_that_ask) -> None:
    assert not {f.law: f.seen for f in check(get_loss(name), steps=False) if f.verdict == "fails"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ASKING, *OF_LISTS, *OF_ANSWERS])
def test_a_loss_that_asks_for_more_trains_as_one_however_its_batch_is_cut(name, losses_that_ask) -> None:
    findings = {f.law: f for f in check(get_loss(name), plugins=[losses_that_ask])}
    for law in ("a batch may be cut in any way", "two processes train as one"):
        assert findings[law].verdict == "holds", findings[law].seen


@pytest.mark.slow
def test_the_training_step_too_shows_a_mean_over_the_micro_batch(pobench_cli, forget) -> None:
    status, text, _ = pobench_cli("check", str(BROKEN / "micro_batch_mean.py"), "--json")
    rows = {row["law"]: row for row in json.loads(text)}
    assert status == 1
    assert rows["a batch may be cut in any way"]["verdict"] == "fails"
    # packed or padded: which of the two is further off is a matter of rounding
    assert "eight micro-batches" in rows["a batch may be cut in any way"]["seen"].split(" differs")[0]
    assert rows["two processes train as one"]["verdict"] == "fails"


def test_a_sound_loss_is_told_so(pobench_cli) -> None:
    status, text, _ = pobench_cli("check", "simpo", "--quick")
    assert status == 0 and "0 fail" in text
    assert "does not change with length" in text  # the reward of SimPO, and not of SimPO w/o LN:
    assert "grows with length" in pobench_cli("check", "simpo_no_ln", "--quick")[1]


def test_settings_can_be_tried(pobench_cli) -> None:
    def idle(*arguments: str) -> str:
        rows = json.loads(pobench_cli("check", "rdpo", "--quick", "--json", *arguments)[1])
        return next(row["seen"] for row in rows if row["law"] == "saturation")

    # alpha = 0.5 and lengths hundreds of tokens apart: only pairs whose chosen answer is much shorter still learn
    assert int(idle("--set", "rdpo.alpha=0.5").split("%")[0]) > 40
    assert int(idle("--set", "rdpo.alpha=0").split("%")[0]) < 5


def test_all_faults_of_the_command_are_listed_at_once(pobench_cli, tmp_path) -> None:
    status, _, error = pobench_cli(
        "check", "simpo", "--set", "simpo.bta=2", "--set", "dpo.beta=1", "--set", "simpo.beta=-1"
    )
    assert status == 2
    assert "simpo has no 'bta'" in error and "'dpo' is not checked here" in error and "simpo.beta: got -1" in error
    (tmp_path / "empty.py").write_text("x = 1\n")
    status, _, error = pobench_cli("check", str(tmp_path / "empty.py"))
    assert status == 2 and "registers no loss" in error
    assert pobench_cli("check", "simp0")[0] == 2
