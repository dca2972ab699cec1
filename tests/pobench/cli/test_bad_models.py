"""A model that cannot be trained is named by a dry run, in one message, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def dry_run(pobench_cli, setting, tmp_path) -> Callable[[], tuple[int, str]]:
    """(exit status, standard error) of the small setting's dry run, which must leave the folder as it was."""

    def run() -> tuple[int, str]:
        before = sorted(tmp_path.rglob("*"))
        status, out, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo", "--dry-run")
        assert sorted(tmp_path.rglob("*")) == before and "Traceback" not in err + out
        return status, err

    return run


def test_a_whole_model_passes(dry_run) -> None:
    status, err = dry_run()
    assert status == 0 and "Loading" not in err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ("", "'config.json' is no JSON"),
        ("[]", "'config.json' holds no mapping"),
        ("{}", "the model_type in its config.json is None"),
        ({"model_type": "zzz"}, "the model_type in its config.json is 'zzz'"),
        ({"model_type": ["llama"]}, "the model_type in its config.json is ['llama']"),
        ({"model_type": "t5"}, "is no causal language model"),
        ({"hidden_size": "wide"}, "cannot be loaded"),
        ({"num_hidden_layers": 5}, "27 are missing (model.layers.2"),
        ({"hidden_size": 32}, "are of another shape"),
        ({"rope_parameters": {"rope_type": "zzz"}}, "KeyError: 'zzz'"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_the_models_is_named(changes, expected, dry_run, tmp_path) -> None:
    path = tmp_path / "model/config.json"
    text = changes if isinstance(changes, str) else json.dumps(json.loads(path.read_text()) | changes)
    path.write_text(text)
    status, err = dry_run()
    assert status == 2 and expected in err and len(err) < 600, err


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("junk", [lambda data: b"", lambda data: b"junk " * 9, cut], ids=["empty", "junk", "cut"])
def test_weights_that_are_no_safetensors_are_named(junk, dry_run, tmp_path) -> None:
    path = tmp_path / "model/model.safetensors"
    path.write_bytes(junk(path.read_bytes()))
    status, err = dry_run()
    assert status == 2 and "cannot be loaded: Error while deserializing header" in err, err


def test_a_weight_that_is_missing_is_named_without_reading_the_weights(dry_run, tmp_path, monkeypatch) -> None:
    path = tmp_path / "model/model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    status, err = dry_run()
    assert status == 2 and "1 are missing (model.layers.1.self_attn.q_proj.weight)" in err, err


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("{", "is no JSON"),
        ("{}", "has no `weight_map`"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "missing: ../a.safetensors"),
    ],
)
def test_a_junk_index_is_named(index, expected, dry_run, tmp_path) -> None:
    (tmp_path / "model/model.safetensors.index.json").write_text(index)
    status, err = dry_run()
    assert status == 2 and expected in err, err


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("tokenizer.json", "{", "tokenizer in"),
        ("tokenizer_config.json", "[]", "'tokenizer_config.json' holds no mapping"),
        ("generation_config.json", "{", "'generation_config.json' is no JSON"),
        ("chat_template.jinja", "{% if", "the chat template cannot render"),
        ("chat_template.jinja", "hello", "it leaves the answer out"),
        ("chat_template.jinja", "{{ messages[7].content }}", "no element 7"),
    ],
)
def test_a_junk_file_of_the_model_is_named(file, text, expected, dry_run, tmp_path) -> None:
    (tmp_path / "model" / file).write_text(text)
    status, err = dry_run()
    assert status == 2 and expected in err, err


def test_weights_are_proven_before_anything_trains(pobench_cli, setting, tmp_path) -> None:
    path = tmp_path / "model/config.json"
    values: dict[str, Any] = json.loads(path.read_text()) | {"num_hidden_layers": 3}
    path.write_text(json.dumps(values))
    status, _, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo")
    assert status == 2 and "9 are missing" in err, err
    assert not Path("runs").exists()
