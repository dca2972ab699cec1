"""What `pobench cache prune` removes, and what it leaves."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from pobench.errors import PobenchError
from pobench.results.run_folder import RunFolder
from pobench.sources import file_digest, weights_digest
from pobench.workflows.cache import DAY, cached, prune
from tests.pobench.stores import trained_run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two entries of each kind that runs name, one of them named by a run of `runs`; all are forty days old, but
    `models/fresh`."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("POBENCH_CACHE", str(folder))
    for name in ("named", "other", "fresh"):
        _write(folder / "models" / name / "model.safetensors", name)
        _write(folder / "sft" / f"start-{name}" / "model" / "model.safetensors", f"sft {name}")
    for name in ("0123456789ab", "ba9876543210"):
        _write(folder / "reference" / name / "sums.safetensors", name)
        _write(folder / "density_ratio" / name / "ratios.safetensors", name)
    for name in ("ORG_rows-train.parquet", "ORG_others-train.parquet"):
        _write(folder / "data" / name, name)
    for kind in ("replies", "downloads", "jobs"):
        _write(folder / kind / "one", kind)
    run = trained_run(tmp_path / "runs", "simpo-000000000001")
    named = {
        "weights": weights_digest(folder / "models" / "named"),
        "begins": weights_digest(folder / "sft/start-named/model"),
    }
    named |= {kind: f"{kind}-0123456789ab" for kind in ("reference", "density_ratio")}
    _finish(run, {**named, "rows": "ORG/rows"})
    old = time.time() - 40 * DAY
    for path in [folder, *folder.rglob("*")]:
        if "fresh" not in str(path):
            os.utime(path, (old, old))
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _finish(run: RunFolder, causes: dict[str, str]) -> None:
    run.finish_training(causes, {"pairs": 3, "steps": 1, "seconds": 1.0, "order": "o"})


def _left(cache: Path) -> set[str]:
    return {f"{entry.kind}/{entry.name}" for entry in cached() if entry.kind != "digests"}


KEPT = {
    "models/named", "models/fresh", "sft/start-named", "sft/start-fresh", "reference/0123456789ab",
    "density_ratio/0123456789ab",
    "data/ORG_rows-train.parquet", "replies/one", "downloads/one", "jobs/one",
}  # fmt: skip


def test_what_a_run_names_was_paid_for_or_is_in_use_stays_and_the_rest_goes_by_age(cache: Path, tmp_path: Path) -> None:
    before = _left(cache)
    done = prune([tmp_path / "runs"], older_than=30, dry=True)
    assert _left(cache) == before and done.freed > 0
    assert prune([tmp_path / "runs"], older_than=50).removed == []
    prune([tmp_path / "runs"], older_than=30)
    assert _left(cache) == KEPT and before > KEPT


def test_a_size_removes_the_longest_unused_until_it_fits(cache: Path, tmp_path: Path) -> None:
    older = time.time() - 60 * DAY
    for path in [cache / "models" / "other", cache / "models" / "other" / "model.safetensors"]:
        os.utime(path, (older, older))
    size = sum(entry.bytes for entry in cached())
    done = prune([tmp_path / "runs"], most=size - 1)
    assert [entry.name for entry in done.removed] == ["other"]
    assert prune([tmp_path / "runs"], most=0).left and _left(cache) == KEPT


def test_the_digest_of_a_file_that_is_gone_goes_whatever_its_age(cache: Path, tmp_path: Path) -> None:
    for name in ("here", "gone"):
        (tmp_path / name).write_text(name)
        file_digest(tmp_path / name)
    (tmp_path / "gone").unlink()
    prune([tmp_path / "runs"], older_than=10_000)
    files = {json.loads(path.read_text())["file"] for path in (cache / "digests").glob("*.json")}
    assert str(tmp_path / "here") in files and str(tmp_path / "gone") not in files


def test_runs_that_are_not_there_are_refused_before_anything_is_removed(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(PobenchError, match="no folder"):
        prune([tmp_path / "typo"], older_than=0)
    assert "models/other" in _left(cache)
