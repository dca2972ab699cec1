"""The estimate of memory by part, beside what PyTorch's own trackers find for the same step.

    python benchmarks/memory.py                              a small model: real tensors, and fake ones shared over eight
    python benchmarks/memory.py --model NAME --layers 2      a published model's widths, on fake tensors, which hold no memory

Real steps: the allocator's peak, read from the events of torch.profiler (`profile_memory`). Fake steps:
`torch.distributed._tools.MemTracker`; where weights are shared, `FSDPMemTracker` in a group of processes that exchanges
nothing. Only the processor's kernels are traced. What differs on a GPU (attention by blocks) has a formula of its own,
which is not measured here.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import peers
import torch

from pobench.data.published import MODELS
from pobench.errors import PobenchError
from pobench.model import cpu
from pobench.model.layouts import Batch
from pobench.model.load import outline
from pobench.model.logps import ResponseLogps
from pobench.model.shape import shape_of
from pobench.settings.schema import AdapterConfig
from pobench.training.memory_parts import LIBRARIES, Step, TrainingMemory, training_memory
from pobench.types import Group

SMALL: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One step. config: the model's. tokens: of a micro-batch, in groups of two answers."""

    name: str
    config: dict[str, Any]
    tokens: int = 1024
    narrow: bool = False
    checkpointing: bool = False
    adapter: AdapterConfig | None = None
    shards: int = 1

    def estimate(self) -> TrainingMemory:
        groups = self.groups()
        responses = sum(len(r) for g in groups for r in g.responses)
        step = Step(
            sum(g.tokens for g in groups), responses, self.shards, False, self.narrow, self.checkpointing, self.adapter
        )
        return training_memory(shape_of(self.config), step)

    def groups(self) -> list[Group]:
        size = min(self.tokens, 512)
        part = size // 4
        answers = ((2,) * part, (3,) * (size - 2 * part))
        # Prompts that begin unlike, as a common beginning is laid out once.
        return [Group((4 + i, *(1,) * (part - 1)), answers) for i in range(self.tokens // size)]


def policy_of(case: Case, *, real: bool) -> ResponseLogps:
    model = outline(case.config)
    if real:
        torch.manual_seed(0)
        model = model.to_empty(device="cpu")
        model.tie_weights()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.02)
        for name, buffer in _buffers(case.config):
            model.get_buffer(name).copy_(buffer)
    if case.adapter is not None:
        from pobench.model import adapters

        if case.adapter.base_precision == "bf16":
            model = model.to(torch.bfloat16)
        adapters.attach(model, case.adapter, seed=0)
    model.train()
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return ResponseLogps(model)


def _buffers(config: dict[str, Any]) -> Any:
    """The rotary frequencies, which `to_empty` forgets."""
    from transformers import AutoModelForCausalLM

    from pobench.model.load import _config

    small = AutoModelForCausalLM.from_config(_config({**config, "num_hidden_layers": 1, "vocab_size": 8}))
    return list(small.named_buffers())


def real_peak(case: Case) -> int:
    """Bytes that the allocator held at the peak of a step's second micro-batch, with weights, gradients and moments. Scratch
    memory (`pobench.model.scratch`) is a thread's, and stays: so both are made in a thread that has none yet."""
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(_real_peak, case).result()


def _real_peak(case: Case) -> int:
    policy = policy_of(case, real=True)
    trained = [p for p in policy.parameters() if p.requires_grad]
    state = sum({p.data_ptr(): p.nbytes for p in policy.parameters()}.values())
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    state += sum(3 * p.nbytes for p in trained)
    policy.arithmetic.in_place = True
    batch = policy.layout("shared_prefix").collate(case.groups(), policy.window)
    gc.collect()  # what an earlier case has left would be freed within, and be counted against this one
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(2):
            step(policy, batch, case)
    held = most = 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    ):
        held += event.nbytes()
        most = max(most, held)
    return state + most


def step(policy: Any, batch: Batch, case: Case) -> None:
    arithmetic = policy.arithmetic
    narrow = case.narrow and case.shards == 1
    with arithmetic.unchanged_weights(kept=arithmetic.in_place):  # as in a training step
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            sums = policy(batch)
        sums.sum().backward()


# ---------------------------------------------------------------- fake tensors
def fake_peak(case: Case) -> int:
    """Bytes at the peak of a step that computes nothing: fp32 weights and gradients, activations; the moments are added."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    policy = policy_of(case, real=False)
    batch = policy.layout("shared_prefix").collate(case.groups(), policy.window)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tensors = {f.name: v for f in fields(batch) if isinstance(v := getattr(batch, f.name), torch.Tensor)}
    with _group(case.shards) as mesh, mode:
        batch = replace(batch, **{name: mode.from_tensor(tensor) for name, tensor in tensors.items()})
        policy.to_empty(device="cpu")
        policy.model.tie_weights()
        cpu.use_parts(policy.model)
        if mesh is not None:
            return _tracked_sharded(policy, batch, case, mesh)
        for weight in (p for p in policy.parameters() if p.requires_grad):
            weight.grad = torch.zeros_like(weight)
        policy.arithmetic.in_place = True
        from torch.distributed._tools.mem_tracker import MemTracker

        tracker = MemTracker()
        tracker.track_external(policy, *[p.grad for p in policy.parameters() if p.grad is not None])
        with tracker:
            step(policy, batch, case)
    moments = sum(2 * p.nbytes for p in policy.parameters() if p.requires_grad)
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]) + moments


def _tracked_sharded(policy: ResponseLogps, batch: Batch, case: Case, mesh: Any) -> int:
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    names = set(policy.model._no_split_modules or ())
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    precision = bf16 if case.narrow else MixedPrecisionPolicy()
    for layer in [m for m in policy.model.modules() if type(m).__name__ in names]:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], fused=True)
    # The first time, DTensor derives the shapes of an operation from whole fake tensors, which the tracker would count.
    step(policy, batch, case)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tracker = FSDPMemTracker(policy, optimizer)
    tracker.track_inputs((batch,))
    with tracker:
        for _ in range(2):  # micro-batches: the second stands beside gradients
            step(policy, batch, case)
            tracker.reset_mod_stats()
        optimizer.step()
    return int(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])


@contextlib.contextmanager
def _group(size: int) -> Any:
    """The mesh of a process group that exchanges nothing; None for one process."""
    if size == 1:
        yield None
        return
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=size, store=FakeStore())
    try:
        yield init_device_mesh("cpu", (size,))
    finally:
        distributed.destroy_process_group()


# ---------------------------------------------------------------- the table
def cases(config: dict[str, Any], shards: int) -> list[Case]:
    plain = Case("fp32", config, shards=shards)
    bf16 = replace(plain, name="bf16", narrow=True)
    found = [plain, bf16, replace(bf16, name="bf16, checkpointing", checkpointing=True)]
    if shards == 1:
        lora = AdapterConfig(r=16)
        found += [
            replace(bf16, name="bf16, LoRA", adapter=lora),
            replace(bf16, name="bf16, LoRA over bf16", adapter=AdapterConfig(r=16, base_precision="bf16")),
        ]
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    if given.model is not None and given.model not in MODELS:
        raise PobenchError(f"--model {given.model!r}; known: {', '.join(MODELS)}")
    config = dict(SMALL if given.model is None else MODELS[given.model].config)
    config["num_hidden_layers"] = given.layers or config["num_hidden_layers"]
    rows = [
        row(replace(case, tokens=given.tokens), real=given.model is None and case.shards == 1)
        for shards in map(int, given.shards.split(","))
        for case in cases(config, shards)
        if given.only in (None, case.name) and (given.model is None or case.adapter is None)
    ]
    return {
        "benchmark": "memory", "model": given.model or "small", "layers": config["num_hidden_layers"], "tokens": given.tokens,
        "rows": rows, "largest_error": max((abs(row["error"]) for row in rows), default=math.nan),
    }  # fmt: skip


def row(case: Case, *, real: bool) -> dict[str, Any]:
    """Estimate and measurement of one step, in bytes; by: what measured it."""
    estimate = case.estimate()
    expected, found = estimate.total - LIBRARIES, real_peak(case) if real else fake_peak(case)
    by = "the allocator" if real else "MemTracker" if case.shards == 1 else "FSDPMemTracker"
    error = expected / found - 1
    peers.say(
        f"{case.name}, {case.shards} devices: estimate {expected / 2**20:.1f} MiB, {by} {found / 2**20:.1f} MiB: {error:+.1%}"
    )
    return {
        "case": case.name, "shards": case.shards, "by": by, "estimate": expected, "measured": found, "error": error,
        "parts": estimate.parts,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a published model; default: a small one, with real tensors")
    parser.add_argument("--layers", type=int, help="so many decoder layers instead of the model's own")
    parser.add_argument("--tokens", type=int, default=1024, help="of a micro-batch")
    parser.add_argument("--shards", default="1,8", help="devices that share weights, gradients and moments")
    parser.add_argument("--only", help="one case by its name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, help="also write that object to a file")
    peers.run_script(measure, parser)


if __name__ == "__main__":
    main()
