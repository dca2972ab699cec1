"""The scores of a run. They are computed from its stored frames and the start model's, and stored beside them until one of
these changes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pobench.files import nan_as_null
from pobench.identity import PROTOCOL, code_digest
from pobench.results import metrics
from pobench.results.run_folder import STAGE_OF, RunFolder

FRAMES = ("heldout", "answers", "verdicts")


def scores_of(runs: Path, run: str) -> list[dict[str, Any]]:
    """Rows of the frame `scores`: metric, value, low, high, n, better; None for nan. [] where nothing is stored.

    Comparisons with the start model need its answers to the same prompts, with the same decoding. Once these are stored, the
    scores are computed again.
    """
    folder = RunFolder(runs, run)
    stored = folder.read_json("scores.json") if folder.has("scores.json") else None
    if isinstance(stored, list):  # protocol 1
        return stored
    start = _start(runs, folder)
    causes: dict[str, Any] = {"code": code_digest(metrics.score), "protocol": PROTOCOL, "ours": _nodes(folder)}
    causes["start"] = _nodes(start, like=folder) if start is not None else {}
    if stored is not None and stored["causes"] == causes:
        return list(stored["rows"])
    frames = _frames(folder, causes["ours"])
    if not frames:
        return []
    begun = _frames(start, causes["start"]) if start is not None else None
    rows = list(nan_as_null(metrics.score(frames, begun)))
    with contextlib.suppress(OSError):  # runs that may only be read are scored each time
        folder.write_json("scores.json", {"causes": causes, "rows": rows})
    return rows


def _start(runs: Path, folder: RunFolder) -> RunFolder | None:
    """The start model's folder; None if this run is the start model."""
    if not folder.has("config.yaml"):
        return None
    config = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    return None if config["kind"] == "start" else RunFolder(runs, config["start"])


def _nodes(folder: RunFolder, like: RunFolder | None = None) -> dict[str, str]:
    """Frame → the digest of its bytes. like: only results that have the same node names as this run's."""
    digests = {}
    for frame in FRAMES:
        shown = folder.shown.get(STAGE_OF[frame])
        if shown is None or not folder.node(shown).finished:
            continue
        beside = "answers" if frame == "verdicts" else STAGE_OF[frame]  # verdicts join on the answers they are about
        if like is None or like.shown.get(beside) == folder.shown.get(beside):
            digests[frame] = folder.node(shown).about["files"][f"{frame}.parquet"]
    return digests


def _frames(folder: RunFolder, names: Mapping[str, str]) -> dict[str, pd.DataFrame]:
    return {name: folder.read_frame(name).assign(run=folder.run) for name in names}
