"""The stages are found by name and stand in the order in which they happen."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from pobench.errors import PobenchError
from pobench.runs import stages
from pobench.runs.plan import make_plan
from pobench.runs.stages import ALL, BY_NAME, PREPARING, STAGES
from pobench.runs.stages.train import init_trackers
from pobench.settings.resolve import resolve
from pobench.settings.schema import Tracker


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


# ---------------------------------------------------------------- trackers


class Recorder:
    """What Accelerate is asked to begin."""

    def init_trackers(self, project: str, config: dict[str, Any], init_kwargs: dict[str, Any]) -> None:
        self.project, self.config, self.kwargs = project, config, init_kwargs


def test_every_tracker_of_accelerate_is_known_by_name_and_told_neither_judge_nor_key(tmp_path) -> None:
    names = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    assert list(get_args(Tracker)) == names
    judge = {"judge.name": "endpoint", "judge.settings": {"base_url": "https://key.host/v1", "model": "m"}}
    (job,) = resolve("tiny", "simpo", overrides={"train.trackers": names, **judge})
    recorder = Recorder()
    init_trackers(recorder, job, "tiny/simpo-0", tmp_path)
    assert recorder.project == "pobench" and recorder.config["run"] == "tiny/simpo-0"
    assert recorder.config["train.lr"] == job.train.lr and "key" not in json.dumps(recorder.config)
    assert recorder.kwargs["mlflow"] == {"run_name": "tiny/simpo-0"} and set(recorder.kwargs) <= set(names)


def test_a_tracker_that_is_not_installed_is_one_sentence_with_the_install_line(tmp_path) -> None:
    jobs = resolve("tiny", "simpo", overrides={"train.trackers": ["clearml", "comet_ml"]})
    with pytest.raises(PobenchError, match="clearml, comet_ml not installed; pip install clearml comet_ml"):
        make_plan(jobs, tmp_path)
