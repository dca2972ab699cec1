"""A process that the system asks to leave: training behind a checkpoint, everything else at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import in_two_processes

from pobench.model.device import make_accelerator
from pobench.registry import get_loss
from pobench.results.run_folder import RunFolder
from pobench.runs.execute import execute
from pobench.runs.stages import BY_NAME
from pobench.settings.schema import TrainConfig
from pobench.training import leaving
from pobench.training.loop import train
from pobench.workflows.invariance import small_model, small_pairs


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", leaving.SIGNALS)
def test_training_leaves_behind_a_checkpoint_and_goes_on_bit_for_bit(number, fit, pairs, tmp_path) -> None:
    undisturbed, _, rows = fit(pairs, "simpo", folder="a", epochs=2)
    seen: list[dict[str, Any]] = []

    def log(row: dict[str, Any]) -> None:
        seen.append(row)
        if row["step"] == 2:
            ask(number)

    with leaving.listening(), pytest.raises(leaving.Leave):
        fit(pairs, "simpo", folder="b", epochs=2, log=log)
    assert [row["step"] for row in seen] == [1, 2] and (tmp_path / "b/checkpoint-2").is_dir()
    resumed, _, _ = fit(pairs, "simpo", folder="b", epochs=2, log=seen.append)
    assert [row["loss"] for row in seen] == [row["loss"] for row in rows]
    assert all(torch.equal(p, q) for p, q in zip(undisturbed.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_for_which_no_time_is_left_is_not_begun_and_the_last_one_stands(fit, pairs, tmp_path) -> None:
    said: list[str] = []

    def log(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            ask()

    with leaving.listening(), pytest.raises(leaving.Leave):
        fit(pairs, folder="b", epochs=2, log=log, say=said.append, checkpoint_seconds=0, grace_seconds=0)
    assert (tmp_path / "b/checkpoint-4").is_dir() and not (tmp_path / "b/checkpoint-5").is_dir()
    assert said[-1].endswith("(train.grace_seconds: 0): that of step 4 stands, and 1 step will be made again")


def test_the_time_that_a_scheduler_gives_counts_where_it_is_known(monkeypatch) -> None:
    monkeypatch.setattr(leaving._State, "since", leaving.time.monotonic())
    assert 29 < leaving.time_left(30) <= 30
    monkeypatch.setenv(leaving.GRACE, "120")
    assert 119 < leaving.time_left(30) <= 120


def test_a_process_that_is_asked_in_the_last_step_stores_the_model(plan_here, monkeypatch) -> None:
    plan = plan_here("simpo", ("train",))
    logged, stored = RunFolder.log_step, RunFolder.finish_training

    def log(folder: RunFolder, row: dict[str, Any]) -> None:
        logged(folder, row)
        if row["step"] == row["steps"]:
            ask()

    def finish(folder: RunFolder, *facts: Any) -> None:
        ask()
        stored(folder, *facts)

    monkeypatch.setattr(RunFolder, "log_step", log)
    monkeypatch.setattr(RunFolder, "finish_training", finish)
    assert execute(plan)[-1].status == "finished"
    folder = RunFolder(plan.tasks[-1].runs, plan.tasks[-1].run)
    assert folder.trained and not list(folder.path.glob("checkpoint-*"))


def test_what_is_no_training_is_left_at_once_and_no_run_is_failed(plan_here, monkeypatch) -> None:
    from dataclasses import replace

    plan = plan_here("simpo")
    monkeypatch.setitem(BY_NAME, "answers", replace(BY_NAME["answers"], run=lambda context: ask()))
    with pytest.raises(KeyboardInterrupt):
        execute(plan)
    assert not list(plan.tasks[-1].runs.glob("*/*/failed.json"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the handler went with the task"


def leave(folder: Path) -> None:
    """The second process is asked; both leave behind the same step."""
    accelerator = make_accelerator("fp32")

    def reference(row: dict[str, Any]) -> None:
        """Of the main process, which is asked nothing."""

    pairs, loss = small_pairs(12), get_loss("simpo")
    config = TrainConfig(lr=1e-3, batch_size=4, precision="fp32", micro_tokens=200)
    with leaving.listening(), pytest.raises(leaving.Leave):
        if not accelerator.is_main_process:
            leaving.hold()
            ask()
        train(
            accelerator, small_model(), pairs, [list(range(12))], loss, loss.settings, config, folder=folder,
            log=reference,
        )  # fmt: skip
    (folder / f"left-{accelerator.process_index}").touch()


def test_where_one_process_is_asked_all_leave_behind_the_same_step(tmp_path) -> None:
    in_two_processes(leave, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "left-0", "left-1"]


STAYS = """
import os, signal, threading
from pobench.training import leaving
leaving.PATIENCE = 0.2
with leaving.listening():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException:  # as a library may
        pass
    threading.Event().wait()
"""


def test_a_process_that_swallowed_what_asked_it_to_leave_is_ended_and_says_where_it_stood() -> None:
    ended = subprocess.run([sys.executable, "-c", STAYS], capture_output=True, text=True, timeout=600)
    assert ended.returncode == leaving.INTERRUPTED and "threading.py:" in ended.stderr, ended.stderr
