"""Where a loss's values come from: a search, the paper, its defaults or the command line. Stored, never guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.results.load import load_frames
from pobench.results.run_folder import RunFolder
from pobench.runs.task import Task
from pobench.settings.read import list_settings, read_setting
from pobench.settings.resolve import resolve

RECORD = "{trials: 8, metric: pass_rate, value: 0.7, low: 0.6, high: 0.8, n: 120, study: simpo-grid-0123456789ab}"
SETTING = f"""\
name: mine
model: {{source: some/where}}
data: {{source: pairs.jsonl}}
train: {{lr: 5.0e-6}}
losses:
  simpo:
    lr: 1.0e-6
    beta: 2.5
    gamma: 0.5
    tuned: {RECORD}
  dpo:
    beta: 0.01
    values: paper
"""


@pytest.fixture
def setting(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(SETTING)
    return str(tmp_path / "mine.yaml")


def origin(setting: str, loss: str = "simpo", **options) -> str:
    return resolve(setting, loss, **options)[0].values_from


def test_values_are_tuned_the_papers_or_default_as_the_setting_says(setting) -> None:
    simpo, dpo, orpo = resolve(setting, "simpo,dpo,orpo")
    assert [job.values_from for job in (simpo, dpo, orpo)] == ["tuned", "paper", "default"]
    assert simpo.tuned is not None and (simpo.tuned.trials, simpo.tuned.value) == (8, 0.7)
    assert dpo.tuned is None and orpo.tuned is None


@pytest.mark.parametrize("key", ["simpo.beta", "simpo.gamma", "simpo.gamma_beta_ratio", "simpo.lr", "train.lr"])
def test_one_value_set_by_hand_makes_the_run_set(setting, key) -> None:
    (job,) = resolve(setting, "simpo", overrides={key: 0.375})
    assert job.values_from == "set" and job.tuned is None


@pytest.mark.parametrize("same", [{"simpo.beta": 2.5}, {"train.lr": 1e-6}, {"simpo.gamma_beta_ratio": 0.2}])
def test_a_value_set_by_hand_to_what_the_setting_has_is_the_settings(setting, same) -> None:
    assert origin(setting, overrides=same) == "tuned"


def test_values_of_other_losses_and_of_the_loop_are_none_of_the_loss(setting) -> None:
    assert origin(setting, overrides={"dpo.beta": 3.0, "train.epochs": 2, "data.length_bias": 0.5}) == "tuned"
    assert origin(setting, "orpo", overrides={"train.lr": 0.5}) == "set"


@pytest.mark.parametrize(
    "options",
    [{"model": "another/model"}, {"data": "others.jsonl"}, {"overrides": {"data.source": "others.jsonl"}}],
)
def test_a_search_for_another_start_model_or_other_pairs_is_none_for_these(setting, options) -> None:
    assert origin(setting, **options) == "default" and origin(setting, "dpo", **options) == "paper"


@pytest.mark.parametrize(
    ("child", "simpo"),
    [
        ("train: {epochs: 2}", "tuned"),
        ("losses: {dpo: {beta: 0.1}}", "tuned"),
        ("losses: {simpo: {beta: 3.0}}", "default"),
        ("data: {source: others.jsonl}", "default"),
        ("model: {chat_template: plain}", "tuned"),
        ("model: {source: another/model}", "default"),
        (f"model: {{source: another/model}}\nlosses: {{simpo: {{tuned: {RECORD}}}}}", "tuned"),
        ("losses:", "default"),
    ],
)
def test_a_setting_that_extends_a_tuned_one_is_tuned_where_it_changes_nothing_that_was_searched(
    setting, child, simpo, tmp_path
) -> None:
    (tmp_path / "child.yaml").write_text(f"name: child\nextends: mine.yaml\n{child}\n")
    assert origin(str(tmp_path / "child.yaml")) == simpo


def test_a_rate_of_a_later_layer_takes_the_place_of_a_losss_own_as_it_does_by_set(setting, tmp_path) -> None:
    def layer(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    mine = layer("other.yaml", f"extends: {setting}\ntrain: {{lr: 3.0e-6}}\n")
    jobs, by_set = resolve(mine, "simpo,dpo,orpo"), resolve(setting, "simpo,dpo,orpo", overrides={"train.lr": 3e-6})
    assert [job.train.lr for job in jobs] == [job.train.lr for job in by_set] == [3e-6] * 3
    assert [(job.values_from, job.tuned) for job in jobs] == [("default", None)] * 3, (
        "what the file has, no search chose"
    )
    assert jobs[0].loss_settings["beta"] == 2.5, "its other values stay"
    own = layer("own.yaml", f"extends: {setting}\ntrain: {{lr: 3.0e-6}}\nlosses: {{simpo: {{lr: 2.0e-6}}}}\n")
    assert [job.train.lr for job in resolve(own, "simpo,dpo")] == [2e-6, 3e-6], (
        "in one file a loss's own rate is its own"
    )
    again = resolve(layer("third.yaml", "extends: own.yaml\ntrain: {lr: 4.0e-6}\n"), "simpo,dpo")
    assert [job.train.lr for job in again] == [4e-6] * 2
    same = layer("same.yaml", f"extends: {setting}\ntrain: {{lr: 1.0e-6, epochs: 3}}\n")
    simpo, dpo = resolve(same, "simpo,dpo")
    assert (simpo.train.lr, simpo.values_from) == (1e-6, "tuned"), "a rate that is the loss's own changes nothing of it"
    assert (dpo.train.lr, dpo.values_from) == (1e-6, "default"), "the rate that dpo shared was the paper's"


def test_a_setting_without_its_losses_has_every_loss_at_its_defaults(setting, tmp_path) -> None:
    (tmp_path / "child.yaml").write_text("name: child\nextends: mine.yaml\nlosses:\n")
    for job in resolve(str(tmp_path / "child.yaml"), "simpo,dpo"):
        own = get_loss(job.loss).canonical(get_loss(job.loss).settings)
        assert job.values_from == "default" and job.loss_settings == own and job.train.lr == 5e-6


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("values: papr", "losses.dpo.values: got 'papr'; allowed: default, paper"),
        (f"values: paper\n    tuned: {RECORD}", "neither beside `tuned`"),
        ("tuned: {trials: 0, metric: x, value: 1, n: 1, study: s}", "losses.dpo.tuned.trials: got 0"),
        ("tuned: {trails: 8}", "losses.dpo.tuned.trails: unknown key; did you mean 'trials'?"),
    ],
)
def test_a_record_that_is_none_is_a_fault(line, expected, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(SETTING.replace("values: paper", line))
    with pytest.raises(PobenchError) as refused:
        resolve(str(tmp_path / "mine.yaml"), "dpo")
    assert expected in str(refused.value)


def test_where_values_come_from_names_no_run_and_travels_with_its_task(setting, tmp_path) -> None:
    (job,) = resolve(setting, "simpo")
    other = replace(job, values_from="default", tuned=None)
    assert job.key == other.key and job.values() == other.values()
    Task(job, "loss", tmp_path, "mine/simpo", (), tmp_path).dump(tmp_path / "task.json")
    assert Task.load(tmp_path / "task.json").job == job


def test_a_stored_run_says_where_its_values_come_from_and_one_of_an_earlier_version_does_not(setting, tmp_path) -> None:
    for loss in ("simpo", "dpo", "orpo"):
        (job,) = resolve(setting, loss)
        folder = RunFolder(tmp_path / "runs", f"mine/{loss}-0")
        folder.path.mkdir(parents=True)
        folder.write_config(job, "loss", "mine/start-0")
    earlier = tmp_path / "runs/mine/orpo-0/config.yaml"
    values = {k: v for k, v in yaml.safe_load(earlier.read_text()).items() if k not in ("values_from", "tuned")}
    earlier.write_text(yaml.safe_dump(values))
    runs = load_frames(tmp_path / "runs")["runs"].set_index("loss")
    assert dict(runs["values"]) == {"simpo": "tuned", "dpo": "paper", "orpo": ""}
    assert runs["trials"]["simpo"] == 8 and runs["trials"].isna().sum() == 2
    assert json.loads(runs["tuned"]["simpo"])["study"] == "simpo-grid-0123456789ab" and runs["tuned"]["dpo"] == "{}"


@pytest.mark.parametrize("name", list_settings())
def test_a_loss_that_has_the_papers_values_has_no_number_that_is_not_published(name) -> None:
    values, comments = read_setting(name)
    for loss, own in (values["losses"] or {}).items():
        if own.get("values") == "paper":
            numbers = {"lr", *(k for k, v in get_loss(loss).settings.items() if v is None or type(v) is float)}
            assert numbers - set(own) <= {"gamma_beta_ratio"}, f"{name}: {loss} has a number of another source"
            for key in numbers & set(own):
                assert comments[f"losses.{loss}.{key}"].startswith("SimPO "), f"{name}: {loss}.{key}"


@pytest.mark.parametrize("name", [n for n in list_settings() if n.startswith(("mistral", "llama3", "gemma2"))])
def test_simpo_and_dpo_have_the_papers_values_in_its_settings(name) -> None:
    assert [job.values_from for job in resolve(name, "simpo,dpo,orpo")] == ["paper", "paper", "default"]
