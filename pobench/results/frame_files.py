"""Frames as files: what a report was computed from, small enough to keep beside it and exact.

`pobench analyze --format parquet` writes a folder `frames` with one Parquet file a frame; `load_frames` reads such a folder
like a folder of runs, so `pobench analyze --runs FOLDER/frames` computes the report again. The files hold all that claims,
comparisons, gains, variances and tables of scores are computed from. They leave out what is large and read by pictures and
people alone: the steps of training, judges' reasons, the loss of each pair, answers to benchmarks, and the answers' texts, of
which `characters` and `repeated` are counted; so `scores` also has the rows of runs that differ in the seed alone, some of
which are counted from texts. No number is rounded: a column is stored in 32 bits only where every number is the same in 32
bits, as log-probabilities from a model are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pobench.columns import FRAMES, STORED
from pobench.files import MarkedFolder, digests_of, refuse_corrupt, sealed, whole
from pobench.results.vectors import repeated_share

LEFT_OUT = {  # frames and columns
    *("steps", "benchmark_answers", "answers.text", "verdicts.reason", "comparisons.reason"),
    *("heldout.loss", "trainpairs.loss"),
}


class FramesFolder(MarkedFolder):
    """Frames as files, and their digests."""

    marker = "frames.json"


def is_frames(folder: Path) -> bool:
    """Whether a folder holds frames as files, and not runs."""
    return (folder / "runs.parquet").is_file() or (folder / FramesFolder.marker).is_file()


def write_frames(frames: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write the stored frames as `FOLDER/<frame>.parquet`, without `LEFT_OUT` and without empty ones. The same frames give the
    same bytes."""
    with whole(folder) as partial:
        partial.mkdir(parents=True)
        for described in (described for described in STORED if described.name not in LEFT_OUT):
            frame = frames.get(described.name)
            if frame is not None and len(frame):
                kept = [name for name in frame if f"{described.name}.{name}" not in LEFT_OUT]
                _write(frame[kept], partial / f"{described.name}.parquet")
        (partial / FramesFolder.marker).write_text(json.dumps(sealed({"files": digests_of(partial)}), indent=1) + "\n")


def read_frames(folder: Path) -> dict[str, pd.DataFrame]:
    """The frames that `write_frames` wrote; one without a file is empty. Raises CorruptError where a file is not what was
    written; earlier versions stored no digests."""
    stored = FramesFolder(folder)
    if stored.finished:
        refuse_corrupt(folder, stored.about["files"])
    frames = {}
    for described in STORED:
        file = folder / f"{described.name}.parquet"
        frame = pd.read_parquet(file) if file.is_file() else pd.DataFrame()
        short = frame.select_dtypes("float32").columns
        frames[described.name] = described.of(frame.astype(dict.fromkeys(short, "float64")))
    return frames


def counted(answers: pd.DataFrame) -> pd.DataFrame:
    """The frame `answers` with what is counted from its texts: `characters` and `repeated`. Where no text is there, they stay
    as they are."""
    if answers.empty or answers["text"].isna().all():
        return answers
    # Samples often agree, so each text is counted once. Not `Series.map`, whose index of the texts refuses broken Unicode.
    places, distinct = pd.factorize(answers["text"])
    texts = [str(text) for text in distinct]
    counts = {
        "characters": [*map(len, texts), math.nan],
        "repeated": [*(repeated_share(text.casefold().split()) for text in texts), math.nan],
    }
    columns = {
        name: np.array(count)[places] for name, count in counts.items()
    }  # the place of a missing text is -1, the last
    return FRAMES["answers"].typed(answers.assign(**columns))


def _write(frame: pd.DataFrame, file: Path) -> None:
    """One Parquet file: columns of few distinct values by a dictionary, other numbers with their bytes split by place, which
    compresses better."""
    import pyarrow
    from pyarrow import parquet

    floats = frame.select_dtypes("float64").columns
    exact = {name: "float32" for name in floats if frame[name].equals(frame[name].astype("float32").astype("float64"))}
    frame = frame.astype(exact)
    many = [name for name in floats if frame[name].nunique() > len(frame) / 2]
    parquet.write_table(
        pyarrow.Table.from_pandas(frame, preserve_index=False),
        file,
        compression="zstd",
        compression_level=15,
        use_dictionary=[name for name in frame if name not in many],
        column_encoding=dict.fromkeys(many, "BYTE_STREAM_SPLIT"),
    )
