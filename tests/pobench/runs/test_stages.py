"""The stages are found by name and stand in the order in which they happen."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pobench.runs import stages
from pobench.runs.stages import ALL, BY_NAME, PREPARING, STAGES


def test_every_file_of_the_folder_is_one_stage_with_its_name() -> None:
    files = {path.stem for path in Path(stages.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(ALL) and len(ALL) == len(STAGES)


@pytest.mark.parametrize("seed", range(5))
def test_their_order_is_one_and_every_stage_comes_behind_those_it_reads(seed) -> None:
    mixed = list(STAGES)
    random.Random(seed).shuffle(mixed)
    assert stages._ordered(mixed) == STAGES
    for stage in STAGES:
        assert all(ALL.index(name) < ALL.index(stage.name) for name in stage.reads)


def test_what_is_optional_comes_last_unless_another_stage_reads_it() -> None:
    read = {name for stage in STAGES for name in stage.reads}
    optional = [BY_NAME[name].optional for name in ALL if name not in read]
    assert optional == sorted(optional)


def test_what_prepares_comes_before_every_run() -> None:
    assert [BY_NAME[name].prepares for name in ALL] == [True] * len(PREPARING) + [False] * (len(ALL) - len(PREPARING))
    assert not any(BY_NAME[name].per_run for name in PREPARING)
