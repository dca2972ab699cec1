"""A checkpoint is resumed by the job whose content it is, and only as long as its bytes are those that were written."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pobench import files
from pobench.errors import CorruptError, PobenchError
from pobench.identity import name_of
from pobench.model.logps import ResponseLogps
from pobench.settings.schema import TrainConfig
from pobench.training import checkpoint, leaving, saving
from pobench.training.loop import make_optimizer

OPTIONS = {"epochs": 2, "checkpoint_seconds": 0}  # 11 pairs in batches of 4: six steps


class Killed(BaseException):
    pass


@pytest.fixture
def killed(fit, pairs, tmp_path):
    """Train a job and kill it while it logs step 5; returns its checkpoint, of step 4."""

    def run(folder: str, content: str, **changes) -> Path:
        def log(row) -> None:
            if row["step"] == 5:
                raise Killed

        with pytest.raises(Killed):
            fit(pairs, "dpo", folder=folder, content=content, log=log, **OPTIONS, **changes)
        return tmp_path / folder / "checkpoint-4"

    return run


@pytest.fixture
def resumed(fit, pairs):
    """Train to the end: (weights, the first step that was computed, what was said about checkpoints)."""

    def run(folder: str, content: str, **changes) -> tuple[torch.Tensor, int, list[str]]:
        said: list[str] = []
        model, _, rows = fit(pairs, "dpo", folder=folder, content=content, say=said.append, **OPTIONS, **changes)
        return weights(model), rows[0]["step"], [text for text in said if "training starts" in text]

    return run


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_an_untouched_checkpoint_of_the_same_content_gives_the_same_digits(killed, resumed) -> None:
    undisturbed, first, _ = resumed("whole", "a job")
    assert first == 1
    killed("run", "a job")
    again, first, said = resumed("run", "a job")
    assert torch.equal(again, undisturbed) and first == 5 and said == []


def test_a_checkpoint_of_another_job_is_ignored_and_the_command_says_so(killed, resumed, tmp_path) -> None:
    undisturbed, _, _ = resumed("whole", "a job")
    theirs = killed("other", "another job", lr=1e-2)
    shutil.copytree(theirs, tmp_path / "run" / theirs.name)
    again, first, said = resumed("run", "a job")
    assert torch.equal(again, undisturbed) and first == 1
    (text,) = said
    assert "checkpoint-4' is ignored: it is of the content 'another job', and this job's is 'a job'" in text
    assert text.endswith("; training starts from the beginning")


def test_a_foreign_checkpoint_does_not_hide_an_older_one_of_the_job(killed, resumed, tmp_path) -> None:
    undisturbed, _, _ = resumed("whole", "a job")
    theirs = killed("other", "another job", lr=1e-2)
    killed("run", "a job")
    shutil.copytree(theirs, tmp_path / "run" / "checkpoint-9")
    assert checkpoint.latest(tmp_path / "run", "a job") == tmp_path / "run" / "checkpoint-4"
    again, first, said = resumed("run", "a job")
    assert torch.equal(again, undisturbed) and first == 5
    assert len(said) == 1 and said[0].endswith("; training starts from the checkpoint of step 4")
    # Afterwards the folder holds the job's own alone, the newest two.
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("kind", ["weights-", "adam-", "state"])
def test_a_changed_byte_is_named_and_the_checkpoint_before_it_is_used(kind, killed, resumed) -> None:
    undisturbed, _, _ = resumed("whole", "a job")
    saved = killed("run", "a job")
    file = next(path for path in sorted(saved.iterdir()) if path.name.startswith(kind))
    flip_a_byte(file)
    again, first, said = resumed("run", "a job")
    assert torch.equal(again, undisturbed) and first == 4
    (text,) = said
    assert text.startswith(f"{str(file)!r} is damaged: ")
    assert text.endswith("; training starts from the checkpoint of step 3")


def test_where_no_checkpoint_is_intact_training_starts_from_the_beginning(killed, resumed, tmp_path) -> None:
    undisturbed, _, _ = resumed("whole", "a job")
    saved = killed("run", "a job")
    for folder in saved.parent.glob("checkpoint-*"):
        flip_a_byte(folder / "state.json")
    again, first, said = resumed("run", "a job")
    assert torch.equal(again, undisturbed) and first == 1
    assert [text.endswith("; training starts from the beginning") for text in said] == [True, True]


@pytest.mark.parametrize(
    ("steps", "fault"), [([1, 2, 4], "step 3 is missing"), ([1, 2, 2, 3, 4], "step 2 stands twice"), ([1, 2, 3, 4], "")]
)
def test_a_log_with_a_hole_or_a_doubled_step_is_named_and_not_gone_on_from(steps, fault, killed, tmp_path) -> None:
    saved, said = killed("run", "a job"), []
    checkpoint.refuse_holes(tmp_path / "run", "a job", steps, said.append)
    assert saved.exists() is (fault == "")
    assert [f" is damaged: {fault}; training starts from the beginning" in text for text in said] == [True] * bool(
        fault
    )


def test_behind_a_damaged_checkpoint_the_one_before_it_serves(killed, resumed, tmp_path) -> None:
    undisturbed, _, _ = resumed("whole", "a job")
    saved = killed("run", "a job")
    newer = tmp_path / "run" / "checkpoint-5"
    shutil.copytree(saved, newer)
    next(newer.glob("weights-*")).unlink()
    again, first, said = resumed("run", "a job")
    assert torch.equal(again, undisturbed) and first == 5
    assert len(said) == 1 and "the file is gone; training starts from the checkpoint of step 4" in said[0]


def test_a_refused_checkpoint_leaves_model_and_optimizer_unchanged(killed, start_model) -> None:
    saved = killed("run", "a job")
    before = weights(start_model)
    optimizer = make_optimizer(start_model, TrainConfig(lr=1))
    with pytest.raises(PobenchError, match="is of the content 'a job', and this job's is 'another'"):
        checkpoint.load(saved, start_model, optimizer, "another")
    flip_a_byte(sorted(saved.glob("weights-*"))[-1])  # the files before it are read first
    with pytest.raises(CorruptError, match="its bytes are not those that were written"):
        checkpoint.load(saved, start_model, optimizer, "a job")
    assert torch.equal(weights(start_model), before) and not optimizer.state


def test_every_shard_is_read_once(killed, start_model, monkeypatch) -> None:
    saved = killed("run", "a job")
    read: list[str] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), read_bytes(path))[1])
    monkeypatch.setattr(files, "sha256_of", lambda path: pytest.fail(f"{path} is read for its digest alone"))
    policy = ResponseLogps(copy.deepcopy(start_model))
    checkpoint.load(saved, policy, make_optimizer(policy, TrainConfig(lr=1)), "a job")
    assert sorted(read) == sorted(path.name for path in saved.iterdir())


def test_a_training_job_saves_under_the_name_of_its_causes(work_here, monkeypatch) -> None:
    contents = set()
    made = checkpoint.Saving
    monkeypatch.setattr(
        "pobench.training.saving.Saving", lambda *given, **how: (contents.add(given[-1]), made(*given, **how))[1]
    )
    folder = work_here("simpo", ("train",), train__checkpoint_seconds=0.0, train__epochs=2)
    causes = json.loads((folder / "trained.json").read_text())["causes"]
    assert contents == {name_of(causes)}


def test_saving_takes_at_most_its_share_of_the_time(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: now))
    pace, always = saving.Pace(60.0, 0.05), saving.Pace(0.0, 0.05)
    spent = saved = 0.0
    while now < 7200:  # steps of 10 s; a checkpoint takes 30 s
        now += 10
        assert always.due
        if pace.due:
            assert spent == 0 or now - spent >= 570  # 30 s of 600 are 5 %
            pace.begin()
            now += 30
            assert not pace.due, "one is on its way"
            pace.end()
            spent, saved = now, saved + 1
    assert saved == 12  # the first after 60 s, then one every 600 s


# ---------------------------------------------------------------- beside the steps
@pytest.fixture
def beside(fit, pairs, tmp_path, monkeypatch):
    """Train a job whose checkpoints are written beside its steps, the second one once `let_go` is set. log: called with a
    step's number and its folder; in the second step the first checkpoint is written."""
    write, let_go, written = checkpoint._save_whole, threading.Event(), []

    def save(tensors, folder: Path) -> dict[str, str]:
        if threading.current_thread() is not threading.main_thread():
            if written:
                let_go.wait()
            written.append(folder.name)
        return write(tensors, folder)

    def run(log, **changes) -> None:
        def logged(row) -> None:
            try:
                if row["step"] == 2:
                    wait_for_the_thread()
                log(row["step"], tmp_path / "run")
            except BaseException:
                let_go.set()
                raise
            if let_go.is_set():
                wait_for_the_thread()

        fit(
            pairs,
            "dpo",
            folder="run",
            content="a job",
            log=logged,
            checkpoint_async=True,
            keep_checkpoints=1,
            **OPTIONS,
            **changes,
        )

    monkeypatch.setattr(checkpoint, "_save_whole", save)
    run.let_go, run.written = let_go, written
    yield run
    let_go.set()


def wait_for_the_thread() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def names(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] + path.name.partition("-")[2][:2] for path in folder.glob("*checkpoint*"))


def test_until_a_checkpoint_beside_the_steps_is_whole_the_one_before_it_stays(beside, resumed, tmp_path) -> None:
    undisturbed, _, _ = resumed("whole", "a job")

    def log(step: int, folder: Path) -> None:
        if step == 5:  # what a process that is killed now leaves behind
            assert names(folder) == [".checkpoint3.", "checkpoint1"]
            shutil.copytree(folder, tmp_path / "killed")
            beside.let_go.set()
        if step == 6:
            assert names(folder) == ["checkpoint3"]
            raise Killed

    with pytest.raises(Killed):
        beside(log)
    for folder, step in (("killed", 2), ("run", 4)):
        weights_then, first, said = resumed(folder, "a job", checkpoint_async=True)
        assert torch.equal(weights_then, undisturbed) and first == step and said == [], folder


def test_what_goes_wrong_beside_the_steps_ends_the_training_at_the_next_one(beside, tmp_path, monkeypatch) -> None:
    steps: list[int] = []

    def full(tensors, folder: Path) -> dict[str, str]:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "_save_whole", full)
    with pytest.raises(OSError, match="no space left"):
        beside(lambda step, folder: steps.append(step))
    assert steps == [1, 2] and names(tmp_path / "run") == []


def test_a_process_that_is_asked_to_leave_waits_for_the_checkpoint_on_its_way(beside, tmp_path, monkeypatch) -> None:
    def log(step: int, folder: Path) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            assert names(folder) == [".checkpoint3.", "checkpoint1"]
            threading.Timer(0.05, beside.let_go.set).start()

    with leaving.listening(), pytest.raises(leaving.Leave):
        beside(log)
    assert [name.split(".")[1] for name in beside.written] == ["checkpoint-1", "checkpoint-3"]
    assert names(tmp_path / "run") == ["checkpoint4"]


def test_on_a_processor_steps_wait_for_a_checkpoint_unless_the_setting_says_otherwise(start_model, monkeypatch) -> None:
    def beside(device: str, setting: Any) -> bool:
        alone = SimpleNamespace(device=torch.device(device), is_local_main_process=True, num_processes=1)
        return saving.saves_beside(alone, start_model, TrainConfig(lr=1, checkpoint_async=setting))

    copy_of_all = 12 * sum(p.numel() for p in start_model.parameters())
    monkeypatch.setattr(saving, "free_memory", lambda device: 2 * copy_of_all)
    assert [beside("cpu", setting) for setting in ("auto", True, False)] == [False, True, False]
    assert [beside("cuda", setting) for setting in ("auto", True, False)] == [True, True, False]
    monkeypatch.setattr(saving, "free_memory", lambda device: 2 * copy_of_all - 1)
    assert not beside("cuda", "auto"), "no room for the copy"
