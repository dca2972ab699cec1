"""Token pairs on disk, in a folder `data-<12 hex>`. Its name is a hash of the source files, the chat template, the values of
the data section and the code that reads rows, so a repeated command finds its pairs without tokenising again.

The folder appears whole. `data.json` holds the causes, the digests of both lists of pairs, and the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from pobench.data.capacity import Extent
from pobench.data.order import Ratings, pairs_digest
from pobench.data.prepare import Prepared
from pobench.data.token_rows import TokenRows
from pobench.files import MarkedFolder, digests_of, refuse_corrupt, whole
from pobench.types import TokenPair

LISTS = ("train", "heldout")
SEQUENCES = ("prompt", "chosen", "rejected")


class PairsFolder(MarkedFolder):
    """A folder with training pairs, held-out pairs (Arrow, see `TokenRows`), their audit and their digests.

    about: causes, digests (list → hex sha256), pairs (list → count), ratings (list → `Ratings`), prompts (of the training
    pairs), tokens (mean of a training pair), extent (largest token id and most tokens of a pair), summary, files.
    """

    marker = "data.json"

    def store(self, prepared: Prepared, causes: Mapping[str, Any]) -> None:
        """Write the folder, whole."""
        with whole(self.path) as partial:
            partial.mkdir(parents=True)
            for name in LISTS:
                getattr(prepared, name).write(partial / f"{name}.arrow")
            (partial / "audit.json").write_text(prepared.audit.to_json(orient="records", indent=1))
            about = {
                "causes": dict(causes),
                "digests": {name: pairs_digest(getattr(prepared, name)) for name in LISTS},
                "pairs": {name: len(getattr(prepared, name)) for name in LISTS},
                "ratings": {name: Ratings.of(getattr(prepared, name)) for name in LISTS},
                "prompts": distinct_prompts(prepared.train),
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
        refuse_corrupt(self.path, about["files"])
        train, heldout = (TokenRows.read(TokenPair, self.path / f"{name}.arrow") for name in LISTS)
        audit = pd.DataFrame(json.loads((self.path / "audit.json").read_bytes()))
        return Prepared(train, heldout, audit, about["summary"])


def mean_tokens(pairs: TokenRows[TokenPair]) -> float:
    """The mean number of tokens of a pair: prompt and both responses."""
    return tokens_of(pairs).sum() / max(1, len(pairs))  # type: ignore[no-any-return]


def tokens_of(pairs: TokenRows[TokenPair]) -> np.ndarray:
    """(pairs,) tokens of each pair: prompt and both responses."""
    return sum((pairs.lengths(name) for name in SEQUENCES), start=np.zeros(len(pairs), np.int64))


def distinct_prompts(pairs: Iterable[TokenPair]) -> int:
    """How many prompts the pairs have."""
    return len({hashlib.sha256(np.asarray(pair.prompt, dtype="<i4").tobytes()).digest() for pair in pairs})
