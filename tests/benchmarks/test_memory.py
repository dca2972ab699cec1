"""The estimate of memory beside what the allocator and PyTorch's trackers find for real steps of small models."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("memory")
    for name in {"memory", "peers"} & (set(sys.modules) - before):
        del sys.modules[name]


def test_a_step_gives_every_weight_a_gradient(memory: Any) -> None:
    config = {**memory.SMALL, "num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}
    case = replace(memory.cases(config, 1)[1], tokens=16)  # bf16
    policy = memory.policy_of(case, real=True)
    memory.step(policy, policy.layout("shared_prefix").collate(case.groups(), policy.window), case)
    assert all(weight.grad.abs().sum() > 0 for weight in policy.parameters())


@pytest.mark.slow  # real steps in five precisions and ways
def test_the_estimate_is_within_five_per_cent_of_the_allocators_peak(memory: Any) -> None:
    config = {**memory.SMALL, "num_hidden_layers": 2}
    for case in memory.cases(config, 1)[1:4]:  # bf16: plain, with checkpointing, LoRA
        row = memory.row(replace(case, tokens=512), real=True)
        assert abs(row["error"]) < 0.05, (case.name, row)


@pytest.mark.slow
def test_shared_weights_are_estimated_near_the_trackers_peak(memory: Any) -> None:
    """The tracker misses the fp32 copies that a product of two types makes inside one operation, so in bf16 the estimate lies
    above it."""
    config = {**memory.SMALL, "num_hidden_layers": 4}
    for case in memory.cases(config, 8):
        row = memory.row(replace(case, tokens=512), real=False)
        assert abs(row["error"]) < 0.1, (case.name, row)
