"""What fits on machines that are not here, and with which settings, by the arithmetic of `training.memory_parts`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pobench.errors import PobenchError
from pobench.model.shape import ModelShape
from pobench.runs.cost import answering_of, step_of
from pobench.settings.job import Job
from pobench.settings.schema import AdapterConfig
from pobench.training.memory_parts import GIB, USABLE, Step, TrainingMemory, fitting_tokens, training_memory

DEFAULT = "8x80,4x80,1x141,1x24"
GB = 1e9  # vendors count so; an H100 of 80 GB has 79.6 GiB in all, so the smaller unit is on the safe side
_SPEC = re.compile(r"(\d+)[x×](\d+)", re.ASCII)


@dataclass(frozen=True)
class Machine:
    """So many devices of so many GB."""

    devices: int
    size: int

    def __str__(self) -> str:
        return f"{self.devices}×{self.size} GB"

    @property
    def bytes(self) -> float:
        return self.size * GB


@dataclass(frozen=True)
class Fit:
    """How a setting fits on a machine. changes: KEY=VALUE beside the setting's own values; None where nothing fits. memory: at
    the peak of a step, of one device. answers: how many are decoded at a time; 0: not even one."""

    machine: Machine
    how: str
    changes: tuple[str, ...] | None
    memory: TrainingMemory
    tokens: int
    answers: int

    def describe(self) -> dict[str, Any]:
        """As plain data, in bytes."""
        return {
            "devices": self.machine.devices,
            "device_gb": self.machine.size,
            "fits": self.changes is not None,
            "how": self.how,
            "set": list(self.changes or ()),
            "micro_tokens": self.tokens,
            "memory": self.memory.total,
            "parts": self.memory.parts,
            "answers_at_once": self.answers,
        }


def machines(text: str) -> list[Machine]:
    """`8x80,1x24` → machines. Raises PobenchError that lists every part that is none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found = [_SPEC.fullmatch(part) for part in parts]
    faults = [
        f"--hardware {part!r}: expected DEVICESxGB, such as {DEFAULT}"
        for part, match in zip(parts, found, strict=True)
        if match is None or int(match[1]) < 1 or int(match[2]) < 1
    ]
    if faults or not parts:
        raise PobenchError("\n".join(faults) or f"--hardware {text!r}: expected DEVICESxGB, such as {DEFAULT}")
    return [Machine(int(match[1]), int(match[2])) for match in found if match is not None]


def fit(job: Job, shape: ModelShape, machine: Machine) -> Fit:
    """The first way to train that fits, those first that change least of the setting: its own, with activation checkpointing,
    with weights shared over the devices, a LoRA adapter over weights in bf16, over weights in four bits."""
    longest = 2 * job.data.max_length
    for how, changes, step in _ways(job, shape, machine):
        tokens = fitting_tokens(shape, step, machine.bytes, longest)
        if tokens is not None:
            if tokens < step.tokens:
                changes = (*changes, f"train.micro_tokens={tokens}")
            memory = training_memory(shape, replace(step, tokens=tokens, responses=tokens))
            return Fit(machine, how, changes, memory, tokens, answers_at_once(job, shape, machine))
    smallest = replace(step, tokens=longest, responses=longest)
    return Fit(machine, how, None, training_memory(shape, smallest), longest, answers_at_once(job, shape, machine))


def _ways(job: Job, shape: ModelShape, machine: Machine) -> Iterator[tuple[str, tuple[str, ...], Step]]:
    """(in words, changes of the setting, the step) of every way to train, the setting's own first."""
    own = replace(step_of(job, shape), gpu=True)
    ways: list[tuple[str, tuple[str, ...], Step]] = [("all weights, a copy on each device", (), own)]
    if machine.devices > 1:
        shared = replace(own, shards=machine.devices)
        ways.append(("all weights, shared over the devices", ("train.sharding=fsdp2",), shared))
    if own.adapter is None:
        for name, key in (("in bf16", "base_precision=bf16"), ("in four bits (QLoRA)", "quantize=nf4")):
            field, _, value = key.partition("=")
            adapter = AdapterConfig(**{field: value})
            ways.append(
                (f"a LoRA adapter over weights {name}", (f"train.adapter.{key}",), replace(own, adapter=adapter))
            )
    for how, changes, step in ways:
        yield how, changes, step
        if not step.checkpointing:
            saving = (*changes, "train.gradient_checkpointing=true")
            yield f"{how}, with checkpointing", saving, replace(step, checkpointing=True)


def answers_at_once(job: Job, shape: ModelShape, machine: Machine) -> int:
    """How many of the setting's answers fit into one decoding, at their longest."""
    full = answering_of(job, shape)
    room = USABLE * machine.bytes - full.weights - full.libraries
    return max(0, min(full.rows, math.floor(room / ((full.cache + full.reading) / full.rows))))


def in_gib(value: float) -> float:
    return value / GIB
