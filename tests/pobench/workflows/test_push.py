"""A trained model goes to the hub whole, with a card that has its scores; the hub is a stand-in on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer
from huggingface_hub import constants
from stores import START, start_run, trained_run
from typer.testing import CliRunner

from pobench.cli.push import app
from pobench.errors import PobenchError
from pobench.workflows.push import checked, push

TOKEN = "hf_planted_0123456789"
RUN = "tiny/simpo-0123456789ab"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    start_run(tmp_path)
    trained_run(tmp_path, "simpo-0123456789ab", weights="w" * 4000)
    trained_run(tmp_path, "simpo-aaaaaaaaaaaa", seed=2)
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with HubServer(TOKEN) as server:
        server.take_the_place_of_the_hub(monkeypatch)
        yield server


def test_a_run_is_pushed_in_one_commit_with_its_card_and_the_token_is_nowhere(runs, hub, capfd) -> None:
    address = push(runs, RUN, "me/simpo", private=True, revision="trial")
    assert address == f"{hub.url}/me/simpo/commit/{'0' * 40}"
    assert hub.commits == [("me/simpo", "trial", f"pobench: {RUN}")] and hub.private == {"me/simpo"}
    assert hub.branches == {("me/simpo", "trial")}
    assert set(hub.files["me/simpo"]) == {"README.md", "model.safetensors"}
    assert hub.files["me/simpo"]["model.safetensors"] == b"w" * 4000
    written = [path for path in runs.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert written == [] and TOKEN not in "".join(capfd.readouterr()) + hub.files["me/simpo"]["README.md"].decode()


def test_what_the_hub_refuses_is_one_sentence(runs, hub, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PobenchError, match=r"push: me/simpo: Invalid credentials.*; is the token right\?") as refused:
        push(runs, RUN, "me/simpo")
    assert "hf_wrong" not in str(refused.value) and hub.files == {}
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PobenchError, match=r"^push: me/simpo: "):
        push(runs, RUN, "me/simpo")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PobenchError, match="HF_HUB_OFFLINE is set"):
        push(runs, RUN, "me/simpo")


def test_the_card_has_scores_with_intervals_in_the_form_that_the_hub_reads(runs) -> None:
    card, files = checked(runs, RUN, "me/simpo", "apache-2.0")
    _, head, text = card.split("---\n", 2)
    about = yaml.safe_load(head)
    (model,) = about["model-index"]
    found = {row["type"]: row for result in model["results"] for row in result["metrics"]}
    stored = {row["metric"]: row for row in json.loads((runs / RUN / "scores.json").read_text())["rows"]}
    assert files == ["model.safetensors"] and model["name"] == "SimPO on tiny" and about["license"] == "apache-2.0"
    assert found["pass_rate"]["value"] == stored["pass_rate"]["value"] == 1.0
    assert all(", n = 3" in found[name]["name"] for name in ("pass_rate", "pass_rate_gain", "length_tokens"))
    assert "| Pass rate | 100.0 % |" in text and "1 other run of this loss with these values exist" in text
    assert "--seeds 1" in text and "loss = -log sigmoid(" in text


def test_a_card_names_no_path_of_the_machine_and_no_value_of_the_judge(runs) -> None:
    config = yaml.safe_load((runs / RUN / "config.yaml").read_text())
    config["data"]["source"] = "/home/someone/secret-project/pairs | x.jsonl"
    config["judge"] = {"name": "endpoint", "settings": {"base_url": "http://10.0.0.1/v1", "key_variable": "MY_KEY"}}
    config["origin"] |= {"data.source": "--set", "judge.settings.base_url": "--set"}
    config["origin"]["train.lr"] = "mine: the sweep in /home/someone/secret-project/notes.md"
    (runs / RUN / "config.yaml").write_text(yaml.safe_dump(config))
    card, _ = checked(runs, RUN, "me/simpo")
    assert "| pairs from | pairs \\| x.jsonl |" in card and "`endpoint`" in card
    assert not [word for word in ("/home", "secret-project", "10.0.0.1", "MY_KEY") if word in card]


def test_what_is_in_the_way_of_a_push_is_listed_at_once_and_nothing_is_sent(runs, hub) -> None:
    (runs / RUN / "model/model.safetensors").write_text("flipped")
    with pytest.raises(PobenchError) as refused:
        push(runs, RUN, "no slash")
    assert "--repo 'no slash': USER/NAME is needed" in str(refused.value) and "model.safetensors" in str(refused.value)
    with pytest.raises(PobenchError, match="start model; name a trained run"):
        push(runs, START, "me/simpo")
    assert hub.files == {}


def test_the_command_prints_the_card_without_sending_it(runs, hub) -> None:
    words = [RUN, "--runs", str(runs), "--repo", "me/simpo", "--dry-run"]
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == 0 and hub.files == {}
    assert "# SimPO on tiny" in printed.output and "README.md, model.safetensors; nothing was sent" in printed.output
