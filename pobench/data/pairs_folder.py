"""Training items on disk, in a folder `data-<12 hex>`. Its name is a hash of the source files, the chat template, the values of
the data section and the code that reads rows, so a repeated command finds its pairs without tokenising again.

The folder appears whole. `data.json` holds the causes, the digests of the items, and the sha256 of every file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pobench.data.capacity import Extent
from pobench.data.order import Ratings, ids_digest, items_digest
from pobench.data.prepare import Prepared
from pobench.data.token_rows import T, TokenRows
from pobench.files import MarkedFolder, digests_of, refuse_corrupt, sealed, whole
from pobench.types import Group, Item, TokenAnswer, TokenList, TokenPair

PAIRS = ("train", "heldout")
SEQUENCES = ("prompt", "chosen", "rejected")


class PairsFolder(MarkedFolder):
    """A folder with training pairs, held-out pairs, the lists or answers that the data have, their audit and their digests.

    Its parts are `train` and `heldout`, and `lists` or `answers` where there are any; each is an Arrow file (`TokenRows`).
    about: causes, digests (part → hex sha256), pairs (part → count), ratings (part → `Ratings`), prompts (of the training
    pairs), tokens (mean of a training pair), extent (largest token id and most tokens of a sequence), summary, files, and
    own (`Own`) where there are lists or answers.
    """

    marker = "data.json"

    def store(self, prepared: Prepared, causes: Mapping[str, Any]) -> None:
        """Write the folder, whole."""
        parts = parts_of(prepared)
        with whole(self.path) as partial:
            partial.mkdir(parents=True)
            for name, items in parts.items():
                items.write(partial / f"{name}.arrow")
            (partial / "audit.json").write_text(prepared.audit.to_json(orient="records", indent=1))
            about = {
                "causes": dict(causes),
                "digests": {name: items_digest(items) for name, items in parts.items()},
                "pairs": {name: len(items) for name, items in parts.items()},
                "ratings": {name: Ratings.of(items) for name, items in parts.items()},
                "prompts": distinct_prompts(prepared.train),
                "tokens": mean_tokens(prepared.train),
                "extent": Extent.of(prepared.groups),
                "summary": prepared.summary,
                **({"own": own} if (own := own_of(prepared)) else {}),
                "files": digests_of(partial),
            }
            (partial / self.marker).write_text(json.dumps(sealed(about), indent=1), encoding="utf-8")

    @property
    def extent(self) -> Extent:
        """Of all stored items."""
        known = self.about.get("extent")
        return Extent(*known) if known is not None else Extent.of(self.load().groups)

    def load(self) -> Prepared:
        """The stored items. Raises CorruptError if the bytes of a file are not those that were written."""
        about = self.about
        refuse_corrupt(self.path, about["files"])

        def part(kind: type[T], name: str) -> TokenRows[T]:
            file = f"{name}.arrow"
            return TokenRows.read(kind, self.path / file) if file in about["files"] else TokenRows(kind)

        train, heldout = (part(TokenPair, name) for name in PAIRS)
        audit = pd.DataFrame(json.loads((self.path / "audit.json").read_bytes()))
        return Prepared(train, heldout, audit, about["summary"], part(TokenList, "lists"), part(TokenAnswer, "answers"))


def parts_of(prepared: Prepared) -> dict[str, TokenRows[Any]]:
    """The parts of a folder by name: both lists of pairs, and lists and answers where the data have any."""
    own: dict[str, TokenRows[Any]] = {"lists": prepared.lists, "answers": prepared.answers}
    return {"train": prepared.train, "heldout": prepared.heldout, **{k: items for k, items in own.items() if items}}


class Own(NamedTuple):
    """Of lists or answers: how many, how many prompts they have, the mean tokens of one with its prompt, and the most."""

    items: int
    prompts: int
    tokens: float
    longest: int

    @classmethod
    def of(cls, items: Sequence[Item]) -> Own:
        longest = max(Group.of(item).tokens for item in items)
        return cls(len(items), distinct_prompts(items), mean_tokens(items), longest)


def own_of(prepared: Prepared) -> dict[str, Own]:
    """Of the lists or answers that the data have, by unit."""
    return {name: Own.of(items) for name, items in parts_of(prepared).items() if name not in PAIRS}


def mean_tokens(items: Sequence[Item]) -> float:
    """The mean number of tokens of an item: its prompt and all its responses."""
    return sum(Group.of(item).tokens for item in items) / max(1, len(items))


def tokens_of(pairs: TokenRows[TokenPair]) -> np.ndarray:
    """(pairs,) tokens of each pair: prompt and both responses."""
    return sum((pairs.lengths(name) for name in SEQUENCES), start=np.zeros(len(pairs), np.int64))


def distinct_prompts(items: Iterable[Item]) -> int:
    """How many prompts the items have."""
    return len({ids_digest(item.prompt) for item in items})
