"""The synthetic frames, scored, for every figure and table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from pobench import scores
from pobench.cross_loss import cross_loss


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The generator, `tests/frames.py`."""
    spec = importlib.util.spec_from_file_location("synthetic_frames", Path(__file__).parents[1] / "frames.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def frames(synthetic) -> dict:
    """A start model and five losses, one seed, scored. Do not change it."""
    made = synthetic.make_frames(prompts=24, pairs=60, steps=12)
    return {**made, "scores": scores.complete(made), "cross_loss": cross_loss(made["runs"], made["heldout"])}


@pytest.fixture(scope="session")
def seeded(synthetic) -> dict:
    """Two losses with two seeds each, scored. Do not change it."""
    two = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo")}
    made = synthetic.make_frames(two, seeds=(1, 2), prompts=16, pairs=40, steps=8)
    return {**made, "scores": scores.complete(made), "cross_loss": cross_loss(made["runs"], made["heldout"])}
