"""The local files of a data set: found whole, in one order, and refused where rows would be left out in silence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pytest

from pobench.data.audit import Audit
from pobench.data.prepare import demonstration_rows
from pobench.data.prompts import eval_prompts, prompt_rows
from pobench.data.rows import Fault, preference_lines, read_rows
from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError
from pobench.row_files import local_rows
from pobench.runs import start_model
from pobench.runs.stages import answers
from pobench.settings.resolve import resolve
from pobench.settings.schema import AnswersConfig, SftConfig
from pobench.sources import fetch_rows, rows_digest


def row(name: str) -> dict[str, str]:
    return {"prompt": f"say {name}", "chosen": "w1", "rejected": "w2"}


def write(file: Path, *names: str) -> Path:
    """Rows with these prompts, in a file of the kind that its ending says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame([row(name) for name in names])
    if file.suffix == ".parquet":
        frame.to_parquet(file)
    elif file.suffix == ".csv":
        frame.to_csv(file, index=False)
    else:
        frame.to_json(file, orient="records", lines=True)
    return file


def read(source: Path | str, **options: Any) -> list[str]:
    """What the prompts of a source ask for."""
    found = load_preferences(fetch_rows(str(source), **options))
    assert found.faults == []
    return [preference.prompt[0].content.removeprefix("say ") for preference in found.preferences]


# ---------------------------------------------------------------- several files


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_a_folder_and_a_pattern_of_shards_are_read_whole_in_the_order_of_their_names(tmp_path, ending) -> None:
    for place in (1, 0, 2):
        write(tmp_path / f"deep/data/train-{place:05d}-of-00003.{ending}", f"a{place}", f"b{place}")
    everything = ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert read(tmp_path / "deep") == everything
    assert read(tmp_path / f"deep/data/*.{ending}") == read(tmp_path / f"**/*.{ending}") == everything
    assert fetch_rows(str(tmp_path / "deep")).name == "deep (3 files)"


def test_a_shard_that_is_named_alone_is_read_alone_and_called_a_part(tmp_path) -> None:
    for place in (0, 1):
        write(tmp_path / f"train-{place:05d}-of-00002.parquet", f"a{place}")
    one = tmp_path / "train-00001-of-00002.parquet"
    assert read(one) == ["a1"] and fetch_rows(str(one)).name == f"{one.name} (1 of 2 shards)"
    assert read(tmp_path / "train-00000*") == ["a0"]
    assert "(1 of 2 shards)" in Audit.of_file(load_preferences(fetch_rows(str(one)))).text()


def test_a_path_with_brackets_is_a_path_before_it_is_a_pattern(tmp_path) -> None:
    assert read(write(tmp_path / "mine[1].jsonl", "a")) == ["a"]
    write(tmp_path / "m1.jsonl", "b")
    assert read(tmp_path / "m[1].jsonl") == ["b"]


def test_faults_notes_and_converted_rows_name_the_file_and_the_row_in_it(tmp_path) -> None:
    write(tmp_path / "a.jsonl", "one", "two")
    (tmp_path / "b.jsonl").write_text("\nno row\n" + json.dumps(row("three")) + "\n" + json.dumps(row("one")) + "\n")
    found = load_preferences(fetch_rows(str(tmp_path / "*.jsonl")))
    assert [str(fault) for fault in found.faults] == ["row b.jsonl:2: broken JSON; got Expecting value at column 1"]
    assert [str(p.row) for p in found.preferences] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:3"]
    frame = Audit.of_file(found).frame().set_index("fault")
    assert frame.loc["duplicated row", "rows"] == '["b.jsonl:4"]'
    assert "row b.jsonl:4" in Audit.of_file(found).text()
    (line,) = preference_lines(found.preferences[2:]).splitlines()
    assert {"row": 3, "file": "b.jsonl"}.items() <= json.loads(line).items()
    numbers = [number for number, _ in read_rows(local_rows(str(tmp_path / "*.jsonl")))]
    assert numbers == sorted(set(numbers)), "orders the rows, and tells them apart"


def test_a_single_file_keeps_its_plain_row_numbers(tmp_path) -> None:
    (number, fault), _ = read_rows(fetch_rows(str(write(tmp_path / "a.jsonl", "one", "two"))))
    assert type(number) is int and not isinstance(fault, Fault)


def test_the_digest_is_of_every_file_in_order_and_not_of_their_names(tmp_path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", name) for name in ("a", "b")]
    pattern = str(tmp_path / "*.jsonl")
    digest = rows_digest(fetch_rows(pattern))
    assert digest == rows_digest(fetch_rows(str(tmp_path)))
    files[0].rename(tmp_path / "aa.jsonl")
    assert rows_digest(fetch_rows(pattern)) == digest
    files[1].rename(tmp_path / "a0.jsonl")  # read first now
    swapped = rows_digest(fetch_rows(pattern))
    write(tmp_path / "aa.jsonl", "c")
    assert len({digest, swapped, rows_digest(fetch_rows(pattern))}) == 3


# ---------------------------------------------------------------- saved folders, splits and configurations


def test_what_save_to_disk_wrote_is_read_in_its_order(tmp_path) -> None:
    rows = datasets.Dataset.from_list([row(name) for name in "abcde"]).select([4, 0, 1, 3])
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    assert read(tmp_path / "saved") == ["e", "a", "b", "d"]
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "splits")
    assert read(tmp_path / "splits") == ["e", "a", "b", "d"] and read(tmp_path / "splits", split="test") == ["a"]
    with pytest.raises(
        PobenchError, match=r"no split 'tset'; did you mean 'test'\? Set data\.split\. Known: train, test"
    ):
        fetch_rows(str(tmp_path / "splits"), split="tset")
    (tmp_path / "saved/data-00001-of-00002.arrow").unlink()
    with pytest.raises(PobenchError, match=r"not whole; missing: data-00001-of-00002\.arrow"):
        fetch_rows(str(tmp_path / "saved"))


README = """---
configs:
- config_name: en
  data_files: en/*.jsonl
- config_name: de
  data_files:
  - split: train
    path: de/train-*
  - split: test
    path: de/held.jsonl
---
"""


def test_configurations_of_a_folder_are_named_by_the_subset(tmp_path) -> None:
    (tmp_path / "README.md").write_text(README)
    write(tmp_path / "en/a.jsonl", "en")
    write(tmp_path / "de/train-00000-of-00002.jsonl", "de0")
    write(tmp_path / "de/train-00001-of-00002.jsonl", "de1")
    write(tmp_path / "de/held.jsonl", "held")
    assert read(tmp_path, subset="en") == ["en"]
    assert read(tmp_path, subset="de") == ["de0", "de1"] and read(tmp_path, subset="de", split="test") == ["held"]
    assert fetch_rows(str(tmp_path), subset="de", split="test").name.endswith("(de, test, 1 file)")
    with pytest.raises(PobenchError, match=r"several configurations; set data\.subset to one of: en, de"):
        fetch_rows(str(tmp_path))
    with pytest.raises(PobenchError, match=r"no configuration 'dee'; did you mean 'de'\? Known: en, de"):
        fetch_rows(str(tmp_path), subset="dee")


def test_prompts_and_conversations_have_a_subset_of_their_own_which_the_message_names(tmp_path) -> None:
    (tmp_path / "README.md").write_text(README)
    for name in ("en/a.jsonl", "de/train-1.jsonl", "de/held.jsonl"):
        row = {"id": name, "prompt": f"ask {name}", "response": "yes"}
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    source = str(tmp_path)
    prompts = eval_prompts(AnswersConfig(source=source, subset="de", split="test"))
    assert [row["id"] for row in prompts] == ["de/held.jsonl"]
    values = {"lr": 1e-5, "epochs": 1, "batch_size": 1}
    assert demonstration_rows(SftConfig(source=source, subset="en", **values)).name.endswith("(en, 1 file)")
    for section, read_it in {
        "answers": lambda: eval_prompts(AnswersConfig(source=source)),
        "sft": lambda: demonstration_rows(SftConfig(source=source, **values)),
    }.items():
        with pytest.raises(PobenchError, match=rf"several configurations; set {section}\.subset to one of: en, de"):
            read_it()
    with pytest.raises(PobenchError, match="several configurations; name the files of one: en, de"):
        prompt_rows(source, None, "tune.prompts")


def test_a_section_without_a_subset_is_named_as_before_there_was_one(tmp_path) -> None:
    assert "subset" not in answers.causes(resolve("smollm2", "simpo")[0], SimpleNamespace(prompts="p", precise=str))
    assert "subset" in start_model.SOURCES


def test_another_source_takes_neither_the_subset_nor_the_columns_of_the_settings_own(tmp_path) -> None:
    setting = tmp_path / "own.yaml"
    setting.write_text("extends: smollm2\ndata: {subset: de, columns: {prompt: ask}, ignore: [note]}\n")
    data = resolve(str(setting), "simpo", data="mine.jsonl")[0].data
    assert (data.subset, data.columns, data.ignore) == (None, {}, [])


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (
            ["a.jsonl", "b.jsonl", "c.csv"],
            r"c\.csv would not be read; name the files by a pattern, such as .*/\*\.jsonl",
        ),
        (["train.jsonl", "more.jsonl"], r"more\.jsonl would not be read"),
        (["mine.jsonl", "mine.recipe.json"], r"several kinds \(\.json, \.jsonl\)"),
        (["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], r"not whole; missing: train-00001-of-00003"),
        (["train-00000-of-00001.jsonl", "train-00000-of-00002.jsonl"], r"'train' is there twice, in shards of 1 and 2"),
        (["test.jsonl"], r"no split 'train'.*Known: test"),
        (["notes.md"], r"no rows \(\.jsonl.*are found"),
    ],
)
def test_a_folder_that_would_be_read_in_part_is_refused(tmp_path, files, fault) -> None:
    for name in files:
        write(tmp_path / name, name)
    with pytest.raises(PobenchError, match=fault):
        fetch_rows(str(tmp_path))


def test_a_part_of_a_split_is_no_local_source(tmp_path) -> None:
    file = write(tmp_path / "mine.jsonl", "a", "b")
    assert read(file, split="train_prefs") == ["a", "b"]
    with pytest.raises(PobenchError, match=r"'train\[:1\]' is no split of local rows.*data\.max_pairs"):
        fetch_rows(str(file), split="train[:1]")
    with pytest.raises(PobenchError, match="no such file, and none that it matches as a pattern"):
        fetch_rows(str(tmp_path / "*.csv"))
