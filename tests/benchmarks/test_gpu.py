"""The benchmark of a GPU, tried on the processor: that each part leaves rows, and what becomes of a run that is cut off."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pobench.errors import PobenchError


@pytest.fixture
def gpu() -> Any:
    return importlib.import_module("gpu")


def options(out: Path, **changes: Any) -> argparse.Namespace:
    values = {
        "small": True, "seconds": 600.0, "parts": None, "pairs": None, "batch_size": None, "micro_tokens": 512, "warm_up": 1,
        "dtype": "fp32", "threads": 1, "out": out,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def rows_in(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def in_this_process(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are calls: a new interpreter for each would take most of the time. Results pass through JSON as theirs do."""

    def call(function: Any, *arguments: Any, seconds: float | None = None) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(function(*arguments)))
        return found

    def call_all(calls: Any, **how: Any) -> dict[str, Any]:
        return {name: call(function, *arguments) for name, (function, arguments) in calls.items()}

    monkeypatch.setattr(gpu, "in_child", call)
    monkeypatch.setattr(gpu, "in_turn", call_all)
    find = importlib.util.find_spec
    absent = ("trl", "vllm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *on: None if name in absent else find(name, *on))


def test_a_bare_machine_leaves_numbers_of_pobench_and_names_what_is_not_installed(
    gpu: Any, in_this_process: None, tmp_path: Path
) -> None:
    out = tmp_path / "gpu.jsonl"
    gpu.run(gpu.complete(options(out, parts="machine,dpo,answers")))
    rows = rows_in(out)
    assert [(r["part"], r.get("program"), r["status"]) for r in rows] == [
        ("machine", None, "measured"),
        ("dpo", "TRL", "not installed"),
        ("dpo", "pobench", "measured"),
        ("answers", "pobench", "measured"),
        ("answers", "generate", "measured"),
        ("answers", "vllm", "not installed"),
    ]
    step = rows[2]
    assert step["parameters"] > 0 and step["peak_memory"] > 0 and step["mfu"] > 0
    assert step["seconds_per_pair"]["n"] == 2 and len(step["step_seconds"]) == 3
    assert rows[3]["answered_tokens"] == rows[4]["answered_tokens"] == 4 * 8
    written = out.read_bytes()
    gpu.run(gpu.complete(options(out, parts="machine,dpo,answers")))
    assert out.read_bytes() == written  # all is there


@pytest.mark.slow  # five losses, three steps each, twice
def test_processor_and_device_agree(gpu: Any, in_this_process: None, tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    gpu.run(gpu.complete(options(out, parts="agreement")))
    rows = rows_in(out)
    assert [row["loss"] for row in rows] == ["dpo", "simpo", "kto", "orpo", "bco_pair"]
    assert all(row["status"] == "measured" and row["largest_relative_difference"] <= 1e-5 for row in rows), rows


@pytest.mark.slow  # minutes: every part, each in processes of its own; TRL and compiled layers too
def test_every_part_runs_to_its_end(gpu: Any, tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    gpu.run(gpu.complete(options(out, seconds=3600.0)))
    rows = rows_in(out)
    assert {row["part"] for row in rows} == {part.name for part in gpu.PARTS}
    assert not [row for row in rows if row["status"] == "no time left"], rows
    lean = [row for row in rows if row.get("variant") == "lean layers"]
    assert {row["status"] for row in lean} == {"measured"} and len(lean) == 2  # of both models


def test_a_part_that_fails_is_a_row_and_is_tried_again(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, begun = tmp_path / "gpu.jsonl", []

    def part(name: str, *faults: Exception) -> Any:
        left = list(faults)

        def rows(setup: Any, seconds: float) -> Any:
            begun.append(name)
            yield {"status": "measured", "number": 1.0}
            if left:
                raise left.pop()

        return gpu.Part(name, 10, 1, rows)

    late = gpu.TookTooLongError("late: ended after 10 s")
    monkeypatch.setattr(gpu, "PARTS", (part("well"), part("broken", ValueError("a fault")), part("late", late)))
    given = gpu.complete(options(out))
    gpu.run(given)
    told = [(row["part"], row["status"], row.get("why")) for row in rows_in(out)]
    assert told == [
        ("well", "measured", None),
        ("broken", "measured", None),
        ("broken", "failed", "ValueError: a fault"),
        ("late", "measured", None),
        ("late", "no time left", "late: ended after 10 s"),
    ]
    begun.clear()
    gpu.run(given)
    assert begun == ["broken", "late"]
    begun.clear()
    gpu.run(gpu.complete(options(tmp_path / "other", seconds=0.0)))
    assert begun == [] and {row["status"] for row in rows_in(tmp_path / "other")} == {"no time left"}


def test_a_line_that_was_cut_off_spoils_no_other(gpu: Any, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    gpu.append_row(out, {"part": "a", "status": "measured"})
    with open(out, "a") as file:
        file.write('{"part": "b", "sta')
    gpu.append_row(out, {"part": "c", "status": "failed"})
    assert [row["part"] for row in gpu.read_rows(out)] == ["a", "c"]
    assert not gpu.is_done("c", gpu.read_rows(out)) and gpu.is_done("a", gpu.read_rows(out))


def test_compiling_is_what_the_warm_up_took_beyond_later_steps(gpu: Any, in_this_process: None, tmp_path: Path) -> None:
    setup = gpu.Setup(gpu.complete(options(tmp_path / "rows")), tmp_path)
    work = setup.work("random-tiny", "simpo", warm_up=2)
    run = {
        "step_seconds": [30.0, 5.0, 4.0, 4.0, 8.0], "seconds_per_pair": 16 / 12, "graphs": [3, 4, 4, 4, 5], "mfu": 0.3,
        "shape": [1, 1, 1, 7], "useful_tokens_per_second": 100.0, "matmul_flops": 1.0, "peak_memory": 1,
        "reference_seconds": 0.0,
    }  # fmt: skip
    row = gpu.training_row(run, work)
    assert row["compile_seconds"] == 35 - 2 * 4 and (row["graphs_in_warm_up"], row["graphs_after_warm_up"]) == (4, 1)
    assert row["seconds_per_pair"] == {"median": 1.0, "min": 1.0, "max": 2.0, "n": 3}
    assert row["mfu"] == pytest.approx(0.3 * 4 / 3)  # the median step took 3/4 of the mean
    assert row["parameters"] == 7


def test_a_side_without_memory_beside_the_others_runs_again_by_itself(
    gpu: Any, in_this_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = gpu.Setup(gpu.complete(options(tmp_path / "rows")), tmp_path)
    work = setup.work("random-tiny", "simpo")
    ours = gpu.run_pobench(work)

    def in_turn(calls: Any, **how: Any) -> dict[str, Any]:
        return {name: {"fault": "CUDA out of memory"} if len(calls) > 1 and name == "b" else ours for name in calls}

    monkeypatch.setattr(gpu, "in_turn", in_turn)
    sides = {name: (gpu.run_pobench, work) for name in ("a", "b")}
    rows = list(gpu.compared(setup, "random-tiny", "simpo", sides, 60.0))
    assert [(row["variant"], row["status"], row["interleaved"]) for row in rows] == [
        ("a", "measured", True),
        ("b", "measured", False),
    ]


def test_a_run_that_should_stop_ends_with_the_first_step_behind_the_warm_up(
    gpu: Any, in_this_process: None, tmp_path: Path
) -> None:
    setup = gpu.Setup(gpu.complete(options(tmp_path / "rows", pairs=24)), tmp_path)
    work = setup.work("random-tiny", "simpo")
    whole, cut = (gpu.run_pobench(gpu.replace(work, stop_at=at)) for at in (None, 0.0))
    assert (whole["steps"], cut["steps"]) == (7, 2)  # one to warm up, six or one to time
    assert whole["seconds_per_pair"] == pytest.approx(whole["seconds"] / 24)
    assert cut["seconds_per_pair"] == pytest.approx(cut["seconds"] / 4)
    # useful tokens of the whole epoch, and a sixth of them
    of = {name: run["useful_tokens_per_second"] * run["seconds"] for name, run in {"whole": whole, "cut": cut}.items()}
    assert of["cut"] == pytest.approx(of["whole"] / 6)


def test_a_wrong_command_line_lists_all_its_faults(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PobenchError) as caught:
        gpu.complete(options(tmp_path / "rows", small=False, pairs=10, batch_size=4, parts="dpo,grpo"))
    for words in ("multiple of --batch-size 4", "no 'grpo'", "there is none"):
        assert words in str(caught.value)


def test_random_pairs_have_ultrafeedbacks_lengths() -> None:
    inputs, peers = (importlib.import_module(name) for name in ("random_inputs", "peers"))
    pairs = inputs.random_pairs(2000, 100, 1)
    # a standard deviation of 0.66 of the mean, so 1.5 % of it for the mean of 2000; the longest are cut
    assert peers.lengths_of(pairs) == pytest.approx(inputs.PROPORTIONS, rel=0.05)
    assert max(len(p.prompt) + len(p.chosen) for p in pairs) <= 2048
    assert min(t for p in pairs for t in p.prompt) >= 5  # no special token
