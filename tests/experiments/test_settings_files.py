"""The settings that ship: they load, every number says where it is from, and the paper's are the paper's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pobench.registry import get_loss, list_losses
from pobench.settings.read import list_settings, read_setting
from pobench.settings.resolve import resolve

SETTINGS = list_settings()
LEARNING_RATES = (3e-7, 5e-7, 6e-7, 1e-6)  # the printed search range, every method
PAPER = {  # setting: SimPO's beta, gamma, lr; DPO's lr; max_length
    "mistral-base": (2.0, 1.6, 3e-7, 5e-7, 1024),
    "mistral-instruct": (2.5, 0.3, 5e-7, 5e-7, 2048),
    "llama3-base": (2.0, 1.0, 6e-7, 5e-7, 2048),
    "llama3-instruct": (2.5, 1.4, 1e-6, 7e-7, 2048),
    "llama3-instruct-v0.2": (10.0, 3.0, 1e-6, 3e-7, 2048),
    "gemma2-instruct": (10.0, 5.0, 8e-7, 5e-7, 2048),
}


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float, list)) and value != []


def test_the_papers_six_settings_ship() -> None:
    assert set(SETTINGS) >= set(PAPER)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_loads_for_every_loss(name) -> None:
    jobs = resolve(name, "all")
    assert {job.loss for job in jobs} == {name for name in list_losses() if "scores" not in get_loss(name).needs}
    assert {job.loss for job in resolve(name, "rated")} == set(list_losses()) - {job.loss for job in jobs}
    assert {job.setting for job in jobs} == {name}
    assert len({job.key for job in jobs}) == len(jobs)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_number_says_where_it_is_from(name) -> None:
    values, comments = read_setting(name)
    bare = [key for key, value in leaves(values) if is_number(value) and not comments.get(key)]
    assert not bare, f"{name}.yaml: write the source behind {', '.join(bare)}"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_rate_is_written_so_that_yaml_reads_a_number(name) -> None:
    for key, value in leaves(read_setting(name)[0]):
        if isinstance(value, str):
            with pytest.raises(ValueError):  # 5e-7 is text to YAML 1.1, 5.0e-7 a number
                float(value)
                pytest.fail(f"{name}.yaml, {key}: {value!r} is text")


@pytest.mark.parametrize("name", PAPER)
def test_simpo_and_dpo_have_their_published_values(name) -> None:
    beta, gamma, lr, dpo_lr, max_length = PAPER[name]
    simpo, dpo = resolve(name, "simpo,dpo")
    assert (simpo.loss_settings["beta"], simpo.loss_settings["gamma"], simpo.train.lr) == (beta, gamma, lr)
    assert (dpo.loss_settings["beta"], dpo.train.lr) == (0.01, dpo_lr)
    for job in (simpo, dpo):
        assert (job.data.max_length, job.train.batch_size, job.train.epochs, job.seed) == (max_length, 128, 1, 42)
        assert (job.train.schedule, job.train.warmup_ratio, job.train.precision) == ("cosine", 0.1, "bf16")


@pytest.mark.parametrize("name", ["tiny-lists", "tiny-unpaired"])
def test_the_worlds_of_lists_and_of_answers_differ_from_tiny_in_what_is_trained_on_alone(name) -> None:
    (own,), (tiny,) = (resolve(setting, "plackett_luce") for setting in (name, "tiny"))
    for part in ("model", "answers", "judge", "benchmarks"):
        assert getattr(own, part) == getattr(tiny, part)
    assert own.data == tiny.data.model_copy(update={"source": own.data.source})
    assert {job.values_from for job in resolve(name, "all")} == {"default"}, (
        "what was chosen on pairs is not taken over"
    )


def test_mistral_base_ships_with_both_of_its_maximum_lengths() -> None:
    short, long = (resolve(name, "all")[0] for name in ("mistral-base", "mistral-base-2048"))
    assert (short.data.max_length, long.data.max_length) == (1024, 2048)
    assert long.data.max_prompt_length == resolve("llama3-base", "simpo")[0].data.max_prompt_length
    same = {"max_length": 1024, "max_prompt_length": 512}
    assert long.data.model_copy(update=same) == short.data and long.model == short.model


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_setting_says_every_number_of_the_papers_losses(name) -> None:
    given = read_setting(name)[0]["losses"]
    of_the_paper = {n for n in list_losses() if get_loss(n).in_paper}
    assert set(given) == of_the_paper | {"simpo_sft"}  # the others keep the values of their own papers
    for loss in map(get_loss, given):
        numbers = {s for s, default in loss.settings.items() if default is None or type(default) is float}
        assert numbers - set(given[loss.name]) <= {"gamma_beta_ratio"}, loss.name


@pytest.mark.parametrize("name", PAPER)
def test_what_is_not_published_lies_in_the_printed_range(name) -> None:
    values, comments = read_setting(name)
    checked = 0
    for loss, given in values["losses"].items():
        for key, value in given.items():
            comment = comments[f"losses.{loss}.{key}"]
            printed = get_loss(loss).ranges.get(key)
            if printed is not None and loss not in ("simpo", "dpo"):
                inside = "{" + ", ".join(map(str, printed)) + "}"
                assert value in printed
                assert comment.startswith(f"not published; printed range {inside}") or len(printed) == 1
                checked += 1
    assert checked == 12
    assert values["train"]["lr"] in LEARNING_RATES


@pytest.mark.parametrize("name", PAPER)
def test_cpo_and_ipo_are_as_the_authors_environment_computes_them_and_say_that_this_is_inferred(name) -> None:
    cpo, ipo = resolve(name, "cpo,ipo")
    assert (cpo.loss_settings["sft_reduction"], ipo.loss_settings["average"]) == ("mean", True)
    assert (get_loss("cpo").settings["sft_reduction"], get_loss("ipo").settings["average"]) == (
        "sum",
        False,
    )  # as printed
    _, comments = read_setting(name)
    for key in ("losses.cpo.sft_reduction", "losses.ipo.average"):
        assert comments[key].startswith("inferred: TRL 0.9.6")
