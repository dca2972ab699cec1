"""The time of pobench's training step by kind of operation.

    python benchmarks/step_profile.py --model smollm2 --data pairs.jsonl --pairs 8 --batch-size 8 --dtype fp32 --out FILE

torch's profiler records one optimiser step after a warm-up step, and slows it by a few percent. The result also gives the
time of the necessary products (`peers.limit_flops`) at the rate of a large matrix product.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import peers
from children import in_child
from peers import StepClock, Work, load_pairs

from pobench.errors import PobenchError

KINDS = {  # kind: the beginnings of the operations' names; the first that fits counts
    "matrix products": ("aten::mm", "aten::addmm", "mkldnn", "aten::mkldnn"),
    "attention's products and softmax": ("aten::_scaled_dot_product", "aten::bmm", "aten::_softmax"),
    "softmax of the head": ("aten::amax", "aten::exp", "aten::gather", "aten::scatter"),
    "optimiser and clipping": ("aten::_fused_adam", "aten::_foreach_norm", "aten::_foreach_mul", "aten::linalg_vector"),
    "copies, casts and fills": ("aten::copy_", "aten::fill_", "aten::cat", "aten::empty", "aten::index", "aten::zero_"),
    "other elementwise work": ("aten::",),
}
REST = "Python and automatic differentiation"


def main() -> None:
    peers.run_script(measure, peers.parser_of(__doc__, model="smollm2", pairs=8))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    if given.pairs < given.batch_size:
        raise PobenchError(f"--pairs {given.pairs}: at least --batch-size {given.batch_size} is needed")
    job = peers.job_of(given.model, "simpo", data=given.data, lr=given.lr, max_length=given.max_length)
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.json"
        peers.save_pairs(pairs, peers.pairs_of(job, given.batch_size))
        found = in_child(profile_step, peers.work_of(given, job, pairs, Path(folder)))
    return {"benchmark": "profile", **peers.common(given, job), "pairs": given.batch_size, **found}


def profile_step(work: Work) -> dict[str, Any]:
    """seconds: of each kind of operation, by their own time. limit_seconds: of the limit's products at matmul_flops."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from pobench.model.device import make_accelerator
    from pobench.model.load import load_model
    from pobench.registry import get_loss
    from pobench.training.loop import train

    torch.set_num_threads(work.threads)
    accelerator = make_accelerator(work.precision)
    pairs = load_pairs(Path(work.pairs))
    order = peers.training_order(pairs)
    model = load_model(Path(work.model), dtype=torch.float32)
    clock = StepClock(work.precision, accelerator.device, multiplies=True)
    profiler = profile(activities=[ProfilerActivity.CPU])

    def log(row: dict[str, Any]) -> None:
        if clock.ended:
            profiler.stop()
        clock()
        if len(clock.ended) == 1:
            profiler.start()

    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator,
            model,
            pairs,
            [order, order],
            get_loss(work.loss),
            work.settings,
            peers.train_config(work),
            folder=Path(folder),
            log=log,
        )
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        kind = next((k for k, starts in KINDS.items() if event.key.startswith(starts)), REST)
        seconds[kind] += event.self_cpu_time_total / 1e6
    flops = sum(peers.limit_flops(peers.Shape.of(model), pair) for pair in pairs)
    return {
        "seconds": dict(sorted(seconds.items(), key=lambda item: -item[1])),
        "limit_seconds": flops / clock.rate(),
        "matmul_flops": clock.rate(),
        "environment": peers.about_machine(accelerator),
    }


if __name__ == "__main__":
    main()
