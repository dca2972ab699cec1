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
from drawn import AS_IT_COMES, OURS, THEIRS, bar, bars_axis, estimate, step_figure, table
from gpu_page import ABSENT, gpu_figure, gpu_more, gpu_result, gpu_rows, write_gpu_block
from matplotlib.figure import Figure
from trl_variants import IN_ANY_ORDER, TRAINERS, TWINS, WITH_REFERENCE

from pobench.errors import PobenchError
from pobench.files import whole, write_text
from pobench.reporting import plot
from pobench.reporting.looks import look_of
from pobench.reporting.tables import clean

RESULTS = Path(__file__).parent / "results"
SIDES = {
    "pobench": ("pobench", OURS),
    "trl_best": ("TRL at its best", THEIRS),
    "trl_default": ("TRL as it comes", AS_IT_COMES),
}

ANSWERERS = {
    "pobench": "pobench",
    "generate": "generate",
    "generate_static": "generate, static cache",
    "continuous": "continuous batching",
}


NAMED = {"model": "model", "arithmetic": "dtype"}  # columns of every table, where a result has them


class Kind(NamedTuple):
    """One benchmark: its heading, captions, and the functions that make its table and picture from a result. more: further
    tables by what stands above them."""

    title: str
    about: str
    rows: Callable[[dict[str, Any]], list[dict[str, Any]]]
    figure: Callable[[dict[str, Any]], Figure]
    absent: str = ""  # what the page says while there is no result; "": nothing
    more: Callable[[dict[str, Any]], dict[str, list[dict[str, Any]]]] = lambda result: {}
    of: Callable[[dict[str, Any]], str] = lambda result: (  # what a result was measured on
        f"{result['model']} on {result['data']}, batches of {result['batch_size']} pairs"
    )


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
            result = gpu_result(file) if file.suffix == ".jsonl" else json.loads(file.read_text(encoding="utf-8"))
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
            {"file": stem, **{name: result[key] for name, key in NAMED.items() if key in result}, **row}
            for stem, result in mine.items()
            for row in kind.rows(result)
        ]
        parts += [f"## {kind.title}", kind.about, table(rows)]
        for stem, result in mine.items():
            parts += [part for about, more in kind.more(result).items() for part in (about, table(more))]
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
        packages = machine["packages"]
        versions = ", ".join(f"{p} {packages[p]}" for p in ("torch", "transformers", "trl") if p in packages)
        device = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
        lines.append(
            clean(f"{stem}: {device}, {machine['threads']} threads, Python {machine['python']}, {versions}")
            + clean(f", commit {commit}; " if (commit := machine.get("commit")) else "; ")
            + clean(KINDS[result["benchmark"]].of(result))
        )
    return "\n".join(f"- {line}" for line in lines)


# ---------------------------------------------------------------- against TRL


def _vs_trl_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "loss": loss,
            "pairs": result["pairs"],
            "tokens a pair": _mean_tokens(result),
            "times faster than TRL as it comes": estimate(found["ratio_default"]),
            "times faster than TRL at its best": estimate(found["ratio_best"]),
            "its pairs a pass": _pairs_a_pass(found.get("trl_best")),
            "memory, whole process": estimate(found["memory_ratio"]),
            "memory beyond weights, gradients, moments": estimate(found["activation_ratio"]),
            "and beyond libraries": estimate(found["activation_ratio_beyond_libraries"]),
            "share of the matrix-product peak": estimate(found["sides"]["pobench"]["mfu"]),
            "largest difference of losses": f"{found['agreement']['largest_relative_difference']:.1e}",
        }
        for loss, found in result["losses"].items()
    ]


def _mean_tokens(result: dict[str, Any]) -> float:
    """Of a pair: its prompt and both answers."""
    return float(sum(result["mean_tokens"].values()))


def _pairs_a_pass(best: dict[str, Any] | None) -> str:
    """Of TRL at its best, and whether a trial found it or somebody gave it; a number that was given may not be its best."""
    if not best:
        return "–"
    searched = best.get("trials") or best.get("search")
    return f"{best['micro']}, {'by trial' if searched else 'given'}"


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
    for cell in _cells(result).values():
        row = {"arithmetic": cell["dtype"], "TRL's": cell["trainer"], "tokens a pair": f"{cell['tokens']}"}
        if "fault" in cell:
            rows.append({**row, "TRL's best options, or why nothing was measured": cell["fault"]})
            continue
        (loss, found), *_ = cell["result"]["losses"].items()
        rows.append(
            {
                **row,
                "tokens a pair": f"{cell['tokens']}, {_mean_tokens(cell['result']):.0f}",
                "loss": loss,
                "times faster than TRL as it comes": estimate(found["ratio_default_at_equal_rate"]),
                "than TRL at its best": estimate(found["ratio_best_at_equal_rate"]),
                "memory, whole process": estimate(found["memory_ratio"]),
                "beyond weights, gradients, moments": estimate(found["activation_ratio"]),
                "share of the peak": estimate(found["sides"]["pobench"]["mfu"]),
                "TRL's best options, or why nothing was measured": _options(found["trl_best"], TWINS[loss].trainer),
                "difference of losses": f"{found['agreement']['largest_relative_difference']:.1e}",
                "processor, commit": _where(cell["result"]["environment"]),
            }
        )
    return rows


def _cells(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By arithmetic, tokens and trainer, whenever they were measured."""
    trainers, cells = list(TRAINERS), result["cells"]
    place = {name: (cell["dtype"], cell["tokens"], trainers.index(cell["trainer"])) for name, cell in cells.items()}
    return {name: cells[name] for name in sorted(cells, key=place.__getitem__)}


def _where(environment: dict[str, Any]) -> str:
    commit = environment.get("commit")
    return f"{environment['cpu']}, {commit}" if commit else str(environment["cpu"])


def _options(best: dict[str, Any], trainer: str) -> str:
    """The fastest options of a trainer of TRL, shortly, and what was tried."""
    cannot = {"precomputed": trainer not in WITH_REFERENCE, "grouped": trainer not in IN_ANY_ORDER}
    said = [f"micro-batches of {best['micro']}"]
    said += [
        name
        for name in ("precomputed", "checkpointing", "grouped", "compiled", "liger")
        if best[name] and not cannot.get(name)
    ]
    said += [f"{name} {best[name]}" for name in ("workers", "optimiser", "attention") if best[name]]
    tried = [row for row in best["search"] if "fault" not in row]
    return f"{', '.join(said)}; {f'{len(tried)} variants tried' if tried else 'only pairs a pass tried'}"


def _searches(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What was tried of TRL in every cell whose options were searched."""
    rows = [
        {
            "cell": name,
            "option": row["option"],
            "seconds a pair": row.get("seconds_per_pair"),
            "at the rate of the first": _at_first_rate(row, found["trl_best"]["search"][0]),
            "kept, or why not": row.get("fault") or ("kept" if row.get("kept") else "no gain"),
        }
        for name, cell in _cells(result).items()
        if "fault" not in cell
        for found in cell["result"]["losses"].values()
        for row in found["trl_best"]["search"]
    ]
    about = (
        "What the searches tried: one option after the other is changed, from the best so far, and kept if that pays."
    )
    return {about: rows} if rows else {}


def _at_first_rate(row: dict[str, Any], first: dict[str, Any]) -> float | None:
    """Seconds a pair, had the machine multiplied as fast as in the first trial."""
    if "fault" in row or "fault" in first:
        return None
    return float(row["seconds_per_pair"] * row["matmul_flops"] / first["matmul_flops"])


def _against_figure(result: dict[str, Any]) -> Figure:
    cells = {name: cell for name, cell in _cells(result).items() if "fault" not in cell}
    figure, (ax,) = plot.panels(1, columns=1, height=0.8 + 0.34 * max(1, len(cells)), sharex=False, sharey=False)
    for place, cell in enumerate(cells.values()):
        (found,) = cell["result"]["losses"].values()
        for shift, (side, colour) in enumerate({"default": AS_IT_COMES, "best": THEIRS}.items()):
            value = found[f"ratio_{side}_at_equal_rate"]
            bar(ax, place + 0.36 * shift - 0.18, value["median"], colour, (value["min"], value["max"]), height=0.34)
    bars_axis(ax, list(cells), "times pobench's time, light: TRL as it comes, dark: at its best")
    ax.axvline(1, color=OURS, linewidth=1)
    return figure


def _vs_trl_figure(result: dict[str, Any]) -> Figure:
    return step_figure(
        {
            f"{label}, {loss}": (found["sides"][side], colour)
            for loss, found in result["losses"].items()
            for side, (label, colour) in SIDES.items()
        }
    )


# ---------------------------------------------------------------- answers


def _answer_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "program": ANSWERERS[side],
            "prompts": result["prompts"],
            "batch": result["answered_together"] if side == "pobench" else result["batch_size"],
            "tokens a second": estimate(found["tokens_per_second"]),
            "pobench is faster": "–" if side == "pobench" else estimate(found["ratio_at_equal_rate"]),
            "same texts as pobench's": found["same_answers"],
            "peak memory, GB": found["peak_memory"] / 1e9,
        }
        for side, found in result["sides"].items()
    ]


def _answer_faults(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    rows = [{"program": ANSWERERS[side], "why": why} for side, why in result["faults"].items()]
    return {"Not measured:": rows} if rows else {}


def _answer_figure(result: dict[str, Any]) -> Figure:
    figure, (ax,) = plot.panels(1, columns=1, height=0.5 + 0.28 * len(result["sides"]), sharex=False)
    for place, (side, found) in enumerate(result["sides"].items()):
        speed = found["tokens_per_second"]
        bar(ax, place, speed["median"], OURS if side == "pobench" else THEIRS, (speed["min"], speed["max"]))
    bars_axis(ax, [ANSWERERS[side] for side in result["sides"]], "tokens a second")
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
        bar(ax, place, seconds, THEIRS if kind == "limit" else OURS)
    labels = [*result["seconds"], "the limit's products\nat the machine's rate"]
    bars_axis(ax, labels, f"s, one optimiser step of {result['pairs']} pairs")
    ax.set_yticks(range(len(labels)), labels)
    return figure


# ---------------------------------------------------------------- growth


def _scaling_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "loss": result["loss"],
            "pairs": run["pairs"],
            "tokens": run["tokens"],
            "tokens a micro-batch": result["micro_tokens"],
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
        bar(left, place, seconds, look_of(loss).colour)
    bars_axis(left, list(losses), "s, one epoch")
    bars = {
        "pobench, measured": (result["pobench_seconds"], OURS),
        "TRL at its best,\none reference pass": (totals["best_reference_kept"], THEIRS),
        "TRL at its best": (totals["best"], THEIRS),
        "TRL as it comes": (totals["default"], AS_IT_COMES),
    }
    for place, (seconds, colour) in enumerate(bars.values()):
        bar(right, place, seconds, colour)
    bars_axis(right, list(bars), "s, all losses; TRL's are estimates from measured steps")
    right.set_ylim(max(len(losses), len(bars)) / 2 - 0.4, -0.6)  # bars a little thicker than a loss's, not fat
    return figure


# ---------------------------------------------------------------- a stranger's path


def _first_hour_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps, and what they come to."""
    steps = [
        {"step": step["name"], "command": step["command"], "seconds": step["seconds"], "ended": step["ended"]}
        for step in result["steps"]
    ]
    site = result["site"]
    shown = f"{site['pages']} pages, {len(site['absent'])} links lead nowhere" if site else "not reached"
    return [*steps, {"step": "all", "command": f"the site: {shown}", "seconds": result["seconds"], "ended": ""}]


def _first_hour_figure(result: dict[str, Any]) -> Figure:
    seconds: dict[str, float] = {}
    for step in result["steps"]:
        seconds[step["name"]] = seconds.get(step["name"], 0.0) + step["seconds"]
    figure, (ax,) = plot.panels(1, columns=1, height=0.5 + 0.28 * len(seconds))
    for place, spent in enumerate(seconds.values()):
        bar(ax, place, spent, OURS)
    bars_axis(ax, list(seconds), "s")
    return figure


KINDS = {
    "first_hour": Kind(
        "From a clone to a shared site",
        "What a stranger types, in an empty folder with empty caches: the README's installation and first report, a loss and "
        "54 pairs of one's own, the site. What one writes in between is not timed.",
        _first_hour_rows,
        _first_hour_figure,
        "Not measured yet. `python3 benchmarks/first_hour.py --out benchmarks/results/first_hour.json` takes half an hour.",
        of=lambda result: (
            f"the first report on {result['setting']}{', nothing installed' if result['installed'] else ''}"
        ),
    ),
    "vs_trl": Kind(
        "The training step, against TRL's DPOTrainer",
        "Same token ids, same batches, same objective (checked over several optimiser steps before anything is timed), "
        "interleaved. Brackets: the least and the greatest over rounds. Times faster: more is better; memory: pobench's over "
        "that of TRL at its best, less is better. The share of the peak counts every pair's prompt whole; where prompts begin "
        "alike (vs_trl-own), pobench computes that once, so it multiplies less than the share says.",
        _vs_trl_rows,
        _vs_trl_figure,
    ),
    "against_trl": Kind(
        "Every trainer of TRL",
        "As above, pairs cut from the setting's texts to a mean length: the one asked for, and that of the pairs drawn. In "
        "every cell, trials say how many pairs TRL takes in a forward pass at its best. Where variants were tried, each of its "
        "other options was changed in turn and kept if that paid; the other cells have what is fastest nearly everywhere: "
        "the reference computed before, where the trainer has one, no checkpointing, and batches of like lengths, where the "
        "trainer takes them. Ratios have the machine's rate divided out, which every program measures "
        "between its steps. TRL has no trainer for BCO; its DPO trainer has that loss on pairs. ORPO is compared with the "
        "likelihood term that its paper prints, and timed with TRL's own.",
        _against_rows,
        _against_figure,
        "Not measured yet. `python benchmarks/against_trl.py` takes hours, and goes on where it was stopped.",
        _searches,
    ),
    "answers": Kind(
        "Answers, against transformers' generate",
        "The same weights and prompts, greedy; each answer ends where the model ends it. The programs answer a block of "
        "prompts each in turn. Brackets: the least and the greatest over blocks; how much faster pobench is: seconds a token, "
        "with the machine's rate divided out. In bf16 sums are rounded by the shapes of a batch, so that texts differ.",
        _answer_rows,
        _answer_figure,
        "Not measured yet. `python benchmarks/answers.py --out benchmarks/results/answers.json` takes some minutes.",
        _answer_faults,
        of=lambda result: f"{result['model']} on {result['prompts']} prompts of {result['data']}",
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
        gpu_rows,
        gpu_figure,
        ABSENT,
        gpu_more,
    ),
    "scaling": Kind(
        "Growth with the number of pairs",
        "Reading, tokenising, the reference pass and one epoch, each size in a process of its own.",
        _scaling_rows,
        _scaling_figure,
    ),
    "suite": Kind(
        "All losses of pairs",
        "pobench is measured; TRL's side is an estimate from measured steps of its DPOTrainer.",
        _suite_rows,
        _suite_figure,
    ),
}


if __name__ == "__main__":
    main()
