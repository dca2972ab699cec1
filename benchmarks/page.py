"""Turn benchmarks/results into a README with the numbers and a picture (PNG and SVG) for every file, and say in
docs/benchmarks.md what was measured on a GPU.

    python benchmarks/page.py [--results FOLDER]

Results are *.json, and rows of `gpu.py`, *.jsonl. Equal files give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pobench.errors import PobenchError
from pobench.files import whole, write_text
from pobench.reporting import plot
from pobench.reporting.looks import FAINT, INK, look_of
from pobench.reporting.tables import clean, make_table, show_number, to_markdown
from pobench.types import Estimate

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs" / "benchmarks.md"
GPU_BLOCK = ("<!-- written by benchmarks/page.py: -->", "<!-- until here -->")
# No loss's colours: what is compared here are programs.
OURS, THEIRS, AS_IT_COMES = INK, FAINT, "#aeb6bf"
SIDES = {
    "pobench": ("pobench", OURS),
    "trl_best": ("TRL at its best", THEIRS),
    "trl_default": ("TRL as it comes", AS_IT_COMES),
}


class Kind(NamedTuple):
    """One benchmark: its heading, captions, and the functions that make its table and picture from a result. more: further
    tables by what stands above them."""

    title: str
    about: str
    rows: Callable[[dict[str, Any]], list[dict[str, Any]]]
    figure: Callable[[dict[str, Any]], Figure]
    absent: str = ""  # what the page says while there is no result; "": nothing
    more: Callable[[dict[str, Any]], dict[str, list[dict[str, Any]]]] = lambda result: {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    try:
        folder = parser.parse_args().results
        print(build(folder))
        if folder.resolve() == RESULTS.resolve():
            write_gpu_block(folder)
    except PobenchError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def build(folder: Path) -> Path:
    """Write pictures and README.md into `folder`; returns the README's path. Raises PobenchError that lists all unusable
    files."""
    results, faults = {}, []
    for file in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        try:
            result = _gpu_result(file) if file.suffix == ".jsonl" else json.loads(file.read_text(encoding="utf-8"))
            if result["benchmark"] not in KINDS:
                raise KeyError("benchmark")
            results[file.stem] = result
        except (ValueError, KeyError, TypeError, OSError):
            faults.append(f"{file.name}: no result of {', '.join(KINDS)}")
    if not results and not faults:
        faults.append(f"{str(folder)!r} holds no *.json; a benchmark writes one with --out")
    if faults:
        raise PobenchError("\n".join(faults))
    parts = ["# Measured", _conditions(results)]
    for name, kind in KINDS.items():
        mine = {stem: result for stem, result in results.items() if result["benchmark"] == name}
        if not mine:
            parts += [f"## {kind.title}", kind.absent] if kind.absent else []
            continue
        rows = [
            {"file": stem, "model": result["model"], "arithmetic": result["dtype"], **row}
            for stem, result in mine.items()
            for row in kind.rows(result)
        ]
        parts += [f"## {kind.title}", kind.about, _table(rows)]
        for stem, result in mine.items():
            parts += [part for about, more in kind.more(result).items() for part in (about, _table(more))]
            with plot.style(f"pobench-{stem}"):
                figure = kind.figure(result)
                pictures = {"png": plot.png(figure), "svg": plot.svg(figure, f"pobench-{stem}").encode()}
            for suffix, content in pictures.items():
                with whole(folder / f"{stem}.{suffix}") as partial:
                    partial.write_bytes(content)
            parts.append(f"![{clean(stem)}]({stem}.png)")
    page = folder / "README.md"
    write_text(page, "\n\n".join(parts) + "\n")
    return page


def _table(rows: list[dict[str, Any]]) -> str:
    return to_markdown(make_table(pd.DataFrame(rows))).rstrip()


def _conditions(results: dict[str, dict[str, Any]]) -> str:
    """One line for every file: what was measured, and on which machine."""
    lines = []
    for stem, result in results.items():
        machine = result["environment"]
        versions = ", ".join(f"{p} {machine['packages'].get(p)}" for p in ("torch", "transformers", "trl"))
        device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
        lines.append(
            clean(f"{stem}: {device}, {machine['threads']} threads, Python {machine['python']}, {versions}; ")
            + clean(f"{result['model']} on {result['data']}, batches of {result['batch_size']} pairs")
        )
    return "\n".join(f"- {line}" for line in lines)


def _estimate(spread: dict[str, float]) -> Estimate:
    return Estimate(spread["median"], spread["min"], spread["max"], int(spread["n"]))


# ---------------------------------------------------------------- against TRL


def _vs_trl_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "loss": loss,
            "pairs": result["pairs"],
            "times faster than TRL as it comes": _estimate(found["ratio_default"]),
            "times faster than TRL at its best": _estimate(found["ratio_best"]),
            "memory, whole process": _estimate(found["memory_ratio"]),
            "memory beyond weights, gradients, moments": _estimate(found["activation_ratio"]),
            "and beyond libraries": _estimate(found["activation_ratio_beyond_libraries"]),
            "share of the matrix-product peak": _estimate(found["sides"]["pobench"]["mfu"]),
            "largest difference of losses": f"{found['agreement']['largest_relative_difference']:.1e}",
        }
        for loss, found in result["losses"].items()
    ]


def cell_line(cell: dict[str, Any]) -> str:
    """A cell of `against_trl.py` as a line."""
    (found,) = cell["result"]["losses"].values()
    default, best = (found[f"ratio_{side}_at_equal_rate"]["median"] for side in ("default", "best"))
    return (
        f"{default:.3g} times TRL as it comes, {best:.3g} times TRL at its best; memory "
        f"{found['memory_ratio']['median']:.2f} of its best; {found['interleaved']}"
    )


def _against_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for cell in result["cells"].values():
        row = {"arithmetic": cell["dtype"], "TRL's": cell["trainer"], "tokens a pair": cell["tokens"]}
        if "fault" in cell:
            rows.append({**row, "best options, not measured": cell["fault"]})
            continue
        (loss, found), *_ = cell["result"]["losses"].items()
        rows.append(
            {
                **row,
                "loss": loss,
                "times faster than TRL as it comes": _estimate(found["ratio_default_at_equal_rate"]),
                "than TRL at its best": _estimate(found["ratio_best_at_equal_rate"]),
                "memory, whole process": _estimate(found["memory_ratio"]),
                "beyond weights, gradients, moments": _estimate(found["activation_ratio"]),
                "share of the peak": _estimate(found["sides"]["pobench"]["mfu"]),
                "best options, not measured": _options(found["trl_best"]),
                "difference of losses": f"{found['agreement']['largest_relative_difference']:.1e}",
                "processor": cell["result"]["environment"]["cpu"],
            }
        )
    return rows


def _options(best: dict[str, Any]) -> str:
    """TRL's fastest options, shortly, and how many were tried."""
    said = [f"micro-batches of {best['micro']}"]
    said += [name for name in ("precomputed", "checkpointing", "grouped", "compiled", "liger") if best[name]]
    said += [f"{name} {best[name]}" for name in ("workers", "optimiser", "attention") if best[name]]
    tried = [row for row in best["search"] if "fault" not in row]
    return f"{', '.join(said)}; {len(tried)} tried" if tried else ", ".join(said)


def _against_figure(result: dict[str, Any]) -> Figure:
    cells = {name: cell for name, cell in result["cells"].items() if "fault" not in cell}
    figure, (ax,) = plot.panels(1, columns=1, height=0.8 + 0.34 * max(1, len(cells)), sharex=False, sharey=False)
    for place, cell in enumerate(cells.values()):
        (found,) = cell["result"]["losses"].values()
        for shift, (side, colour) in enumerate({"default": AS_IT_COMES, "best": THEIRS}.items()):
            value = found[f"ratio_{side}_at_equal_rate"]
            _bar(ax, place + 0.36 * shift - 0.18, value["median"], colour, (value["min"], value["max"]), height=0.34)
    _bars_axis(ax, list(cells), "times pobench's time, light: TRL as it comes, dark: at its best")
    ax.axvline(1, color=OURS, linewidth=1)
    return figure


def _vs_trl_figure(result: dict[str, Any]) -> Figure:
    return _step_figure(
        {
            f"{label}, {loss}": (found["sides"][side], colour)
            for loss, found in result["losses"].items()
            for side, (label, colour) in SIDES.items()
        }
    )


def _step_figure(rows: dict[str, tuple[dict[str, Any], str]]) -> Figure:
    """Time, memory and use of the machine, a bar a row. rows: label → (what was measured, colour)."""
    shown = {
        "seconds_per_pair": ("seconds a pair", 1.0),
        "peak_memory": ("peak memory, GB", 1e-9),
        "mfu": ("share of the matrix-product peak", 1.0),
    }
    figure, axes = plot.panels(len(shown), columns=3, height=0.5 + 0.28 * len(rows), sharex=False)
    for ax, (key, (label, unit)) in zip(axes, shown.items(), strict=True):
        for place, (measured, colour) in enumerate(rows.values()):
            spread = {k: v * unit for k, v in measured[key].items()}
            _bar(ax, place, spread["median"], colour, (spread["min"], spread["max"]))
        _bars_axis(ax, list(rows), label)
    return figure


# ---------------------------------------------------------------- where the step's time goes


def _profile_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    total = sum(result["seconds"].values())
    return [
        {"of the step": kind, "seconds": seconds, "share": seconds / total}
        for kind, seconds in result["seconds"].items()
    ] + [{"of the step": "the limit's products at this machine's rate", "seconds": result["limit_seconds"]}]


def _profile_figure(result: dict[str, Any]) -> Figure:
    figure, (ax,) = plot.panels(1, columns=1, height=0.8 + 0.24 * len(result["seconds"]), sharex=False, sharey=False)
    rows = {**result["seconds"], "limit": result["limit_seconds"]}
    for place, (kind, seconds) in enumerate(rows.items()):
        _bar(ax, place, seconds, THEIRS if kind == "limit" else OURS)
    labels = [*result["seconds"], "the limit's products\nat the machine's rate"]
    _bars_axis(ax, labels, f"s, one optimiser step of {result['pairs']} pairs")
    ax.set_yticks(range(len(labels)), labels)
    return figure


# ---------------------------------------------------------------- one GPU


def _gpu_result(file: Path) -> dict[str, Any]:
    """The rows of `gpu.py`, the last of each kind, as a result. Raises KeyError if there is no row of the machine, or if the
    rows are a trial's."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in _whole_rows(file):
        latest[tuple(row.get(key) for key in ("part", "loss", "model", "program", "variant"))] = row
    rows = list(latest.values())
    machine = next((row for row in rows if row["part"] == "machine" and row["status"] == "measured"), {"trial": True})
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


def _gpu_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "model": row["model"],
            "loss": row["loss"],
            "program": row["variant"],
            "parameters, billions": row["parameters"] / 1e9,
            "seconds a pair": _estimate(row["seconds_per_pair"]),
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


def _gpu_more(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
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


def _gpu_figure(result: dict[str, Any]) -> Figure:
    def once(value: float) -> dict[str, float]:
        return dict.fromkeys(("median", "min", "max"), value)

    return _step_figure(
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
    results = [_gpu_result(file) for file in sorted(folder.glob("gpu*.jsonl"))]
    if not results:
        return KINDS["gpu"].absent
    lines = [f"Measured on {result['environment']['device']}:\n\n{_table(_gpu_rows(result))}" for result in results]
    return "\n\n".join(lines)


def write_gpu_block(folder: Path, page: Path = DOCS) -> None:
    """Put `gpu_block` between its two marks. Raises PobenchError if the page has none."""
    text = page.read_text(encoding="utf-8")
    before, found, rest = text.partition(GPU_BLOCK[0])
    _, ended, after = rest.partition(GPU_BLOCK[1])
    if not (found and ended):
        raise PobenchError(f"{page.name} has no place for what was measured on a GPU")
    write_text(page, f"{before}{GPU_BLOCK[0]}\n\n{gpu_block(folder)}\n\n{GPU_BLOCK[1]}{after}")


# ---------------------------------------------------------------- growth


def _scaling_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "loss": result["loss"],
            "pairs": run["pairs"],
            "tokens": run["tokens"],
            "seconds": run["seconds"],
            "of which data": run["data_seconds"],
            "of which reference": run["reference_seconds"],
            **_at_equal_rate(run, result),
            "peak memory, GB": run["peak_memory"] / 1e9,
        }
        for run in result["sizes"].values()
    ]


def _at_equal_rate(run: dict[str, Any], result: dict[str, Any]) -> dict[str, float]:
    """The seconds that a size would have taken at the first size's rate of products, where rates were measured."""
    first = next(iter(result["sizes"].values())).get("mean_flops")
    return {"seconds at the first size's rate": run["seconds"] * run["mean_flops"] / first} if first else {}


def _scaling_figure(result: dict[str, Any]) -> Figure:
    runs = list(result["sizes"].values())
    pairs = np.array([run["pairs"] for run in runs], dtype=float)
    figure, (left, right) = plot.panels(2, columns=2, height=2.6, sharey=False)
    seconds = np.array(
        [_at_equal_rate(run, result).get("seconds at the first size's rate", run["seconds"]) for run in runs]
    )
    grown, rated = seconds[-1] / seconds[0], ", at one rate" if runs[0].get("mean_flops") else ""
    left.plot(
        pairs, seconds[0] * pairs / pairs[0], color=THEIRS, linestyle=(0, (4, 3)), linewidth=1, label="proportional"
    )
    left.plot(pairs, seconds, color=OURS, marker="o", markersize=5, label="measured")
    left.set(yscale="log", title=f"time: × {grown:.3g} for × {result['pairs_ratio']:.3g} pairs{rated}", ylabel="s")
    left.legend()
    right.plot(pairs, [run["peak_memory"] / 1e9 for run in runs], color=OURS, marker="o", markersize=5)
    right.set(title=f"peak memory: × {result['memory_growth_ratio']:.3g}", ylabel="GB")
    right.set_ylim(0, 1.25 * max(run["peak_memory"] for run in runs) / 1e9)
    plot.log_scale(left)
    for ax in (left, right):
        plot.log_scale(ax, "x")
        ax.set_xticks(pairs, [f"{int(n)}" for n in pairs])
        ax.set_xlabel("pairs")
    return figure


# ---------------------------------------------------------------- all losses


def _suite_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "losses": len(result["losses"]),
            "pairs": result["pairs"],
            "pobench, s": result["pobench_seconds"],
            "TRL as it comes, s (estimate)": result["trl_seconds"]["default"],
            "TRL at its best, s (estimate)": result["trl_seconds"]["best"],
            "share of TRL as it comes": result["time_ratio"]["default"],
            "share of TRL at its best": result["time_ratio"]["best"],
            "share, if TRL kept its reference": result["time_ratio"]["best_reference_kept"],
            "reference passes": result["reference_passes"],
        }
    ]


def _suite_figure(result: dict[str, Any]) -> Figure:
    losses, totals = result["losses"], result["trl_seconds"]
    figure, (left, right) = plot.panels(2, columns=2, height=0.5 + 0.2 * len(losses), sharex=False, sharey=False)
    for place, (loss, seconds) in enumerate(losses.items()):
        _bar(left, place, seconds, look_of(loss).colour)
    _bars_axis(left, list(losses), "s, one epoch")
    bars = {
        "pobench, measured": (result["pobench_seconds"], OURS),
        "TRL at its best,\none reference pass": (totals["best_reference_kept"], THEIRS),
        "TRL at its best": (totals["best"], THEIRS),
        "TRL as it comes": (totals["default"], AS_IT_COMES),
    }
    for place, (seconds, colour) in enumerate(bars.values()):
        _bar(right, place, seconds, colour)
    _bars_axis(right, list(bars), "s, all losses; TRL's are estimates from measured steps")
    right.set_ylim(max(len(losses), len(bars)) / 2 - 0.4, -0.6)  # bars a little thicker than a loss's, not fat
    return figure


def _bar(
    ax: Axes, place: float, value: float, colour: str, ends: tuple[float, float] | None = None, height: float = 0.62
) -> None:
    """A bar from zero, the number behind it; ends: the least and greatest over rounds, as a thin line."""
    ax.barh(place, value, height=height, color=colour, linewidth=0)
    if ends is not None:
        ax.plot(ends, [place, place], color=look_of("dpo").colour, linewidth=1.2)
    farthest = max(value, ends[1] if ends else value)
    ax.annotate(
        show_number(value), (farthest, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7.5,
        color=FAINT,
    )  # fmt: skip


def _bars_axis(ax: Axes, labels: list[str], unit: str) -> None:
    ax.set_yticks(range(len(labels)), [label if "\n" in label else plot.short(label) for label in labels])
    ax.tick_params(axis="y", labelcolor=INK)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.margins(x=0.18)
    ax.set_xlim(left=0)
    ax.grid(False, axis="y")
    ax.set_xlabel(unit)


KINDS = {
    "vs_trl": Kind(
        "The training step, against TRL's DPOTrainer",
        "Same token ids, same batches, same objective (checked over several optimiser steps before anything is timed), "
        "interleaved. Brackets: the least and the greatest over rounds. Times faster: more is better; memory: pobench's over "
        "that of TRL at its best, less is better.",
        _vs_trl_rows,
        _vs_trl_figure,
    ),
    "against_trl": Kind(
        "Every trainer of TRL",
        "As above, pairs cut from the setting's texts to 160 and 300 tokens, and TRL's options searched: each is changed in "
        "turn and kept where a trial found it to pay. Ratios have the machine's rate divided out, which every program measures "
        "between its steps. TRL has no trainer for BCO; its DPO trainer has that loss on pairs. ORPO is compared with the "
        "likelihood term that its paper prints, and timed with TRL's own.",
        _against_rows,
        _against_figure,
        "Not measured yet. `python benchmarks/against_trl.py` takes hours, and goes on where it was stopped.",
    ),
    "profile": Kind(
        "Where the step's time goes",
        "One optimiser step under torch's profiler, by the operations' own time. The limit counts the useful products "
        "alone: no attention, no pads, nothing twice.",
        _profile_rows,
        _profile_figure,
    ),
    "gpu": Kind(
        "On one GPU",
        "A random model of Llama's shape, bf16 arithmetic over fp32 weights, pairs with UltraFeedback's lengths. Programs "
        "of one part take their steps in turn; the median step, in brackets the least and the greatest. Compiling is what the "
        "warm-up took beyond as many later steps. Pairs are equal in all programs; TRL shuffles them.",
        _gpu_rows,
        _gpu_figure,
        "Not measured: no GPU at hand. `python benchmarks/gpu.py` measures it there in ten minutes.",
        _gpu_more,
    ),
    "scaling": Kind(
        "Growth with the number of pairs",
        "Reading, tokenising, the reference pass and one epoch, each size in a process of its own.",
        _scaling_rows,
        _scaling_figure,
    ),
    "suite": Kind(
        "All losses",
        "pobench is measured; TRL's side is an estimate from measured steps of its DPOTrainer.",
        _suite_rows,
        _suite_figure,
    ),
}


if __name__ == "__main__":
    main()
