"""A run's scores, and the vectors that they and the scores of its arm are computed from. Both are stored beside its frames,
`scores.json` and `vectors.npz`, and used until a frame, the start model's, or the code changes: by content, never by name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pobench.errors import CorruptError
from pobench.files import checked_bytes, nan_as_null, write_bytes
from pobench.identity import PROTOCOL, code_digest
from pobench.results import metrics, vectors
from pobench.results.index import Entry, Home, homes_of, read_entry
from pobench.results.run_folder import VECTORS, RunFolder
from pobench.results.vectors import Vectors

FRAMES = ("heldout", "answers", "verdicts")
DISTINCT: dict[str, list[tuple[str, ...]]] = {
    "heldout": [("pair",)],
    "answers": [("prompt", "kind", "topic")],
    "verdicts": [("judge",), ("against",)],
}


class Facts(NamedTuple):
    """Of a run's frames. rows: frame → how many rows it has. unjudged: verdicts without a score. distinct: the columns of
    `DISTINCT` → a digest of their values."""

    rows: Mapping[str, int] = {}
    unjudged: int = 0
    distinct: Mapping[str, str] = {}


class Summary(NamedTuple):
    """rows: of the frame `scores`. vectors: read when called."""

    rows: list[dict[str, Any]]
    facts: Facts
    vectors: Callable[[], Vectors]


def scores_of(runs: Path, run: str) -> list[dict[str, Any]]:
    """Rows of the frame `scores`: metric, value, low, high, n, better; None for nan. [] where nothing is stored.

    Comparisons with the start model need its answers to the same prompts, by the same decoding. Once these are stored, the
    scores are computed again.
    """
    entry = entry_of(RunFolder(runs, run))
    start = None if entry.start is None else entry_of(RunFolder(runs, entry.start))
    return summary_of(runs, entry, start).rows


def entry_of(folder: RunFolder) -> Entry:
    """A run's entry; of a folder without a configuration, that of a start model."""
    if folder.has("config.yaml"):
        return read_entry(folder)
    return Entry({"run": folder.run, "kind": "start"}, homes_of(folder))


def summary_of(root: Path, entry: Entry, start: Entry | None, *, check: bool = True) -> Summary:
    """The stored summary of a run where it was made from the frames that are stored, else a new one, which is stored.

    start: the start model's entry. check: whether the frames' bytes are compared with their digests. Raises CorruptError where
    they are not those that were written.
    """
    path = root / entry.run
    stored = _stored(RunFolder(root, entry.run))
    if isinstance(stored, list):  # protocol 1
        return Summary(stored, Facts(), lambda: _made(root, entry))
    homes = {frame: home for frame, home in entry.homes.items() if frame in FRAMES}
    starts = _comparable(start, homes)
    causes = _causes() | {"ours": _digests(homes), "start": _digests(starts)}
    for frame, home in homes.items() if check else ():
        _read(root, home, frame)
    if stored is not None and stored["causes"] == causes and _whole(path / VECTORS, stored.get("vectors")):
        return _summary(stored, lambda: _load(entry.run, (path / VECTORS).read_bytes()))
    if not homes:
        return Summary([], Facts(), lambda: Vectors(entry.run, {}))
    own = frames_of(root, entry.run, homes)
    arrays = vectors.vectors_of({name: vectors.typed(own, name) for name in FRAMES})
    theirs = [] if start is None else [_made(root, start, starts)]
    rows = metrics.score_vectors([Vectors(entry.run, arrays)], None if entry.start is None else theirs)
    packed = _packed(arrays)
    about = {"causes": causes, "vectors": hashlib.sha256(packed).hexdigest()}
    summary = {**about, "facts": _facts(own)._asdict(), "rows": nan_as_null(rows)}
    with contextlib.suppress(OSError):  # runs that may only be read are scored each time
        write_bytes(path / VECTORS, packed)
        RunFolder(root, entry.run).write_json("scores.json", summary)
    return _summary(summary, lambda: Vectors(entry.run, arrays))


def vectors_in(root: Path, run: str) -> Vectors:
    """The vectors of a run's frames, computed from them."""
    return _made(root, entry_of(RunFolder(root, run)))


def headline(root: Path, entry: Entry, metric: str = "pass_rate") -> float | None:
    """A stored score of the results that are shown; None where none is stored, or it is of others."""
    stored = _stored(RunFolder(root, entry.run))
    if stored is None or (isinstance(stored, dict) and stored["causes"].get("ours") != entry.digests(*FRAMES)):
        return None
    rows = stored if isinstance(stored, list) else stored["rows"]
    return next((row["value"] for row in rows if row["metric"] == metric), None)


def _stored(folder: RunFolder) -> Any:
    """The content of `scores.json`, None where there is none or it cannot be read."""
    try:
        stored = folder.read_json("scores.json")
    except (OSError, CorruptError):
        return None
    known = isinstance(stored, list) or (isinstance(stored, dict) and {"causes", "rows"} <= set(stored))
    return stored if known else None


def _summary(stored: Mapping[str, Any], load: Callable[[], Vectors]) -> Summary:
    return Summary(list(stored["rows"]), Facts(**stored["facts"]), load)


@cache
def _causes() -> dict[str, Any]:
    code = {name: code_digest(of) for name, of in (("code", metrics.score), ("reduction", vectors.vectors_of))}
    return {**code, "protocol": PROTOCOL}


def _comparable(start: Entry | None, homes: Mapping[str, Home]) -> dict[str, Home]:
    """Those frames of the start model that are about the same questions, whatever seed their answers are drawn by."""
    starts = {} if start is None else {frame: home for frame, home in start.homes.items() if frame in FRAMES}

    def same(frame: str) -> bool:
        return frame in starts and frame in homes and starts[frame].asked == homes[frame].asked

    # verdicts join on the answers that they are about
    return {frame: home for frame, home in starts.items() if same("answers" if frame == "verdicts" else frame)}


def _digests(homes: Mapping[str, Home]) -> dict[str, str | None]:
    return {frame: home.sha256 for frame, home in homes.items()}


# ---------------------------------------------------------------- frames
def frames_of(root: Path, run: str, homes: Mapping[str, Home]) -> dict[str, pd.DataFrame]:
    """The frames, with the column `run`."""
    return {frame: read_frame(root, home, frame).assign(run=run) for frame, home in homes.items()}


def read_frame(root: Path, home: Home, frame: str, columns: list[str] | None = None) -> pd.DataFrame:
    """The stored rows, without the column `run`. columns: only these, of those that are stored. Raises CorruptError where the
    bytes are not those that were written."""
    data = io.BytesIO(_read(root, home, frame))
    if columns is None:
        return pd.read_parquet(data)
    from pyarrow import parquet

    file = parquet.ParquetFile(data)
    return file.read([name for name in columns if name in file.schema_arrow.names]).to_pandas()


def _read(root: Path, home: Home, frame: str) -> bytes:
    path = root / home.folder / f"{frame}.parquet"
    return path.read_bytes() if home.sha256 is None else checked_bytes(path, home.sha256)


def _facts(own: Mapping[str, pd.DataFrame]) -> Facts:
    verdicts = own.get("verdicts")
    distinct = {
        " ".join(columns): _distinct(own[frame], columns)
        for frame, several in DISTINCT.items()
        if frame in own
        for columns in several
    }
    unjudged = 0 if verdicts is None else int(verdicts["score"].isna().sum())
    return Facts({frame: len(rows) for frame, rows in own.items()}, unjudged, distinct)


def _distinct(rows: pd.DataFrame, columns: tuple[str, ...]) -> str:
    """A digest of the distinct values, in the order in which a sorted run has them."""
    values = rows.reindex(columns=list(columns)).astype(object).where(lambda v: v.notna(), None).drop_duplicates()
    texts = json.dumps(values.values.tolist(), default=str)
    return hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()[:16]


# ---------------------------------------------------------------- vectors
def _made(root: Path, entry: Entry, homes: Mapping[str, Home] | None = None) -> Vectors:
    """Vectors of a run's frames, or of those of `homes`."""
    kept = {frame: home for frame, home in (homes if homes is not None else entry.homes).items() if frame in FRAMES}
    own = frames_of(root, entry.run, kept)
    return Vectors(entry.run, vectors.vectors_of({name: vectors.typed(own, name) for name in FRAMES}))


def _packed(arrays: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _whole(file: Path, sha256: str | None) -> bool:
    """Whether the stored vectors have the bytes that were written."""
    try:
        return sha256 is not None and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
    except OSError:
        return False


def _load(run: str, data: bytes) -> Vectors:
    return Vectors(run, np.load(io.BytesIO(data), allow_pickle=False))
