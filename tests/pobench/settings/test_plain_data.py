"""A setting is plain data under a name that can be a folder; whatever else it holds is one message."""

from __future__ import annotations

from pathlib import Path

import pytest

from pobench.data.prompts import prompt_rows
from pobench.errors import PobenchError
from pobench.registry import load_plugin, losses
from pobench.settings.read import read_setting
from pobench.settings.resolve import parse_overrides, resolve
from pobench.sources import fetch_model

BOMB = "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
LOSS = """from pobench import LossOutput, register_loss
@register_loss("{name}", source="a test")
def loss(policy, *, scale: float = {scale}):
    return LossOutput(-policy.chosen.mean * scale, policy.chosen.mean, policy.rejected.mean)
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("extends: own.yaml\n", "goes in a circle"),
        ("extends: [tiny]\n", "the name or file of a setting is needed"),
        ("extends: tiny\ndata: {source: 2024-01-01}\n", "line 2: a date"),
        ("extends: tiny\n2024-01-01: 3\n", "a key must be text"),
        ("extends: tiny\njudge: {settings: !!set {a, b}}\n", "line 2: !!set"),
        ("extends: tiny\njudge:\n  settings: &a\n    x: *a\n", "an alias stands inside its own anchor"),
        (BOMB, "more than 100,000 values"),
        ("[" * 100_000, "more than 64 levels"),
        ("extends: tiny\ntrain: {lr: 1}\ntrain: {lr: 2}\n", "line 3: the key 'train' occurs twice"),
        ("extends: tiny\ntrain: {lr: !!bool maybe}\n", "cannot be read"),
        ("extends: tiny\nlosses: {3: {beta: 1}}\n", "put 3 in quotes"),
        *[(f'extends: tiny\nname: "{name}"\n', "cannot be a name") for name in ("../../evil", "a/b", "", "..", "a[b]")],
        ("extends: tiny\nname: report\n", "pobench uses itself"),
    ],
    ids=lambda text: text[:24],
)
def test_what_is_no_plain_setting_is_one_message(text, expected, tmp_path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(PobenchError, match=r"own\.yaml") as refused:
        read_setting(str(tmp_path / "own.yaml"))
    assert expected in str(refused.value)


@pytest.mark.parametrize("name", ["x" * 5000, "../settings/tiny", "tiny\0"])
def test_a_setting_that_does_not_ship_is_unknown_whatever_its_name(name) -> None:
    with pytest.raises(PobenchError, match="unknown setting"):
        read_setting(name)


def test_seeds_have_64_bits() -> None:
    with pytest.raises(PobenchError, match=r"seeds.0: got 18446744073709551616"):
        resolve("tiny", "dpo", seeds=[2**64])


def test_an_infinite_learning_rate_is_refused() -> None:
    with pytest.raises(PobenchError, match=r"train.lr: got inf"):
        resolve("tiny", "dpo", overrides={"train.lr": float("inf")})


def test_a_date_on_the_command_line_is_text() -> None:
    assert parse_overrides(["data.revision=2024-01-01"]) == {"data.revision": "2024-01-01"}


@pytest.fixture
def registered():
    losses.names()
    items, aliases = dict(losses._items), dict(losses._aliases)
    yield
    losses._items, losses._aliases = items, aliases


def plugin(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["start", "train", "all", "../x", "a,b", "x" * 65])
def test_a_loss_has_a_name_of_its_own(name, tmp_path, registered) -> None:
    with pytest.raises(PobenchError, match=r"loss: '.*name"):
        load_plugin(plugin(tmp_path / "own.py", LOSS.format(name=name, scale=1.0)))


def test_a_plugin_that_exits_is_one_message(tmp_path) -> None:
    with pytest.raises(PobenchError, match="fails at import: SystemExit: 3"):
        load_plugin(plugin(tmp_path / "own.py", "import sys; sys.exit(3)"))


def test_two_plugins_of_one_file_name_do_not_replace_each_other(tmp_path, registered) -> None:
    load_plugin(plugin(tmp_path / "a/own.py", LOSS.format(name="mine", scale=1.0)))
    with pytest.raises(PobenchError, match="registered twice"):
        load_plugin(plugin(tmp_path / "b/own.py", LOSS.format(name="mine", scale=2.0)))
    assert losses.get("mine").settings == {"scale": 1.0}


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {"a": 3}}'])
def test_a_junk_index_is_one_message(index, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(PobenchError, match=r"model.safetensors.index.json"):
        fetch_model(str(tmp_path))


@pytest.mark.parametrize("prompt", ["3", "[1]", '[{"role": "user"}]', '{"a": 1}', "true", '" "', "[[]]"])
def test_a_malformed_prompt_row_is_named(prompt, tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "fine"}\n{"prompt": ' + prompt + "}\n")
    with pytest.raises(PobenchError, match="row 2: no `prompt`"):
        prompt_rows(str(tmp_path / "prompts.jsonl"), None, "answers.source")
