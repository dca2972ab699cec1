"""What a second process saves: each stage by one process and by two, every process on one core.

    python benchmarks/two_processes.py                   on two free cores, about four minutes
    python benchmarks/two_processes.py --share 0.1       a tenth of the work, to see that it runs

The setting is `tiny` with a random model of eight times its size, so that computing takes longer than starting, and fewer
answers; another one judges as a reward model, and AlpacaEval's questions are prompts of its world. The stages are done in turn
by one and by two processes, in folders of their own. Behind training both evaluate the model that one process has trained, and
every row must be the same. Seconds are of the clock, from the plan to the stored result. They hold the start of the processes,
of which the first row is an example; two that train or read the reference are new interpreters.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import peers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from pobench.data.chat import load_tokenizer
from pobench.data.prompts import eval_prompts
from pobench.errors import PobenchError
from pobench.files import sha256_of
from pobench.model.device import use_devices
from pobench.progress import without_bars
from pobench.runs.execute import execute
from pobench.runs.plan import Plan, make_plan
from pobench.settings.job import Job
from pobench.settings.resolve import resolve
from pobench.sources import fetch_model

SETTING, LOSS = "tiny", "dpo"
COUNTS = (1, 2)  # processes


class Step(NamedTuple):
    """What is timed: a stage, of these kinds of tasks."""

    name: str
    stage: str
    kinds: tuple[str, ...]


STEPS = (
    Step("reference pass", "reference", ("reference",)),
    Step("training", "train", ("loss",)),
    Step("held-out pairs", "heldout", ("loss",)),
    Step("training pairs", "trainpairs", ("loss",)),
    Step("answers of both models", "answers", ("start", "loss")),
    Step("verdicts of a reward model", "judge", ("start", "loss")),
    Step("answers to AlpacaEval of both models", "benchmarks", ("start", "loss")),
)
STAGES = tuple(dict.fromkeys(step.stage for step in STEPS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the pairs and prompts")
    parser.add_argument("--epochs", type=int, default=1, help="of training")
    parser.add_argument("--samples", type=int, default=2, help="answers to a prompt")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="also write that object to a file")
    parser.set_defaults(threads=1)
    peers.run_script(measure, parser, show=table)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        job = job_of(given, root)
        few = replace(job, answers=job.answers.model_copy(update={"max_prompts": 1}))
        begin = Step("a job of one prompt", "answers", ("start",))
        seconds: dict[str, dict[int, float]] = {step.name: {} for step in (begin, *STEPS)}
        for home, count in {
            "first": 1,
            "begin-1": 1,
            "begin-2": 2,
        }.items():  # the first starts the server
            with at_home(root / home, count):
                seconds[begin.name][count] = timed(few, root / home, begin)
        for step in STEPS:
            for count in COUNTS:
                with at_home(root / str(count), count):
                    seconds[step.name][count] = timed(job, root / str(count), step)
                peers.say(f"{step.name}, {count} of 2: {seconds[step.name][count]:.1f} s")
            if step.stage == "train":
                shutil.rmtree(root / "2")
                shutil.copytree(root / "1", root / "2")
        files = check_same(root / "1", root / "2")
    return {
        "benchmark": "two_processes",
        "setting": SETTING,
        "loss": LOSS,
        "share": given.share,
        "seconds": {name: {str(count): value for count, value in of.items()} for name, of in seconds.items()},
        "times_faster": {name: of[1] / of[2] for name, of in seconds.items()},
        "files_with_equal_rows": files,
        "processor": peers.cpu_name(),
    }


def job_of(given: argparse.Namespace, root: Path) -> Job:
    """The setting, smaller, with random models and a file of AlpacaEval's questions."""
    pairs, held_out, prompts = (max(8, int(given.share * most)) for most in (560, 1200, 300))
    model = random_model(root / "model", AutoModelForCausalLM)
    judge = random_model(root / "reward", AutoModelForSequenceClassification, num_labels=1)
    (job,) = resolve(SETTING, LOSS)
    asked = [row["messages"][-1]["content"] for row in eval_prompts(job.answers)]
    rows = [{"instruction": text, "output": text, "generator": "prompts"} for text in asked]
    (root / "alpaca.json").write_text(json.dumps(rows[:prompts]))
    changes = {
        "data.max_pairs": pairs,
        "data.max_held_out": held_out,
        "train.epochs": given.epochs,
        "answers.max_prompts": prompts,
        "answers.samples": given.samples,
        "answers.batch_size": 32,
        "judge.name": "reward_model",
        "judge.settings": {"model": str(judge)},
        "benchmarks.alpaca_eval.source": str(root / "alpaca.json"),
        "benchmarks.alpaca_eval.length_only": True,
        "benchmarks.alpaca_eval.max_new_tokens": job.answers.max_new_tokens,
    }
    (job,) = resolve(SETTING, LOSS, overrides=changes, model=str(model))
    return job


def random_model(folder: Path, kind: Any, **changes: Any) -> Path:
    """A model with the setting's tokenizer, twice as wide and twice as deep as its own."""
    source = fetch_model(f"builtin:{SETTING}")
    config = AutoConfig.from_pretrained(source, **changes)
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        setattr(config, name, 2 * getattr(config, name))
    torch.manual_seed(0)
    with without_bars():
        kind.from_config(config).save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def at_home(home: Path, count: int) -> Iterator[None]:
    """Jobs of so many processes, whose cache lies below `home`."""
    before = os.environ.get("POBENCH_CACHE")
    os.environ["POBENCH_CACHE"] = str(home / "cache")
    use_devices(count)
    try:
        yield
    finally:
        os.environ.pop("POBENCH_CACHE") if before is None else os.environ.update(POBENCH_CACHE=before)


def timed(job: Job, home: Path, step: Step) -> float:
    """Seconds of one step. Raises PobenchError where it fails or nothing is left of it."""
    plan: Plan = make_plan([job], home / "runs", STAGES)
    tasks = [t for t in plan.left if t.kind in step.kinds and (step.stage in t.stages)]
    if not tasks:
        raise PobenchError(f"{step.name}: nothing is left to do")
    only = replace(plan, tasks=tuple(replace(task, stages=(step.stage,)) for task in tasks))
    began = time.perf_counter()
    with contextlib.redirect_stderr(io.StringIO()):
        failed = [outcome.reason for outcome in execute(only) if outcome.status == "failed"]
    if failed:
        raise PobenchError(f"{step.name}: {failed[0]}")
    return time.perf_counter() - began


def check_same(one: Path, two: Path) -> int:
    """The number of files with rows behind training. Raises PobenchError where two processes have stored other rows."""
    found, others = (
        {p.relative_to(home).as_posix(): sha256_of(p) for p in rows_of(home)} for home in (one / "runs", two / "runs")
    )
    if differing := sorted(name for name in found.keys() | others.keys() if found.get(name) != others.get(name)):
        raise PobenchError(f"one and two processes stored other rows: {', '.join(differing)}")
    return len(found)


def rows_of(runs: Path) -> list[Path]:
    return [*runs.glob("*/*/*/*.parquet"), *runs.glob("*/*/benchmarks/*/*/answers.jsonl")]


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    rows = [
        {
            "stage": name,
            "one process, s": f"{of['1']:.1f}",
            "two, s": f"{of['2']:.1f}",
            "times faster": f"{of['1'] / of['2']:.2f}",
        }
        for name, of in result["seconds"].items()
    ]
    head = "| " + " | ".join(rows[0]) + " |\n|---|---|---|---|"
    lines = ["| " + " | ".join(row.values()) + " |" for row in rows]
    about = f"{result['setting']}, {result['loss']}; {result['processor']}; one core a process; "
    return "\n".join([head, *lines, "", f"{about}{result['files_with_equal_rows']} files have equal rows."])


if __name__ == "__main__":
    main()
