"""What this machine can be used for: one table of uses, and what each needs."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from pobench.model.device import bf16_pays
from pobench.printing import size

LEAST_DISK = 2 * 1024**3  # bytes that the main job writes: the start model, and the weights of two trained ones
NVIDIA = Path("/proc/driver/nvidia/gpus")  # the driver's folder, with an entry a device


class Use(NamedTuple):
    """What pobench can be used for. extra: one of pobench's; "": nothing beyond pobench.

    packages: beyond those of the extra, names on the package index. gpu: whether it needs a GPU. keys: environment variables,
    of which one must hold a key. programs: that must be found. always: whether every command depends on it.
    """

    title: str
    extra: str = ""
    packages: tuple[str, ...] = ()
    gpu: bool = False
    keys: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    always: bool = False


class Judged(NamedTuple):
    """A use with its verdict. missing: what is to be done, a sentence each; empty if it is ready."""

    use: str
    verdict: Literal["ready", "missing"]
    missing: list[str]


BENCHMARKS = ("alpaca-eval", "scikit-learn", "fschat", "anthropic", "psutil", "lm-eval", "openai")
USES = (
    Use("main job on a processor", always=True),
    Use("training on a GPU", gpu=True),
    Use("judges by endpoint", packages=("openai",), keys=("OPENAI_API_KEY", "OPENAI_BASE_URL")),
    Use("benchmarks", packages=BENCHMARKS),
    Use("LoRA", extra="peft"),
    Use("LoRA over four bits", extra="qlora", gpu=True),
    Use("answers by vLLM", extra="vllm", gpu=True),
    Use("Liger's kernels", extra="liger", gpu=True),
    Use("flash attention", extra="flash-attention", gpu=True),
    Use("jobs on SLURM", extra="slurm", programs=("sbatch",)),
    Use("jobs on Ray", extra="ray"),
)


def judge_uses(cache: Path, runs: Path, *, uses: tuple[Use, ...] = USES) -> list[Judged]:
    """Every use with what it lacks here. cache, runs: the folders that the main job writes to, there or not."""
    judged = []
    for use in uses:
        missing = [*package_faults(required(use)), *_machine_faults(use)]
        if use.always:
            missing += [
                fault for name, folder in (("cache", cache), ("runs", runs)) for fault in folder_faults(name, folder)
            ]
        judged.append(Judged(use.title, "missing" if missing else "ready", list(dict.fromkeys(missing))))
    return judged


def declared() -> list[Requirement]:
    """The requirements of pobench as installed, those of its extras too; empty for a copy that is not installed."""
    try:
        lines = importlib.metadata.requires("pobench") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Requirement(line) for line in lines]


def required(use: Use) -> list[tuple[Requirement, str]]:
    """(requirement, the command that installs it) of a use, with the ranges that pobench declares."""
    found = []
    for requirement in declared():
        plain = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        of_extra = bool(use.extra) and not plain and requirement.marker.evaluate({"extra": use.extra})  # type: ignore[union-attr]
        if of_extra:
            found.append((requirement, f"pip install 'pobench[{use.extra}]'"))
        elif plain and ((use.always and requirement.name not in BENCHMARKS) or requirement.name in use.packages):
            found.append((requirement, f"pip install '{requirement.name}{requirement.specifier}'"))
    return found


def package_faults(
    needed: list[tuple[Requirement, str]], version: Callable[[str], str] = importlib.metadata.version
) -> list[str]:
    """A sentence for each package that is not installed or is of a version that pobench does not take."""
    faults = []
    for requirement, install in needed:
        if requirement.name == "pobench":  # an extra that names another one
            faults += package_faults(
                [(r, install) for e in requirement.extras for r, _ in required(Use("", extra=e))], version
            )
            continue
        try:
            have = version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(f"{requirement.name} is not installed: {install}")
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            faults.append(f"{requirement.name} {have} is not {requirement.specifier}: {install}")
    return faults


def _machine_faults(use: Use) -> list[str]:
    faults = []
    if use.gpu and not torch.cuda.is_available():
        faults.append("no GPU that torch can use")
    if use.keys and not any(os.environ.get(key, "").strip() for key in use.keys):
        faults.append(f"none of {', '.join(use.keys)} is set in the environment")
    faults += [f"no program {program!r} on this machine" for program in use.programs if shutil.which(program) is None]
    return faults


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def folder_faults(name: str, folder: Path, *, least: float = LEAST_DISK) -> list[str]:
    """Why a folder, there or to be made, cannot be written to. least: bytes that must be free on its disk."""
    place = existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return [f"{name}: {str(place)!r} cannot be written to ({error.strerror})"]
    free = shutil.disk_usage(place).free
    return (
        [f"{name}: {size(free)} free below {str(place)!r}, of {size(least)} that the main job needs"]
        if free < least
        else []
    )


def advice(*, driver: Path = NVIDIA) -> list[str]:
    """What would make a GPU faster or usable, a sentence each; empty where there is nothing to say."""
    if not torch.cuda.is_available():
        if not driver.is_dir() or not any(driver.iterdir()):
            return []
        why = (
            "is built without CUDA"
            if torch.version.cuda is None
            else f"is built for CUDA {torch.version.cuda} and finds none"
        )
        return [
            f"an NVIDIA GPU is there, and torch {torch.__version__} {why}: install torch for your driver, https://pytorch.org/get-started/locally"
        ]
    if not bf16_pays(torch.device("cuda")):
        return [
            "this GPU does not multiply bf16: training takes fp32, several times slower; flash attention does not run on it"
        ]
    found = (
        []
        if _installed("flash-attn")
        else ["attention is torch's own (flex or sdpa); flash-attn is optional: pip install 'pobench[flash-attention]'"]
    )
    return ["bf16 is used: this GPU multiplies it", *found]


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
