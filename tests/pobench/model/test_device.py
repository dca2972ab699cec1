"""What a machine can do, measured where other work runs beside it."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from pobench.model import device


@pytest.mark.skipif(torch.cuda.is_available(), reason="the rate is a GPU's, whose time others do not share")
def test_the_rate_of_a_processor_is_of_the_time_that_its_threads_ran(monkeypatch) -> None:
    ran = count(0.0, 0.5)  # seconds of all threads together
    monkeypatch.setattr(device, "time", SimpleNamespace(process_time=lambda: next(ran), perf_counter=None))
    assert device.peak_flops.__wrapped__() == 2 * 1024**3 / (0.5 / torch.get_num_threads())
