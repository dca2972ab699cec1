"""Devices, processes and precision: what this machine has, and which precision is faster on it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import sys
import time
import warnings
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from pobench.errors import PobenchError

PROCESSES = "POBENCH_PROCESSES"  # the variable in which `--devices` reaches all that a command starts
JOBS = "POBENCH_JOBS"  # the variable in which a process finds how many jobs its machine has at one time


@cache
def peak_flops() -> float:
    """Floating-point operations a second of this machine in a matrix product: the best of four measurements.

    On a processor, of the time that the threads ran: beside other work, wall time says what was left of the machine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, dtype = (8192 if device.type == "cuda" else 1024), torch.bfloat16 if bf16_pays(device) else torch.float32
    a = torch.randn(size, size, dtype=dtype, device=device)
    clock, threads = (time.perf_counter, 1) if device.type == "cuda" else (time.process_time, torch.get_num_threads())
    best = math.inf
    for _ in range(4):
        started = clock()
        (a @ a).sum().item()
        best = min(best, (clock() - started) / threads)
    return 2 * size**3 / best


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take: of the GPU, or of the machine and of every container around it.

    None if the system does not tell (it has no /proc).
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    return max(0, min([available, *_room_in_containers()]))


def _room_in_containers(root: Path = Path("/sys/fs/cgroup"), groups: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes left below each memory limit of this process's control groups; file caches count as free."""
    rooms = []
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return []
    for _, kind, path in lines:
        if kind == "":  # version 2
            top, limit, used, cache = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in kind.split(","):
            top, limit, used = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        here = top / path.lstrip("/")
        for folder in [here, *(p for p in here.parents if p == top or top in p.parents)]:
            with contextlib.suppress(OSError, ValueError):  # absent, or "max"
                cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                held = int((folder / used).read_text()) - int(cached.get(cache, 0))
                rooms.append(int((folder / limit).read_text()) - held)
    return rooms


def use_devices(count: int | None) -> None:
    """Let every training job of this command run on so many devices, a process each; None: as many as `layout_of_devices`
    says."""
    if count is not None:
        os.environ[PROCESSES] = str(count)


def device_faults() -> list[str]:
    """Why training jobs cannot run on the devices that are asked for, one line each."""
    wanted, gpus = layout_of_devices()[0], torch.cuda.device_count()
    faults = []
    if gpus and wanted > gpus and os.environ.get(PROCESSES):
        faults.append(f"--devices {wanted}: this machine has {gpus} {'GPU' if gpus == 1 else 'GPUs'}")
    if _accelerate_config()[1] == "DEEPSPEED":
        faults.append(
            "the `accelerate config` of this machine asks for DeepSpeed, which pobench does not use: choose FSDP in "
            "`accelerate config`, or delete that file and add --set train.sharding=fsdp2"
        )
    return faults


def layout_of_devices() -> tuple[int, bool]:
    """(number of processes of a training job, whether the user's `accelerate config` lets them split weights and moments). The
    number is that of `--devices`, else of the `accelerate config`, else that of the GPUs."""
    count, kind = _accelerate_config()
    given = os.environ.get(PROCESSES)
    return max(1, int(given) if given else count or torch.cuda.device_count()), kind == "FSDP"


def _accelerate_config() -> tuple[int | None, str]:
    """(processes, kind of distribution) of the user's `accelerate config`; None and "" where there is none."""
    from accelerate.commands.config import default_config_file, load_config_from_file

    if not os.path.isfile(default_config_file):
        return None, ""
    config = load_config_from_file(default_config_file)
    return max(1, int(config.num_processes or 1)), str(
        getattr(config.distributed_type, "value", config.distributed_type)
    )


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def device_memory() -> float:
    """Bytes of one device, busy or not: of a GPU; else of the machine, which its processes share."""
    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory)
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / layout_of_devices()[0]
    except (ValueError, OSError, AttributeError):  # the system does not tell
        return math.inf


def bf16_pays(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def make_accelerator(precision: str = "auto", *, cpu: bool | None = None, **kwargs: Any) -> Accelerator:
    """An Accelerator. precision: "bf16" (autocast over fp32 weights), "fp32" or "auto". cpu: None takes a GPU if there is one.
    kwargs: Accelerate's own."""
    cpu = not torch.cuda.is_available() if cpu is None else cpu
    if precision == "auto":
        precision = "bf16" if bf16_pays(torch.device("cpu" if cpu else "cuda")) else "fp32"
    # pobench splits weights over processes by itself (`sharding.py`), so that tests and GPUs take one way; Accelerate is asked
    # for processes and devices. A job that somebody starts by `accelerate launch` with an FSDP configuration gets there too.
    if os.environ.pop("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise PobenchError("DeepSpeed is not used by pobench; launch with an FSDP configuration, or with none")
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    # No buffer of a causal model changes in training, so none is broadcast. Gradients share memory with the reduced buckets.
    data_parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    # Accelerate has no other name for it, and torch from 2.13 on warns about this one in every process.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    # A process that waits longer than this has been left alone; saving the largest model takes a part of it.
    group = InitProcessGroupKwargs(timeout=timedelta(minutes=30))
    return Accelerator(
        mixed_precision="bf16" if precision == "bf16" else "no",
        cpu=cpu,
        kwargs_handlers=[data_parallel, group],
        **kwargs,
    )


def version_of(package: str) -> str | None:
    """None: not installed, as pobench itself where a checkout is used as it is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# What an environment says of the share of its machine that a job had.
PART_OF_A_MACHINE = ("threads", "cores", "jobs")


def environment(accelerator: Any) -> dict[str, Any]:
    """Packages, device, processes and share of the machine of this run; no host name, no path, no key."""
    packages = ["pobench", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "pandas", "scipy"]
    packages += [p for p in ("peft", "bitsandbytes") if importlib.util.find_spec(p) is not None]
    device = accelerator.device
    return {
        "packages": {p: version_of(p) for p in packages},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": cores(),
        "jobs": int(os.environ.get(JOBS) or 1),
        "processes": accelerator.num_processes,
        "distributed": str(accelerator.distributed_type.value),
        "precision": accelerator.mixed_precision,
    }
