"""Whole jobs on ranked lists and on labelled answers, from the file to the report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pobench.results.load import load_frames

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
    assert {*frames["runs"]["trained_on"]} == {unit, ""}  # of the start model ""
    assert data["pairs"]["heldout"] == heldout and len(frames.get("heldout", [])) == 2 * heldout
    assert len(frames["verdicts"]) == 2 * 3  # three prompts, the start model's answers and the run's
    assert pobench_cli("analyze", "--runs", str(tmp_path / "runs"), "--setting", "small")[0] == 0
