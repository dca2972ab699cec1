"""`pobench doctor` judges: what each use lacks, and the exit status of the main job."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from pobench.workflows import doctor


def test_a_package_that_is_absent_or_out_of_its_range_comes_with_the_line_that_installs_it() -> None:
    versions = {"torch": "2.1", "typer": "0.20"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    needed = [(Requirement(line), f"pip install '{line}'") for line in ("torch>=2.11", "typer>=0.15", "rich>=13.9")]
    assert doctor.package_faults(needed, version) == [
        "torch 2.1 is not >=2.11: pip install 'torch>=2.11'",
        "rich is not installed: pip install 'rich>=13.9'",
    ]


def test_an_extra_is_asked_for_with_what_it_names(monkeypatch) -> None:
    lines = [
        "torch>=2.11",
        "openai>=1.5",
        'pobench[peft]; extra == "qlora"',
        'bitsandbytes>=0.46; extra == "qlora"',
        'no-such-peft>=0.17; extra == "peft"',
    ]
    monkeypatch.setattr(doctor, "declared", lambda: [Requirement(line) for line in lines])
    needed = doctor.required(doctor.Use("", extra="qlora"))
    faults = doctor.package_faults(needed)
    assert "no-such-peft is not installed: pip install 'pobench[qlora]'" in faults
    main = [requirement.name for requirement, _ in doctor.required(doctor.Use("", always=True))]
    assert main == ["torch"]  # a judge's package is no part of the main job


def test_every_extra_of_a_use_is_declared() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {use.extra for use in doctor.USES} - {""} <= set(project["optional-dependencies"])
    core = {Requirement(line).name for line in project["dependencies"]}
    assert {package for use in doctor.USES for package in use.packages} <= core


def test_a_folder_that_is_full_or_not_to_be_written_is_a_fault(tmp_path) -> None:
    assert doctor.folder_faults("cache", tmp_path / "not" / "there", least=0) == []
    (full,) = doctor.folder_faults("cache", tmp_path, least=1e18)
    assert full.startswith("cache: ") and "GiB free" in full
    (tmp_path / "file").write_text("")
    (fault,) = doctor.folder_faults("runs", tmp_path / "file", least=0)
    assert "cannot be written to" in fault


def test_a_gpu_that_torch_does_not_see_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.advice(driver=tmp_path) == []
    (tmp_path / "0000:01:00.0").mkdir()
    (line,) = doctor.advice(driver=tmp_path)
    assert "an NVIDIA GPU is there" in line and torch.__version__ in line


@pytest.mark.parametrize("fault", [[], ["cache: \x1b[31mfull"]])
def test_doctor_ends_with_1_where_the_main_job_could_not_run_and_prints_no_key(
    fault, pobench_cli, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    monkeypatch.setattr(doctor, "package_faults", lambda needed: [])
    monkeypatch.setattr(doctor, "folder_faults", lambda name, folder: fault)
    status, printed, err = pobench_cli("doctor")
    assert status == bool(fault), printed + err
    assert "main job on a processor" in printed and "torch " in printed and "cache " in printed
    assert "sk-very-secret" not in printed + err and "\x1b[31m" not in printed
    status, printed, _ = pobench_cli("doctor", "--json")
    uses = {row["use"]: row["verdict"] for row in json.loads(printed)["uses"]}
    assert status == bool(fault) and set(uses) == {use.title for use in doctor.USES}
    assert uses["judges by endpoint"] == "ready"
