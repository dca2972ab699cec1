"""A plan beside many stored runs: what is read of them does not grow with the jobs that are new."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pobench.runs.nodes import Layout


def new_job(seed: int) -> Any:
    return SimpleNamespace(
        job=SimpleNamespace(setting="small", loss="dpo"),
        title=f"dpo, seed {seed}",
        causes={"seed": seed, "pairs": "new"},
    )


def test_the_trained_models_of_a_loss_are_read_once_for_all_new_jobs(tmp_path: Path, monkeypatch: Any) -> None:
    stored, new = 5, 7
    for seed in range(stored):
        folder = tmp_path / f"small/dpo-{seed:012x}"
        folder.mkdir(parents=True)
        (folder / "trained.json").write_text(json.dumps({"causes": {"seed": seed, "pairs": "old"}}))
    read: list[Path] = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: (read.append(path), read_text(path, *a, **k))[1])
    layout = Layout(tmp_path, (), (), None, None, [], [])
    for seed in range(new):
        layout._note_change(new_job(seed))
    assert len(read) == stored
    assert [note.partition(":")[0] for note in layout.notes] == [f"dpo, seed {seed}" for seed in range(stored)]
    assert "the token pairs changed since dpo-000000000000" in layout.notes[0]
    assert replace(layout, stored={}).stored == {}, "another plan reads again"
