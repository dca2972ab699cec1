"""The part of the page about one GPU, from the rows of `gpu.py`, and what docs/benchmarks.md says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from drawn import AS_IT_COMES, OURS, THEIRS, estimate, step_figure, table
from matplotlib.figure import Figure

from pobench.errors import PobenchError
from pobench.files import write_text

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
GPU_BLOCK = ("<!-- written by benchmarks/page.py: -->", "<!-- until here -->")
ABSENT = "Not measured: no GPU at hand. `python benchmarks/gpu.py` measures it there in ten minutes."


def gpu_result(file: Path) -> dict[str, Any]:
    """The rows of `gpu.py`, the last of each kind, as a result. Raises KeyError if there is no row of the machine, or if the
    rows are a trial's."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in _whole_rows(file):
        latest[tuple(row.get(key) for key in ("part", "loss", "model", "program", "variant"))] = row
    rows = list(latest.values())
    machine: dict[str, Any] = next(
        (row for row in rows if row["part"] == "machine" and row["status"] == "measured"), {"trial": True}
    )
    if machine["trial"]:
        raise KeyError("machine")
    trained = [row for row in rows if "step_seconds" in row]
    return {
        "benchmark": "gpu",
        "model": ", ".join(dict.fromkeys(row["model"] for row in trained)),
        "data": "random tokens",
        "dtype": machine["asked"]["dtype"],
        "batch_size": machine["asked"]["batch_size"],
        "environment": machine["environment"],
        "rows": rows,
    }


def _whole_rows(file: Path) -> list[dict[str, Any]]:
    """Without what was cut off when a run was ended."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in found if isinstance(row, dict) and {"part", "status"} <= set(row)]


def _trained(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in result["rows"] if "step_seconds" in row]


def gpu_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "model": row["model"],
            "loss": row["loss"],
            "program": row["variant"],
            "parameters, billions": row["parameters"] / 1e9,
            "seconds a pair": estimate(row["seconds_per_pair"]),
            "useful tokens a second": round(row["useful_tokens_per_second"]),
            "share of the matrix-product peak": row["mfu"],
            "peak memory, GB": row["peak_memory"] / 1e9,
            "compiling, s": row["compile_seconds"],
            "graphs after the warm-up": row["graphs_after_warm_up"],
            "times pobench's time": _over_pobench(row, result),
        }
        for row in _trained(result)
    ]


def _over_pobench(row: dict[str, Any], result: dict[str, Any]) -> float | None:
    """Seconds a pair over those of pobench in the same part; None for pobench's own."""
    ours = [
        other["seconds_per_pair"]["median"]
        for other in _trained(result)
        if other["variant"] == "pobench" and other["loss"] == row["loss"] and other["model"] == row["model"]
    ]
    return row["seconds_per_pair"]["median"] / ours[0] if ours and row["program"] != "pobench" else None


def gpu_more(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    rows = result["rows"]
    answers = [
        {
            "program": {"generate": "transformers' generate", "vllm": "vLLM"}.get(row["program"], row["program"]),
            "model": row["model"],
            "answers": row["answers"],
            "tokens a second": round(row["tokens_per_second"]),
            "seconds before the first answer": row["ready_seconds"],
        }
        for row in rows
        if row["part"] == "answers" and row["status"] == "measured"
    ]
    agreement = [
        {"loss": row["loss"], "largest difference of losses": f"{row['largest_relative_difference']:.1e}"}
        for row in rows
        if row["part"] == "agreement" and row["status"] == "measured"
    ]
    missing = [
        {"part": row["part"], "what": row.get("variant") or row.get("program"), "loss": row.get("loss"),
         "not measured": row["status"], "why": row.get("why")}
        for row in rows
        if row["status"] != "measured"
    ]  # fmt: skip
    tables = {
        "Answers, greedy, 64 in a batch; the same prompts, as many tokens from each.": answers,
        "Losses on the GPU and on the processor: a small model, three steps, fp32.": agreement,
        "Not measured:": missing,
    }
    return {about: found for about, found in tables.items() if found}


def gpu_figure(result: dict[str, Any]) -> Figure:
    def once(value: float) -> dict[str, float]:
        return dict.fromkeys(("median", "min", "max"), value)

    return step_figure(
        {
            f"{row['variant']}, {row['loss']}\n{row['model']}": (
                {**row, "peak_memory": once(row["peak_memory"]), "mfu": once(row["mfu"])},
                OURS if row["program"] == "pobench" else AS_IT_COMES if "as it comes" in row["variant"] else THEIRS,
            )
            for row in _trained(result)
        }
    )


def gpu_block(folder: Path) -> str:
    """What docs/benchmarks.md says of a GPU: a table of what was measured there, or that nothing was."""
    results = [gpu_result(file) for file in sorted(folder.glob("gpu*.jsonl"))]
    if not results:
        return ABSENT
    lines = [f"Measured on {result['environment']['device']}:\n\n{table(gpu_rows(result))}" for result in results]
    return "\n\n".join(lines)


def write_gpu_block(folder: Path, page: Path = DOCS) -> None:
    """Put `gpu_block` between its two marks. Raises PobenchError if the page has none."""
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(GPU_BLOCK[0])
    _, ended, after = rest.partition(GPU_BLOCK[1])
    if not (found and ended):
        raise PobenchError(f"{page.name} has no place for what was measured on a GPU")
    write_text(page, f"{before}{GPU_BLOCK[0]}\n\n{gpu_block(folder)}\n\n{GPU_BLOCK[1]}{after}")
