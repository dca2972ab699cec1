"""Devices, processes and precision: what this machine has and what pays on it."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import time
from functools import cache
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs


@cache
def peak_flops() -> float:
    """Matrix products a second of this machine: the best of four."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, dtype = (8192 if device.type == "cuda" else 1024), torch.bfloat16 if bf16_pays(device) else torch.float32
    a = torch.randn(size, size, dtype=dtype, device=device)
    best = math.inf
    for _ in range(4):
        started = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def layout_of_devices() -> tuple[int, bool]:
    """(processes of a training job, whether they share weights and moments): `POBENCH_PROCESSES`, else the user's
    `accelerate config`, else every GPU."""
    from accelerate.commands.config import default_config_file, load_config_from_file

    if os.environ.get("POBENCH_PROCESSES"):
        return max(1, int(os.environ["POBENCH_PROCESSES"])), False
    if os.path.isfile(default_config_file):
        config = load_config_from_file(default_config_file)
        kind = str(getattr(config.distributed_type, "value", config.distributed_type))
        return max(1, int(config.num_processes or 1)), kind in ("FSDP", "DEEPSPEED")
    return max(1, torch.cuda.device_count()), False


def bf16_pays(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def make_accelerator(precision: str = "auto", *, cpu: bool | None = None, **kwargs: Any) -> Accelerator:
    """An Accelerator whose arithmetic is `precision`: bf16 autocast over fp32 weights, or fp32. cpu: None: where there is
    no GPU. kwargs: Accelerate's own."""
    cpu = not torch.cuda.is_available() if cpu is None else cpu
    if precision == "auto":
        precision = "bf16" if bf16_pays(torch.device("cpu" if cpu else "cuda")) else "fp32"
    # No buffer of a causal model changes in training, so none is sent; gradients live in the buckets they are reduced in.
    data_parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no", cpu=cpu, kwargs_handlers=[data_parallel], **kwargs
    )


def environment(accelerator: Any) -> dict[str, Any]:
    """Packages, device and processes of this run; no host name, no path, no key."""
    packages = ["pobench", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "pandas", "scipy"]
    packages += [p for p in ("peft", "bitsandbytes") if importlib.util.find_spec(p) is not None]
    device = accelerator.device
    return {
        "packages": {p: importlib.metadata.version(p) for p in packages},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "distributed": str(accelerator.distributed_type.value),
        "precision": accelerator.mixed_precision,
    }
