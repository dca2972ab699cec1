"""What every test shares: Hypothesis without a clock, and the synthetic frames that are drawn, tabulated and reported."""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

# A slow machine fails no test: examples have no deadline, and drawing them may take its time.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# Python looks for garbage after every 700 new objects, and for old garbage through all that has become old. Imports and
# frames make millions, next to none of them garbage: it took seven percent of the time of the tests of figures.
gc.set_threshold(50_000, 20, 20)

_frozen = (0, Path())  # how many modules were imported, and which file was tested, when the heap was frozen last


@pytest.fixture(autouse=True)
def frozen_heap(request: pytest.FixtureRequest) -> None:
    """What libraries have made, and what earlier files of tests have left, is frozen: a collection of garbage that looks
    through all of it takes a tenth of a second or more, and a job collects at every change of models."""
    global _frozen
    modules, file = _frozen
    if len(sys.modules) > modules + 50 or request.path != file:
        gc.collect()
        gc.freeze()
        _frozen = (len(sys.modules), request.path)


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The generator, `tests/frames.py`."""
    spec = importlib.util.spec_from_file_location("synthetic_frames", Path(__file__).parent / "frames.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
