"""Scores of a run, derived from its stored frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pobench.results.run_folder import RunFolder


def _frames(folder: RunFolder) -> dict[str, pd.DataFrame]:
    names = ("heldout", "answers", "verdicts")
    return {n: folder.read_frame(n).assign(run=folder.run) for n in names if folder.has(f"{n}.parquet")}


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]
