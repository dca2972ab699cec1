"""The scores of a run. They are computed from its stored frames and the start model's, and stored beside them until one of
these changes."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pobench.files import nan_as_null
from pobench.identity import PROTOCOL, code_digest
from pobench.results import metrics
from pobench.results.run_folder import NodeFolder, RunFolder

FRAMES = ("heldout", "answers", "verdicts")


def scores_of(runs: Path, run: str) -> list[dict[str, Any]]:
    """Rows of the frame `scores`: metric, value, low, high, n, better; None for nan. [] where nothing is stored.

    Comparisons with the start model need its answers to the same prompts, by the same decoding. Once these are stored, the
    scores are computed again.
    """
    folder = RunFolder(runs, run)
    stored = folder.read_json("scores.json") if folder.has("scores.json") else None
    if isinstance(stored, list):  # protocol 1
        return stored
    start = _start(runs, folder)
    frames = scored_frames(folder)
    starts = _comparable(scored_frames(start), frames) if start is not None else {}
    causes: dict[str, Any] = {"code": code_digest(metrics.score), "protocol": PROTOCOL, "ours": _digests(frames)}
    causes["start"] = _digests(starts)
    if stored is not None and stored["causes"] == causes:
        return list(stored["rows"])
    if not frames:
        return []
    rows = list(nan_as_null(metrics.score(read(frames, run), read(starts, start.run) if start is not None else None)))
    with contextlib.suppress(OSError):  # runs that may only be read are scored each time
        folder.write_json("scores.json", {"causes": causes, "rows": rows})
    return rows


def _start(runs: Path, folder: RunFolder) -> RunFolder | None:
    """The start model's folder; None if this run is the start model."""
    if not folder.has("config.yaml"):
        return None
    config = folder.config
    return None if config["kind"] == "start" else RunFolder(runs, config["start"])


def scored_frames(folder: RunFolder) -> dict[str, NodeFolder]:
    """Frame → the result that holds it, of the frames that scores are computed from."""
    return {frame: node for frame, node in folder.frames().items() if frame in FRAMES}


def _comparable(starts: Mapping[str, NodeFolder], frames: Mapping[str, NodeFolder]) -> dict[str, NodeFolder]:
    """Those frames of the start model that are about the same questions, whatever seed their answers are drawn by."""

    def questions(node: NodeFolder) -> Any:
        causes = node.about["causes"] if node.finished else {"folder": node.path}  # protocol 1 stored none
        return {cause: value for cause, value in causes.items() if cause != "seed"}

    def same(frame: str) -> bool:
        return frame in starts and frame in frames and questions(starts[frame]) == questions(frames[frame])

    # verdicts join on the answers that they are about
    return {frame: node for frame, node in starts.items() if same("answers" if frame == "verdicts" else frame)}


def _digests(nodes: Mapping[str, NodeFolder]) -> dict[str, str | None]:
    return {frame: node.digest(frame) for frame, node in nodes.items()}


def read(nodes: Mapping[str, NodeFolder], run: str) -> dict[str, pd.DataFrame]:
    """The frames, with the column `run`."""
    return {frame: node.read_frame(frame).assign(run=run) for frame, node in nodes.items()}
