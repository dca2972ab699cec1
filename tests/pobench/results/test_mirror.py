"""Runs at an address are read as those of a folder are; what a report is made of is copied once, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from stores import start_run, trained_run, unscored

from pobench.errors import PobenchError
from pobench.results import mirror
from pobench.results.load import load_frames
from pobench.results.mirror import is_address, local_runs


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pobench.results.load.summary_of", lambda root, entry, start, check: unscored(entry.run))
    root = tmp_path / "runs"
    start_run(root)
    run = trained_run(root, "simpo-aaaaaaaaaaaa")
    (run.path / "checkpoint-1").mkdir()
    (run.path / "checkpoint-1" / "state.json").write_text("{}")
    (root / "report").mkdir()
    (root / "report" / "summary.json").write_text("{}")
    return root


def in_memory(root: Path) -> str:
    """The store at an address of its own."""
    files = fsspec.filesystem("memory")
    address = f"memory://{root.parent.name}/runs"
    files.put(f"{root}/", f"{address}/", recursive=True)
    return address


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_the_frames_of_an_address_are_those_of_the_folder(store, kind, capsys) -> None:
    address = in_memory(store) if kind == "memory" else f"file://{store}"
    ours, theirs = load_frames(store), load_frames(address)
    for name, frame in ours.stored.items():
        pd.testing.assert_frame_equal(frame, theirs[name])
    copied = [p.relative_to(local_runs(address)).as_posix() for p in local_runs(address).rglob("*") if p.is_file()]
    assert not [p for p in copied if "model/" in p or "checkpoint" in p or "report" in p]
    assert "files" in capsys.readouterr().err


def test_a_second_command_copies_what_is_new_or_changed_and_forgets_what_is_gone(store, monkeypatch) -> None:
    address = f"file://{store}"
    local_runs(address)
    fetched: list[str] = []
    fetch = mirror._fetch
    monkeypatch.setattr(mirror, "_fetch", lambda files, found, copy: (fetched.extend(found), fetch(files, found, copy)))
    local_runs(address)
    assert fetched == []
    trained_run(store, "dpo-bbbbbbbbbbbb")
    (store / "tiny/simpo-aaaaaaaaaaaa/shown.json").write_text("{}\n")
    shutil.rmtree(store / "tiny/start-000000000000")
    copy = local_runs(address)
    assert {Path(name).parts[1] for name in fetched} == {"dpo-bbbbbbbbbbbb", "simpo-aaaaaaaaaaaa"}
    assert [name for name in fetched if "simpo" in name] == ["tiny/simpo-aaaaaaaaaaaa/shown.json"]
    assert not list(copy.glob("*/start-*/config.yaml")) and list(copy.glob("*/dpo-*/config.yaml"))


def test_a_report_of_an_address_lies_here_and_nothing_is_written_there(
    store, tmp_path, monkeypatch, pobench_cli
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*")}
    status, out, _ = pobench_cli(
        "analyze", "--runs", f"file://{store}", "--figures", "settings-table", "--format", "md"
    )
    assert status == 0 and "report: report" in out and (tmp_path / "report").is_dir()
    assert {p: p.stat().st_mtime_ns for p in store.rglob("*")} == before


def test_what_writes_refuses_an_address(pobench_cli) -> None:
    status, _, err = pobench_cli("run", "--runs", "s3://bucket/runs", "--setting", "tiny")
    assert status == 2 and "is an address, which `pobench analyze` and `plan` read" in err
    assert not Path("s3:").exists()


@pytest.mark.parametrize(
    ("address", "words"),
    [("memory://nothing/here", "no stored runs at"), ("nosuch://bucket/runs", "cannot be read"), ("s3://b/r", "s3fs")],
)
def test_an_address_that_cannot_be_read_is_one_sentence(address, words, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PobenchError, match=words):
        load_frames(address)


def test_a_folder_is_no_address_whatever_it_is_called(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_address("s3://bucket/runs") and is_address(Path("gs://bucket/runs")) and is_address("zip::file://a.zip")
    assert not is_address("runs") and not is_address("/a/b") and not is_address("my:runs") and not is_address("C:runs")
