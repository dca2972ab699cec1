"""Token pairs on disk, in a folder `data-<12 hex>`. Its name is a hash of the source files, the chat template, the values of
the data section and the code that reads rows, so a repeated command finds its pairs without tokenising again.

The folder appears whole. `data.json` holds the causes, the digests of both lists of pairs, and the sha256 of every file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pobench.data.capacity import Extent
from pobench.data.order import Ratings, pairs_digest
from pobench.data.prepare import Prepared
from pobench.files import MarkedFolder, checked_bytes, digests_of, whole
from pobench.types import TokenPair

LISTS = ("train", "heldout")
SEQUENCES = ("prompt", "chosen", "rejected")


class PairsFolder(MarkedFolder):
    """A folder with training pairs, held-out pairs, their audit and their digests.

    about: causes, digests (list → hex sha256), pairs (list → count), ratings (list → `Ratings`), prompts (of the training
    pairs), tokens (mean of a training pair), extent (largest token id and most tokens of a pair), summary, files.
    """

    marker = "data.json"

    def store(self, prepared: Prepared, causes: Mapping[str, Any]) -> None:
        """Write the folder, whole."""
        with whole(self.path) as partial:
            partial.mkdir(parents=True)
            for name in LISTS:
                frame(getattr(prepared, name)).to_parquet(partial / f"{name}.parquet", index=False)
            (partial / "audit.json").write_text(prepared.audit.to_json(orient="records", indent=1))
            about = {
                "causes": dict(causes),
                "digests": {name: pairs_digest(getattr(prepared, name)) for name in LISTS},
                "pairs": {name: len(getattr(prepared, name)) for name in LISTS},
                "ratings": {name: Ratings.of(getattr(prepared, name)) for name in LISTS},
                "prompts": len({pair.prompt for pair in prepared.train}),
                "tokens": mean_tokens(prepared.train),
                "extent": Extent.of(prepared.groups),
                "summary": prepared.summary,
                "files": digests_of(partial),
            }
            (partial / self.marker).write_text(json.dumps(about, indent=1), encoding="utf-8")

    @property
    def extent(self) -> Extent:
        """Of all stored pairs."""
        known = self.about.get("extent")
        return Extent(*known) if known is not None else Extent.of(self.load().groups)

    def load(self) -> Prepared:
        """The stored pairs. Raises CorruptError if the bytes of a file are not those that were written."""
        about = self.about
        data = {name: checked_bytes(self.path / name, digest) for name, digest in about["files"].items()}
        lists = {name: _pairs(pd.read_parquet(io.BytesIO(data[f"{name}.parquet"]))) for name in LISTS}
        audit = pd.DataFrame(json.loads(data["audit.json"]))
        return Prepared(lists["train"], lists["heldout"], audit, about["summary"])


def mean_tokens(pairs: Sequence[TokenPair]) -> float:
    """The mean number of tokens of a pair: prompt and both responses."""
    return sum(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs) / max(1, len(pairs))


def frame(pairs: Sequence[TokenPair]) -> pd.DataFrame:
    """One row per pair: its id, its token ids, and its scores where any pair has some."""
    rows = pd.DataFrame([{"id": p.id, **dict(zip(SEQUENCES, map(list, p.sequences), strict=True))} for p in pairs])
    if any(p.scores is not None for p in pairs):
        rows["scores"] = [None if p.scores is None else list(p.scores) for p in pairs]
    return rows


def _pairs(frame: pd.DataFrame) -> list[TokenPair]:
    columns = [[tuple(np.asarray(ids).tolist()) for ids in frame[name]] for name in SEQUENCES]
    given = frame["scores"] if "scores" in frame else [None] * len(frame)
    scores = [None if both is None else (float(both[0]), float(both[1])) for both in given]
    return [TokenPair(*row) for row in zip(frame["id"], *columns, scores, strict=True)]
