"""Settings: strict, every fault in one message, every value with its source."""

from __future__ import annotations

from pathlib import Path

import pytest

from pobench.errors import PobenchError
from pobench.settings.read import read_setting
from pobench.settings.resolve import parse_overrides, resolve, section_of
from pobench.settings.schema import DataConfig

SETTING = """\
name: mine
model: {source: some/where}
data:
  source: pairs.jsonl
train:
  lr: 5.0e-6  # a paper, Table 3
  batch_size: 4
losses:
  simpo:
    beta: 2.5  # a paper, Table 4
    gamma: 0.3
    lr: 1.0e-6  # a paper, Table 5
"""


@pytest.fixture
def setting(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(SETTING)
    return str(path)


def test_a_losss_own_values_outrank_the_settings_and_the_command_line_outranks_both(setting) -> None:
    simpo, dpo = resolve(setting, "simpo,dpo")
    assert (simpo.train.lr, dpo.train.lr) == (1e-6, 5e-6)
    assert simpo.loss_settings["beta"] == 2.5 and simpo.origin["simpo.beta"].endswith("a paper, Table 4")
    # what is shown as a value's source is the source of that value, not of the one it outranks
    assert simpo.origin["train.lr"].endswith("a paper, Table 5") and dpo.origin["train.lr"].endswith("a paper, Table 3")
    (set_for_it,) = resolve(setting, "simpo", overrides={"simpo.lr": 3e-6})
    assert set_for_it.train.lr == 3e-6 and set_for_it.origin["train.lr"] == "--set"
    forced, other = resolve(setting, "simpo,dpo", overrides={"train.lr": 2e-6, "simpo.beta": 3})
    assert forced.train.lr == other.train.lr == 2e-6 and forced.origin["train.lr"] == "--set"
    assert forced.loss_settings["beta"] == 3 and forced.origin["simpo.beta"] == "--set"


def test_one_margin_under_two_names_is_one_job(setting) -> None:
    (gamma,) = resolve(setting, "simpo", overrides={"simpo.gamma": 1.0})
    (ratio,) = resolve(setting, "simpo", overrides={"simpo.gamma_beta_ratio": 0.4})
    assert gamma.loss_settings == ratio.loss_settings and gamma.key == ratio.key
    with pytest.raises(PobenchError, match="two names of one margin"):
        resolve(setting, "simpo", overrides={"simpo.gamma": 1.0, "simpo.gamma_beta_ratio": 0.4})


@pytest.fixture
def judged(tmp_path: Path) -> str:
    """A setting whose judge has settings of its own."""
    path = tmp_path / "judged.yaml"
    path.write_text(SETTING + "judge: {name: tiny_world, settings: {graded: false}}\n")
    return str(path)


def test_another_judge_does_not_inherit_the_settings_of_the_one_it_replaces(judged, tmp_path) -> None:
    (job,) = resolve(judged, "simpo", overrides={"judge.name": "endpoint", "judge.settings.model": "m"})
    assert job.judge.name == "endpoint" and job.judge.settings == {"model": "m"}
    (tmp_path / "heir.yaml").write_text("extends: judged.yaml\njudge: {name: verifiable}\n")
    assert resolve(str(tmp_path / "heir.yaml"), "simpo")[0].judge.settings == {}


@pytest.mark.parametrize("changes", [{}, {"judge.name": "Tiny-World"}, {"judge.settings.graded": False}])
def test_the_same_judge_keeps_its_settings(judged, changes) -> None:
    assert resolve(judged, "simpo", overrides=changes)[0].judge.settings == {"graded": False}


def test_sections_that_commands_read_are_set_like_the_others_and_decide_no_run(setting) -> None:
    changes = {"tune.max_prompts": 5, "onpolicy.ranker.name": "local", "onpolicy.top_p": 0.5}
    assert resolve(setting, "simpo", overrides=changes)[0].key == resolve(setting, "simpo")[0].key
    assert section_of({"tune": {"grid": "tiny"}}, "tune", changes) == {"grid": "tiny", "max_prompts": 5}
    assert section_of({}, "onpolicy", changes) == {"ranker": {"name": "local"}, "top_p": 0.5}
    with pytest.raises(PobenchError, match=r"tune\.max_prompts: got 0"):
        resolve(setting, "simpo", overrides={"tune.max_prompts": 0})


@pytest.mark.parametrize("values", ["false", "0", "[]", "''", "5"])
def test_a_losss_section_that_is_no_mapping_is_a_fault_where_the_setting_extends_another(values, tmp_path) -> None:
    """It would have fallen back on the inherited values in silence."""
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: tiny\nlosses: {{dpo: {values}}}\n")
    with pytest.raises(PobenchError, match=r"losses.dpo: got .*; expected a mapping"):
        resolve(str(path), "dpo")


def test_a_losss_empty_section_keeps_what_the_setting_inherits(tmp_path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("extends: tiny\nlosses: {dpo: }\n")
    assert resolve(str(path), "dpo")[0].loss_settings == resolve("tiny", "dpo")[0].loss_settings


def test_all_faults_come_in_one_message(setting) -> None:
    overrides = {
        "trian.lr": 1,
        "train.batch_sise": 3,
        "simpo.bta": 2,
        "dpo.gamma": 1,
        "simpo.beta": -1,
        "train.lr": "fast",
    }
    with pytest.raises(PobenchError) as caught:
        resolve(setting, "simp0,simpo,dpo", overrides=overrides)
    text = str(caught.value)
    for expected in (
        "unknown loss 'simp0'; did you mean 'simpo'?",
        "'trian' is neither a section nor a loss; did you mean 'train'?",
        "train has no 'batch_sise'; did you mean 'batch_size'? (Items of an optimiser step, for any layout",
        "simpo has no 'bta'; did you mean 'beta'?",
        "dpo has no 'gamma'",
        "simpo.beta: got -1",
        "train.lr: got 'fast'",
    ):
        assert expected in text


def faults_of(setting: str, *losses: str, **options) -> list[str]:
    with pytest.raises(PobenchError) as caught:
        resolve(setting, ",".join(losses), **options)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("other", ["simpo.bet", "simpo.betaa", "simpo.bta"])
def test_a_fault_of_the_yaml_stays_beside_one_of_the_command_line_on_the_same_loss(tmp_path, other) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(SETTING.replace("beta: 2.5", "bet: 2.5"))  # one key is the beginning of the other, or the same
    faults = faults_of(str(path), "simpo", overrides={other: 2})
    assert [fault.partition(": ")[0] for fault in faults] == ["losses.simpo.bet", f"--set {other}"]


def test_every_part_of_a_setting_is_checked_whatever_is_wrong_with_another(tmp_path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(
        "model: {}\ndata: {source: a}\ntrain: {lr: 0.1}\njudge: {name: locall}\nbenchmarks: {alpaca: {}}\n"
        "losses: {simpo: {beta: -1, lr: fast}, dpo: {gamma: 1}}\n"
    )
    faults = faults_of(str(path), "simpo", benchmark_names="arena")
    places = [fault.partition(": ")[0] for fault in faults]
    expected = {"model.source", "judge.name", "benchmarks", "--benchmarks"}
    expected |= {"losses.simpo.lr", "simpo.beta", "losses.dpo.gamma"}
    assert set(places) == expected and len(set(faults)) == len(faults), faults


@pytest.mark.parametrize("key", ["train.lr", "judge.name", "benchmarks.alpaca_eval.limit", "simpo.beta"])
@pytest.mark.parametrize("section", ["train: 5", "judge: 5", "benchmarks: 5", "losses: 5", "losses: {simpo: 5}"])
def test_a_section_that_is_no_mapping_is_named_and_not_replaced_by_the_command_line(tmp_path, section, key) -> None:
    name = section.partition(":")[0]
    path = tmp_path / "flat.yaml"
    rest = {"train": "train: {lr: 0.1}\n"}
    rest.pop(name, None)
    path.write_text("model: {source: a}\ndata: {source: a}\n" + "".join(rest.values()) + section + "\n")
    value = {"train.lr": 0.5, "judge.name": "verifiable", "benchmarks.alpaca_eval.limit": 3, "simpo.beta": 2}[key]
    assert any(
        fault.startswith(name) and "got 5" in fault for fault in faults_of(str(path), "simpo", overrides={key: value})
    )


def test_an_empty_section_is_filled_by_the_command_line(tmp_path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("model: {source: a}\ndata: {source: a}\ntrain: {lr: 0.1}\nanswers:\n")
    (job,) = resolve(str(path), "simpo", overrides={"answers.max_new_tokens": 7})
    assert job.answers.max_new_tokens == 7


def test_a_typo_in_the_yaml_is_named_with_the_nearest_key(tmp_path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(SETTING.replace("batch_size", "batchsize").replace("  source: pairs", "  sorce: pairs"))
    with pytest.raises(PobenchError) as caught:
        resolve(str(path), "simpo")
    text = str(caught.value)
    assert "train.batchsize: unknown key; did you mean 'batch_size'?" in text
    assert "data.sorce: unknown key; did you mean 'source'?" in text and "data.source: missing" in text


def test_what_changes_a_result_changes_the_folder_and_what_does_not_does_not(setting) -> None:
    def run(**overrides) -> str:
        return resolve(setting, "dpo", overrides={k.replace("__", "."): v for k, v in overrides.items()})[0].key

    assert run() == run()
    assert run(train__checkpoint_seconds=5) == run()
    different = [run(), run(train__lr=1e-5), run(dpo__beta=0.2), run(data__max_pairs=5), run(answers__temperature=0.5)]
    assert len(set(different)) == len(different)


def test_other_data_leaves_the_settings_own_split_behind(setting) -> None:
    (job,) = resolve(setting, "dpo", data="mine.jsonl", model="my/model")
    assert job.data.source == "mine.jsonl" and job.data.held_out is None
    assert job.model.source == "my/model" and job.model.sha256 is None


def test_an_override_reads_numbers_as_people_write_them() -> None:
    assert parse_overrides(["train.lr=5e-6", "data.max_pairs=20", "a.b=null", "a.c=x y", "a.d=true"]) == {
        "train.lr": 5e-6,
        "data.max_pairs": 20,
        "a.b": None,
        "a.c": "x y",
        "a.d": True,
    }
    with pytest.raises(PobenchError, match=r"'lr=3'(.|\n)*'nonsense'"):
        parse_overrides(["lr=3", "nonsense"])


def test_comments_are_the_sources_of_values(setting) -> None:
    _, comments = read_setting(setting)
    assert comments == {
        "train.lr": "a paper, Table 3",
        "losses.simpo.beta": "a paper, Table 4",
        "losses.simpo.lr": "a paper, Table 5",
    }


@pytest.mark.parametrize(
    ("given", "longest"),
    [
        ({}, 1800),
        ({"max_length": 1024}, 900),
        ({"max_length": 8192}, 1800),
        ({"max_length": 4}, 2),
        ({"max_length": 64, "max_prompt_length": 9}, 9),
    ],
)
def test_a_prompt_has_its_share_of_a_short_length_unless_the_setting_says_more(given, longest) -> None:
    assert DataConfig(source="pairs.jsonl", **given).max_prompt_length == longest


def test_a_prompt_that_leaves_no_room_for_a_response_is_a_fault_of_the_setting() -> None:
    with pytest.raises(PobenchError, match=r"data.max_prompt_length.* at most 62: of data.max_length, 64, two tokens"):
        resolve("tiny", "dpo", overrides={"data.max_length": 64, "data.max_prompt_length": 63})
