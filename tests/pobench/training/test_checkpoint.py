"""A checkpoint is resumed by the job whose content it is, and only as long as its bytes are those that were written."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pobench import files
from pobench.errors import CorruptError, PobenchError
from pobench.identity import name_of
from pobench.model.logps import ResponseLogps
from pobench.settings.schema import TrainConfig
from pobench.training import checkpoint
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
    # Afterwards there is one checkpoint in the folder, the job's own.
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-5"]


@pytest.mark.parametrize("kind", ["weights-", "adam-", "state"])
def test_a_changed_byte_is_named_and_the_checkpoint_is_not_used(kind, killed, resumed) -> None:
    undisturbed, _, _ = resumed("whole", "a job")
    saved = killed("run", "a job")
    file = next(path for path in sorted(saved.iterdir()) if path.name.startswith(kind))
    flip_a_byte(file)
    again, first, said = resumed("run", "a job")
    assert torch.equal(again, undisturbed) and first == 1
    (text,) = said
    assert text.startswith(f"{str(file)!r} is damaged: ") and text.endswith("; training starts from the beginning")


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
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *given: (contents.add(given[-1]), save(*given))[1])
    folder = work_here("simpo", ("train",), train__checkpoint_seconds=0.0, train__epochs=2)
    causes = json.loads((folder / "trained.json").read_text())["causes"]
    assert contents == {name_of(causes)}


def test_saving_takes_at_most_its_share_of_the_time(monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now))
    pace, always = checkpoint.Pace(60.0, 0.05), checkpoint.Pace(0.0, 0.05)
    spent = saved = 0.0
    while now < 7200:  # steps of 10 s; a checkpoint takes 30 s
        now += 10
        assert always.due
        if pace.due:
            assert spent == 0 or now - spent >= 570  # 30 s of 600 are 5 %
            with pace.saving():
                now += 30
            spent, saved = now, saved + 1
    assert saved == 12  # the first after 60 s, then one every 600 s
