"""Whole jobs on ranked lists and on labelled answers, from the file to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pobench.registry import figures
from pobench.reporting.draw import draw
from pobench.results.arms import arms_of
from pobench.results.load import load_frames
from pobench.runs.stages import BY_NAME, density_ratio
from pobench.sources import cache_folder

RANKED = [
    {"prompt": f"say w{i}", "responses": [f"w{i} w1", f"w{i} w2 w3", f"w{i} w4"], "scores": [3, 1, 2]}
    for i in range(10)
]
APART = [{"prompt": f"say w{i}", "completion": f"w{i} w{i % 3}", "label": i % 3 > 0} for i in range(12)]  # one a prompt
STAGES = ("train", "heldout", "answers", "judge")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "rows", "unit", "heldout"),
    [("plackett_luce", RANKED, "lists", 9), ("kto_unpaired", APART, "answers", 0), ("dpo", RANKED, "pairs", 9)],
)
def test_a_whole_job_trains_on_what_its_loss_is_of(
    loss: str, rows: list[dict[str, Any]], unit: str, heldout: int, work_here, tmp_path, pobench_cli
) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = work_here(loss, STAGES, train__evaluate_every=1, data__pairs_from="all")
    trained = json.loads((run / "trained.json").read_text())
    data = json.loads(next((tmp_path / "runs/small").glob("data-*/data.json")).read_text())
    part = "train" if unit == "pairs" else unit
    assert trained[unit] == data["pairs"][part] > 0 and trained["causes"]["pairs"] == data["digests"][part]
    frames = load_frames(tmp_path / "runs")
    trained_on = "pairs from all" if unit == "pairs" else unit
    assert {*frames["runs"]["trained_on"]} == {trained_on, ""}  # of the start model ""
    assert data["pairs"]["heldout"] == heldout and len(frames.get("heldout", [])) == 2 * heldout
    assert len(frames["verdicts"]) == 2 * 3  # three prompts, the start model's answers and the run's
    assert pobench_cli("analyze", "--runs", str(tmp_path / "runs"), "--setting", "small")[0] == 0


def the_ratios() -> list[Path]:
    return sorted((cache_folder() / density_ratio.NAME).glob("*/density_ratio.json"))


@pytest.mark.slow
def test_density_ratios_are_computed_once_for_all_runs_and_name_those_that_read_them(
    work_here, stored_model, tmp_path
) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in APART))
    trained = json.loads((work_here("bco_udm", ("train",)) / "trained.json").read_text())
    (made,) = the_ratios()
    about = json.loads(made.read_text())
    assert trained["density_ratio"] == {**about["facts"], "embedder": ""}
    assert trained["causes"]["density_ratio"] == f"density_ratio-{made.parent.name}"
    work_here("bco_udm", ("train",), train__lr=2e-3)
    assert the_ratios() == [made]
    table = draw(figures.get("density-ratios"), load_frames(tmp_path / "runs"))
    assert {*table["Desirable"]} == {about["facts"]["desirable"]} and {*table["Embedded by"]} == {"start model"}

    other = tmp_path / "embedder"
    shutil.copytree(stored_model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.5 * weight for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    run = work_here("bco_udm", ("train",), data__prompt_embedder=str(other))
    theirs = json.loads((run / "trained.json").read_text())
    assert theirs["density_ratio"]["embedder"] == "embedder" and len(the_ratios()) == 2
    assert theirs["causes"]["pairs"] == trained["causes"]["pairs"] and theirs["causes"] != trained["causes"]
    labels = [arm.label for arm in arms_of(load_frames(tmp_path / "runs")["runs"]) if not arm.is_start]
    assert len(set(labels)) == 3 and sum("embedder" in label for label in labels) == 1


def test_density_ratios_are_planned_for_single_answers_alone(plan_here, tmp_path) -> None:
    def ratio_tasks(loss: str, rows: list[dict[str, Any]]) -> list[Any]:
        (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [task for task in plan_here(loss).tasks if task.stages == ("density_ratio",)]

    (task,) = ratio_tasks("bco_udm", APART)
    assert task.title == "density ratios of the prompts" and "train" in BY_NAME and not BY_NAME["density_ratio"].per_run
    assert ratio_tasks("kto_unpaired", APART) == ratio_tasks("bco_udm", RANKED) == []
