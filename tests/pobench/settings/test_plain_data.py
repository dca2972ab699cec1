"""A setting is plain data under a name that can be a folder; whatever else it holds is one message."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import create_model

from pobench.data.prompts import prompt_rows
from pobench.errors import PobenchError
from pobench.registry import benchmarks, get_loss, judges, load_plugin, losses
from pobench.settings.plain_yaml import plain_yaml
from pobench.settings.read import read_setting
from pobench.settings.resolve import parse_overrides, resolve
from pobench.settings.schema import Setting
from pobench.sources import fetch_model
from pobench.workflows.grid import Grid
from pobench.workflows.study import expand
from pobench.workflows.study_file import read_study
from pobench.workflows.tune import plan_tuning

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
        ("extends: tiny\ndata: {source: !!timestamp 2024-01-01}\n", "line 2: !!timestamp (2024-01-01)"),
        ("extends: tiny\n1: 3\n", "a key must be text"),
        ("extends: tiny\ntrain: {batch_size: !!int 1:30}\n", "line 2: '1:30' is not written as YAML 1.2 writes int"),
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


def numbers_without_ends(schema: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of the numbers in a JSON schema that lack a smallest or a largest value."""
    if isinstance(schema, list):
        for part in schema:
            yield from numbers_without_ends(part, path)
    if not isinstance(schema, dict):
        return
    if schema.get("type") in ("integer", "number"):
        ends = [{"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}]
        if not all(end & schema.keys() for end in ends):
            yield ".".join(path)
    for key, part in schema.items():
        yield from numbers_without_ends(part, path if key in ("anyOf", "items") else (*path, key))


WITHOUT = {"max_grad_norm": ".inf: no clipping", "checkpoint_seconds": ".inf: no checkpoint"}


def test_every_number_of_a_setting_lies_between_two_ends() -> None:
    schemas = {"setting": Setting.model_json_schema(), "grid": Grid.model_json_schema()}
    schemas |= {name: benchmarks.get(name).function.model_json_schema() for name in benchmarks.names()}
    shipped = (*map(get_loss, losses.names()), *map(judges.get, judges.names()))
    for item in (one for one in shipped if one.function.__module__.startswith("pobench.")):
        hints = get_type_hints(item.function, include_extras=True)
        schemas[item.name] = create_model(
            "m", **{k: (hints[k], v) for k, v in item.settings.items()}
        ).model_json_schema()
    open_ones = {f"{name}: {path}" for name, schema in schemas.items() for path in numbers_without_ends(schema)}
    assert {one for one in open_ones if not one.endswith(tuple(WITHOUT))} == set()
    assert len(open_ones) == 4, open_ones  # the loops of training and of SFT have both


@pytest.mark.parametrize("change", ["train.epochs=1e9", "train.lr=11", "train.micro_tokens=1e10", "simpo.beta=1e7"])
def test_a_number_beyond_its_end_is_refused(change) -> None:
    with pytest.raises(PobenchError, match=f"{change.partition('=')[0]}: got 1"):
        resolve("tiny", "simpo", overrides=parse_overrides([change]))


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e400"])
def test_a_learning_rate_that_is_not_finite_is_refused_through_every_door(value: str, tmp_path: Path) -> None:
    mine, grid = tmp_path / "mine.yaml", tmp_path / "grid.yaml"
    grid.write_text(f"lr: [1.0e-3, {value}]\nlosses: {{dpo: {{beta: [0.1]}}}}\n")

    def setting(text: str) -> None:
        mine.write_text(f"extends: tiny\n{text.format(value)}\n")
        resolve(str(mine), "dpo")

    def study(cells: str) -> None:
        mine.write_text(
            f"title: t\nquestion: q\nfigures: [settings-table]\ngrid: [{{losses: dpo, {cells.format(value)}}}]\n"
        )
        expand(read_study(str(mine)), "tiny")

    doors: list[Callable[[], object]] = [
        lambda: setting("train: {{lr: {}}}"),
        lambda: setting("losses: {{dpo: {{lr: {}}}}}"),
        lambda: resolve("tiny", "dpo", overrides=parse_overrides([f"train.lr={value}"])),
        lambda: resolve("tiny", "dpo", overrides=parse_overrides([f"dpo.lr={value}"])),
        lambda: plan_tuning("dpo", "tiny", grid=str(grid), dry=True),
        lambda: plan_tuning("dpo", "tiny", grid=str(grid), sampler="random", dry=True),
        lambda: study("values: {{train.lr: [{}]}}"),
        lambda: study("times: {{train.lr: [{}]}}"),
    ]
    for door in doors:
        with pytest.raises(PobenchError, match=r"inf|nan|1e400"):
            door()


YAML_1_2 = {  # the core schema; YAML 1.1 has 90, 8, 1000, true, false, true, false, a date and text for the first ten
    "1:30": "1:30",
    "010": 10,
    "1_000": "1_000",
    "yes": "yes",
    "no": "no",
    "On": "On",
    "OFF": "OFF",
    "2024-01-01": "2024-01-01",
    "5e-6": 5e-6,
    "0o10": 8,
    "0b11": "0b11",
    "0x1F": 31,
    "true": True,
    "FALSE": False,
    "~": None,
    "": None,
    "-.inf": float("-inf"),
    "inf": "inf",
    "+1.": 1.0,
    "'010'": "010",
    "!!str 5": "5",
}


@pytest.mark.parametrize("text", YAML_1_2)
def test_values_are_read_as_yaml_1_2_reads_them_in_files_and_on_the_command_line(text, tmp_path) -> None:
    (tmp_path / "own.yaml").write_text(f"extends: tiny\ndata:\n  revision: {text}\n")
    in_file = read_setting(str(tmp_path / "own.yaml"))[0]["data"]["revision"]
    typed = parse_overrides([f"data.revision={text}"])["data.revision"]
    assert (repr(in_file), repr(typed)) == (repr(YAML_1_2[text]),) * 2


def test_what_yaml_1_1_took_for_a_number_is_a_fault_and_no_other_number() -> None:
    with pytest.raises(PobenchError, match=r"train.epochs: got '1:30'"):
        resolve("tiny", "dpo", overrides=parse_overrides(["train.epochs=1:30"]))


def test_a_setting_of_a_loss_or_a_judge_is_of_its_own_type_and_not_of_one_that_converts() -> None:
    changes = ["ipo.average=no", "simpo.beta='2.0'", "judge.settings.graded=off"]  # `no` would be a text, which is true
    with pytest.raises(PobenchError) as refused:
        resolve("tiny", "ipo,simpo", overrides=parse_overrides(changes))
    assert [line.partition(";")[0] for line in str(refused.value).splitlines()] == [
        "judge.settings.graded: got 'off'",
        "ipo.average: got 'no'",
        "simpo.beta: got '2.0'",
    ]


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
def test_what_is_no_prompt_is_named(prompt, tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "fine"}\n{"prompt": ' + prompt + "}\n")
    with pytest.raises(PobenchError, match="row 2: no `prompt`"):
        prompt_rows(str(tmp_path / "prompts.jsonl"), None, "answers.source")


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([("robot", "hi")], "unknown role; got 'robot'"),
        ([("user", "hi"), ("assistant", "ho")], "the last message must be the user's; got one of the assistant"),
        ([("system", "hi")], "the last message must be the user's"),
        ([("user", "hi"), ("user", " ")], "the last message is empty"),
    ],
)
def test_turns_that_nobody_could_answer_are_named(turns, expected, tmp_path) -> None:
    prompt = [{"role": role, "content": content} for role, content in turns]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "fine"}\n' + json.dumps({"prompt": prompt}) + "\n")
    with pytest.raises(PobenchError, match=f"row 2: {expected}"):
        prompt_rows(str(tmp_path / "prompts.jsonl"), None, "answers.source")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Translate.", "input": "Bonjour"}, "`input` changes what is asked and is not read"),
        ({"prompt": "Why?", "system": "Be brief."}, "`system` changes what is asked and is not read"),
        ({"prompt": "[INST] Why? [/INST]"}, r"text of the chat template \[INST\] inside a turn"),
        ({"prompt": "Human: Why?\n\nAssistant:"}, "text of the chat template of a transcript inside a turn"),
        (
            {"prompt": [{"role": "user", "content": "<｜User｜>Why?<｜Assistant｜>"}]},
            "template .unknown. inside a turn",
        ),
    ],
)
def test_a_prompt_is_all_that_is_asked_and_nothing_else(row, expected, tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(PobenchError, match=expected):
        prompt_rows(str(tmp_path / "prompts.jsonl"), None, "answers.source")


def test_a_file_without_prompts_is_refused(tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text("\n")
    with pytest.raises(PobenchError, match=r"answers.source: '.*' holds no prompts"):
        prompt_rows(str(tmp_path / "prompts.jsonl"), None, "answers.source")


def test_what_one_reader_changes_the_next_one_does_not_see() -> None:
    first, _ = plain_yaml("grid: {beta: [0.1]}", "here")
    first["grid"]["beta"].append(9)
    assert plain_yaml("grid: {beta: [0.1]}", "here")[0] == {"grid": {"beta": [0.1]}}
