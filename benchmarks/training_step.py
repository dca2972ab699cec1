"""Measure time and memory of pobench's training step on this machine; prints one row of JSON.

    python benchmarks/training_step.py --setting smollm2 --loss simpo --pairs 32 --precision bf16

Warm-up steps and pad tokens are not counted. Peak memory is that of the whole process, libraries included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from pobench.data.order import mismatch
from pobench.data.prepare import prepare
from pobench.model.device import environment, make_accelerator
from pobench.model.load import load_model
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import sum_scorer
from pobench.registry import get_loss
from pobench.settings.resolve import resolve
from pobench.sources import fetch_model
from pobench.training.loop import train
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import ReferenceSums
from pobench.types import Group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--setting", default="smollm2")
    parser.add_argument("--loss", default="simpo")
    parser.add_argument("--data", default=None)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--micro-tokens", type=int, default=None)
    parser.add_argument("--warm-up", type=int, default=1, help="steps not counted")
    print(json.dumps(measure(parser.parse_args())))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One epoch of training; seconds, GB, tokens without pads."""
    overrides = {"data.max_pairs": given.pairs, "train.precision": given.precision, "train.warmup_ratio": 0.0}
    if given.micro_tokens:
        overrides["train.micro_tokens"] = given.micro_tokens
    (job,) = resolve(given.setting, given.loss, data=given.data, overrides=overrides)[:1]
    pairs = prepare(job).train
    folder = fetch_model(job.model.source, revision=job.model.revision, sha256=job.model.sha256)
    accelerator = make_accelerator(given.precision)
    loss = get_loss(given.loss)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        model = load_model(folder, dtype=torch.float32)
        others, reference = mismatch(pairs) if "kl" in loss.needs else None, None
        if loss.reads_reference:
            groups = [*map(Group.of, pairs), *(mismatched_groups(pairs, others) if others else [])]
            policy = ResponseLogps(model.to(accelerator.device), job.train.head_tile, compiled=job.train.compile)
            reference = ReferenceSums.of_groups(groups, sum_scorer(policy, groups, job.train, accelerator))
        trained = train(
            accelerator,
            model,
            pairs,
            [list(range(len(pairs)))],
            loss,
            job.loss_settings,
            job.train,
            folder=Path(temporary),
            reference=reference,
            mismatched=others,
            log=rows.append,
        )
    counted = rows[given.warm_up :] or rows
    tokens = sum(Group.of(p).tokens for p in pairs[given.warm_up * job.train.batch_size :])
    return {
        "setting": given.setting,
        "loss": given.loss,
        "pairs": sum(r["pairs"] for r in counted),
        "seconds_per_pair": statistics.median(r["seconds"] / r["pairs"] for r in counted),
        "useful_tokens_per_second": tokens / sum(r["seconds"] for r in counted),
        "peak_memory_gb": trained.peak_memory / 1e9,
        "layout": trained.layout,
        **environment(accelerator),
    }


if __name__ == "__main__":
    main()
