"""How time and memory grow with the number of pairs: 1k, 2k, 4k, 8k, each in a process of its own.

    python benchmarks/scaling.py --out FILE                     the built-in small model; minutes
    python benchmarks/scaling.py --model smollm2 --data pairs.jsonl

The time covers all work of a job on its pairs: reading, tokenising, the audit, the reference pass, one epoch of training.
Between steps, off the clock, the machine's rate is measured: `growth_ratio_at_equal_rate` has it divided out. A size that takes
longer than `--size-seconds` ends the run; sizes that `--out` holds under the same options are not measured again.
If the file has too few pairs, prompts are combined with other pairs' answers. Every size then has the same prompts and
answers equally often, so tokens grow exactly with pairs, and no two rows are equal.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
from children import in_child

from pobench.data.chat import Chat
from pobench.data.prepare import read_sources
from pobench.data.rows import Preference
from pobench.data.shapes import load_preferences
from pobench.data.tokens import tokenize
from pobench.errors import PobenchError
from pobench.files import write_text
from pobench.settings.job import Job
from pobench.sources import fetch_rows
from pobench.types import Group


def main() -> None:
    parser = peers.parser_of(__doc__, model="tiny")
    parser.add_argument("--sizes", default="1000,2000,4000,8000", help="pairs, smallest first")
    parser.add_argument("--loss", default="dpo")
    parser.add_argument("--size-seconds", type=float, default=7200.0, help="of one size, at most")
    peers.run_script(measure, parser)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    sizes = sizes_of(given.sizes)
    job = peers.job_of(given.model, given.loss, data=given.data, lr=given.lr, max_length=given.max_length)
    found = fitting(job)
    base = largest_divisor(math.gcd(*sizes), len(found))
    about = {"benchmark": "scaling", **peers.common(given, job), "loss": job.loss, "distinct_prompts": base}
    runs = stored(given.out, about)
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            if size in runs:
                peers.say(f"{size} pairs: stored")
                continue
            place = Path(folder) / str(size)
            place.mkdir()
            data = place / "pairs.jsonl"
            write_text(data, "".join(json.dumps(row) + "\n" for row in crossed(found[:base], size)))
            work = peers.work_of(given, job, place / "pairs.json", place)
            of_size = replace(job, data=job.data.model_copy(update={"source": str(data)}))
            runs[size] = in_child(one_size, of_size, work, size, seconds=given.size_seconds)
            peers.say(f"{size} pairs: {runs[size]['seconds']:.1f} s, peak {runs[size]['peak_memory'] / 1e9:.2f} GB")
            if given.out:
                write_text(given.out, json.dumps(result_of(about, runs), indent=1) + "\n")
    return result_of(about, {size: runs[size] for size in sizes})


def result_of(about: dict[str, Any], runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What is known after some of the sizes."""
    return {
        **about,
        "sizes": {
            str(size): {k: v for k, v in run.items() if k != "environment"} for size, run in sorted(runs.items())
        },
        **growth(runs),
        "environment": runs[min(runs)]["environment"],
    }


def stored(file: Path | None, about: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The sizes that a file holds, if they were measured under the same options."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else {}
        if {key: found.get(key) for key in about} != about:
            return {}
        return {
            int(size): {**run, "environment": found["environment"]}
            for size, run in found["sizes"].items()
            if run.get("mean_flops")
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def one_size(job: Job, work: peers.Work, size: int) -> dict[str, Any]:
    """All that a job does with its pairs. Seconds, bytes.

    One batch goes ahead of the clock: what is paid once a process, whatever the size, would flatter the growth.
    """
    (read,) = read_sources(job)
    pairs = read.of_unit("pairs")
    with tempfile.TemporaryDirectory() as elsewhere:
        peers.save_pairs(Path(work.pairs), pairs[: work.batch_size])
        peers.run_pobench(replace(work, place=elsewhere))
    started = time.perf_counter()
    (read,) = read_sources(job)
    pairs = read.of_unit("pairs")
    data = time.perf_counter() - started
    if len(pairs) != size:
        raise PobenchError(f"{size} rows were made, {len(pairs)} pairs are left of them")
    peers.save_pairs(Path(work.pairs), pairs)
    run = peers.run_pobench(replace(work, rated=True))
    return {
        "seconds": data + run["train_seconds"],
        "data_seconds": data,
        "reference_seconds": run["reference_seconds"],
        "train_seconds": run["train_seconds"] - run["reference_seconds"],
        "peak_memory": run["peak_memory"],
        "mean_flops": run["mean_flops"],
        "pairs": len(pairs),
        "tokens": sum(Group.of(p).tokens for p in pairs),
        "steps": run["steps"],
        "environment": run["environment"],
    }


def growth(runs: dict[int, dict[str, Any]]) -> dict[str, float]:
    """From the smallest size to the largest: quotients of pairs, tokens, seconds and memory."""
    first, last = runs[min(runs)], runs[max(runs)]
    return {
        "pairs_ratio": last["pairs"] / first["pairs"],
        "tokens_ratio": last["tokens"] / first["tokens"],
        "growth_ratio": last["seconds"] / first["seconds"],
        "training_growth_ratio": last["train_seconds"] / first["train_seconds"],
        "growth_ratio_at_equal_rate": last["seconds"] * last["mean_flops"] / (first["seconds"] * first["mean_flops"]),
        "memory_growth_ratio": last["peak_memory"] / first["peak_memory"],
    }


def sizes_of(text: str) -> list[int]:
    """The sizes. Raises PobenchError unless they are two or more whole numbers in ascending order."""
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) < 2 or sizes[0] < 1 or sizes != sorted(set(sizes)):
        raise PobenchError(
            f"--sizes {text!r}: two or more growing whole numbers are needed, such as 1000,2000,4000,8000"
        )
    return sizes


def fitting(job: Job) -> list[Preference]:
    """Preferences, one for each prompt, whose prompt fits with every other's answers into the job's length."""
    found = load_preferences(fetch_rows(job.data.source, split=job.data.split, revision=job.data.revision))
    half = job.data.max_length // 2
    pairs, _ = tokenize(
        found,
        Chat.of(Path(peers.model_folder(job)), job.model),
        max_length=job.data.max_length,
        max_prompt_length=min(half, job.data.max_prompt_length),
        on_bad_row="drop",
    )
    fit = {p.id for p in pairs if max(len(p.chosen), len(p.rejected)) <= half}
    return list({p.prompt: p for p in found.preferences if p.id in fit}.values())


def crossed(preferences: Sequence[Preference], size: int) -> list[dict[str, Any]]:
    """`size` distinct rows: in round k the i-th prompt gets the answers of the (i + k)-th. Raises PobenchError if a round
    would come again."""
    n = len(preferences)
    if size > n * n:
        raise PobenchError(f"{n} prompts and their answers make {n * n} distinct pairs; {size} are needed")
    rows = []
    for place in range(size):
        turn, i = divmod(place, n)
        asked, answered = preferences[i], preferences[(i + turn) % n]
        rows.append(
            {
                "id": f"{asked.id}-{turn}",
                "prompt": [{"role": m.role, "content": m.content} for m in asked.prompt],
                "chosen": answered.chosen,
                "rejected": answered.rejected,
            }
        )
    return rows


def largest_divisor(of: int, at_most: int) -> int:
    """Raises PobenchError where there is nothing to divide into."""
    if at_most < 1:
        raise PobenchError("--data: no pair fits half of the length; give a larger --max-length")
    return max(d for d in range(1, min(of, at_most) + 1) if of % d == 0)


if __name__ == "__main__":
    main()
