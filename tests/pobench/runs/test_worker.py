"""What a worker stores of the machine that it had."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from pobench.model.device import JOBS, PART_OF_A_MACHINE, make_accelerator
from pobench.results.run_folder import RunFolder
from pobench.runs.worker import _of_all_attempts


def test_a_run_that_went_on_with_another_part_of_a_machine_stores_none(tmp_path: Path, monkeypatch) -> None:
    folder = RunFolder(tmp_path, "tiny/dpo-aaaaaaaaaaaa")
    folder.path.mkdir(parents=True)
    context = SimpleNamespace(folder=folder, accelerator=make_accelerator("fp32", cpu=True))

    def attempt(jobs: int) -> dict[str, object]:
        monkeypatch.setenv(JOBS, str(jobs))
        folder.write_json("environment.json", found := _of_all_attempts(context))  # type: ignore[arg-type]
        return found

    assert attempt(2)["jobs"] == 2 and attempt(1)["jobs"] == 1  # without a checkpoint it begins anew
    (folder.path / "checkpoint-3").mkdir()
    assert attempt(1)["jobs"] == 1
    for jobs in (2, 2):  # of the third attempt, too, nothing is known
        assert set(attempt(jobs)).isdisjoint(PART_OF_A_MACHINE)
    (folder.path / "environment.json").write_text("{")
    assert "jobs" not in attempt(2)  # what it had before cannot be read
