"""Turn benchmarks/results/*.json into a README with the numbers and a picture (PNG and SVG) for every file.

    python benchmarks/page.py [--results FOLDER]

Equal files give equal bytes.
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

# No loss's colours: what is compared here are programs.
OURS, THEIRS, AS_IT_COMES = INK, FAINT, "#aeb6bf"
SIDES = {
    "pobench": ("pobench", OURS),
    "trl_best": ("TRL at its best", THEIRS),
    "trl_default": ("TRL as it comes", AS_IT_COMES),
}


class Kind(NamedTuple):
    """One benchmark: its heading, captions, and the functions that make its table and picture from a result."""

    title: str
    about: str
    rows: Callable[[dict[str, Any]], list[dict[str, Any]]]
    figure: Callable[[dict[str, Any]], Figure]
    absent: str = ""  # what the page says while there is no result; "": nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    try:
        print(build(parser.parse_args().results))
    except PobenchError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def build(folder: Path) -> Path:
    """Write pictures and README.md into `folder`; returns the README's path. Raises PobenchError that lists all unusable
    files."""
    results, faults = {}, []
    for file in sorted(folder.glob("*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
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
        parts += [f"## {kind.title}", kind.about, to_markdown(make_table(pd.DataFrame(rows))).rstrip()]
        for stem, result in mine.items():
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


def _gpu_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "layers": side.removesuffix(" layers"),
            "parameters, billions": result["parameters"] / 1e9,
            "pairs": result["pairs"],
            "seconds a pair": _estimate(found["seconds_per_pair"]),
            "peak memory, GB": _estimate({k: v / (1 if k == "n" else 1e9) for k, v in found["peak_memory"].items()}),
            "share of the matrix-product peak": _estimate(found["mfu"]),
            "largest difference of losses from the CPU's": f"{result['agreement']['largest_relative_difference']:.1e}",
        }
        for side, found in result["sides"].items()
    ]


def _gpu_figure(result: dict[str, Any]) -> Figure:
    return _step_figure({side: (found, OURS) for side, found in result["sides"].items()})


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
            "peak memory, GB": run["peak_memory"] / 1e9,
        }
        for run in result["sizes"].values()
    ]


def _scaling_figure(result: dict[str, Any]) -> Figure:
    runs = list(result["sizes"].values())
    pairs = np.array([run["pairs"] for run in runs], dtype=float)
    figure, (left, right) = plot.panels(2, columns=2, height=2.6, sharey=False)
    seconds = np.array([run["seconds"] for run in runs])
    left.plot(
        pairs, seconds[0] * pairs / pairs[0], color=THEIRS, linestyle=(0, (4, 3)), linewidth=1, label="proportional"
    )
    left.plot(pairs, seconds, color=OURS, marker="o", markersize=5, label="measured")
    left.set(
        yscale="log", title=f"time: × {result['growth_ratio']:.3g} for × {result['pairs_ratio']:.3g} pairs", ylabel="s"
    )
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


def _bar(ax: Axes, place: int, value: float, colour: str, ends: tuple[float, float] | None = None) -> None:
    """A bar from zero, the number behind it; ends: the least and greatest over rounds, as a thin line."""
    ax.barh(place, value, height=0.62, color=colour, linewidth=0)
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
    "profile": Kind(
        "Where the step's time goes",
        "One optimiser step under torch's profiler, by the operations' own time. The limit counts the useful products "
        "alone: no attention, no pads, nothing twice.",
        _profile_rows,
        _profile_figure,
    ),
    "gpu": Kind(
        "The training step on one GPU",
        "A random model of Llama's shape, bf16 arithmetic over fp32 weights, pairs of UltraFeedback's proportions; layers as "
        "pobench has them, and by torch.compile. The losses are compared with the CPU's on a smaller model. The goal is a "
        "share of 0.5.",
        _gpu_rows,
        _gpu_figure,
        "Not measured: no GPU at hand. `python benchmarks/gpu.py --out benchmarks/results/gpu.json` does it on one.",
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
