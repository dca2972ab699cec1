"""The synthetic frames, scored, for every figure and table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from pobench.results import metrics
from pobench.results.derived import Frames


@pytest.fixture(scope="session")
def frames(synthetic) -> Frames:
    """A start model and five losses, one seed, scored. Do not change it."""
    made = synthetic.make_frames(prompts=24, pairs=60, steps=12)
    return Frames({**made, "scores": metrics.complete(made)})


@pytest.fixture(scope="session")
def seeded(synthetic) -> Frames:
    """Two losses with two seeds each, scored. Do not change it."""
    two = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo")}
    made = synthetic.make_frames(two, seeds=(1, 2), prompts=16, pairs=40, steps=8)
    return Frames({**made, "scores": metrics.complete(made)})


@pytest.fixture(scope="session")
def worlds() -> ModuleType:
    """The generator of studies whose results are known, `worlds.py`."""
    spec = importlib.util.spec_from_file_location("worlds", Path(__file__).parent / "worlds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
