"""Training items on disk, in a folder `data-<12 hex>`. Its name is a hash of the source files, the chat template, the values of
the data section and the code that reads rows, so a repeated command finds its pairs without tokenising again.

The folder appears whole. `data.json` holds the causes, the digests of the items, and the sha256 of every file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pobench.data.capacity import Extent
from pobench.data.order import Ratings, items_digest
from pobench.data.prepare import Prepared
from pobench.files import MarkedFolder, checked_bytes, digests_of, whole
from pobench.types import Group, Item, TokenAnswer, TokenList, TokenPair

PAIRS = ("train", "heldout")
SEQUENCES = ("prompt", "chosen", "rejected")


class PairsFolder(MarkedFolder):
    """A folder with training pairs, held-out pairs, the lists or answers that the data have, their audit and their digests.

    Its parts are `train` and `heldout`, and `lists` or `answers` where there are any; each is a Parquet file.
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
                frame(items).to_parquet(partial / f"{name}.parquet", index=False)
            (partial / "audit.json").write_text(prepared.audit.to_json(orient="records", indent=1))
            about = {
                "causes": dict(causes),
                "digests": {name: items_digest(items) for name, items in parts.items()},
                "pairs": {name: len(items) for name, items in parts.items()},
                "ratings": {name: Ratings.of(items) for name, items in parts.items()},
                "prompts": len({pair.prompt for pair in prepared.train}),
                "tokens": mean_tokens(prepared.train),
                "extent": Extent.of(prepared.groups),
                "summary": prepared.summary,
                **({"own": own} if (own := own_of(prepared)) else {}),
                "files": digests_of(partial),
            }
            (partial / self.marker).write_text(json.dumps(about, indent=1), encoding="utf-8")

    @property
    def extent(self) -> Extent:
        """Of all stored items."""
        known = self.about.get("extent")
        return Extent(*known) if known is not None else Extent.of(self.load().groups)

    def load(self) -> Prepared:
        """The stored items. Raises CorruptError if the bytes of a file are not those that were written."""
        about = self.about
        data = {name: checked_bytes(self.path / name, digest) for name, digest in about["files"].items()}

        def part(name: str) -> pd.DataFrame | None:
            return pd.read_parquet(io.BytesIO(data[f"{name}.parquet"])) if f"{name}.parquet" in data else None

        train, heldout = (_pairs(part(name)) for name in PAIRS)
        audit = pd.DataFrame(json.loads(data["audit.json"]))
        return Prepared(train, heldout, audit, about["summary"], _lists(part("lists")), _answers(part("answers")))


def parts_of(prepared: Prepared) -> dict[str, Sequence[Item]]:
    """The parts of a folder by name: both lists of pairs, and lists and answers where the data have any."""
    own: dict[str, Sequence[Item]] = {"lists": prepared.lists, "answers": prepared.answers}
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
        return cls(len(items), len({item.prompt for item in items}), mean_tokens(items), longest)


def own_of(prepared: Prepared) -> dict[str, Own]:
    """Of the lists or answers that the data have, by unit."""
    return {name: Own.of(items) for name, items in parts_of(prepared).items() if name not in PAIRS}


def mean_tokens(items: Sequence[Item]) -> float:
    """The mean number of tokens of an item: its prompt and all its responses."""
    return sum(Group.of(item).tokens for item in items) / max(1, len(items))


def frame(items: Sequence[Item]) -> pd.DataFrame:
    """One row per item: its id, its token ids, the ranks of a list, the label of an answer, and scores where any item has
    some."""
    rows = pd.DataFrame([_row(item) for item in items], columns=None if items else ["id", *SEQUENCES])
    name = "score" if items and isinstance(items[0], TokenAnswer) else "scores"
    scores = [getattr(item, name) for item in items]
    if any(given is not None for given in scores):
        rows[name] = [list(given) if isinstance(given, tuple) else given for given in scores]
    return rows


def _row(item: Item) -> dict[str, Any]:
    row: dict[str, Any] = {"id": item.id, "prompt": list(item.prompt)}
    if isinstance(item, TokenPair):
        return {**row, "chosen": list(item.chosen), "rejected": list(item.rejected)}
    if isinstance(item, TokenList):
        return {**row, "responses": list(map(list, item.responses)), "ranks": list(item.ranks)}
    return {**row, "response": list(item.response), "label": item.label}


def _pairs(frame: pd.DataFrame | None) -> list[TokenPair]:
    if frame is None:
        return []
    columns = [[_ids(ids) for ids in frame[name]] for name in SEQUENCES]
    scores = [None if both is None else (float(both[0]), float(both[1])) for both in _given(frame, "scores")]
    return [TokenPair(*row) for row in zip(frame["id"], *columns, scores, strict=True)]


def _lists(frame: pd.DataFrame | None) -> list[TokenList]:
    if frame is None:
        return []
    prompts, ranks = ([_ids(ids) for ids in frame[name]] for name in ("prompt", "ranks"))
    responses = [tuple(map(_ids, of_list)) for of_list in frame["responses"]]
    scores = [None if given is None else tuple(map(float, given)) for given in _given(frame, "scores")]
    return [TokenList(*row) for row in zip(frame["id"], prompts, responses, ranks, scores, strict=True)]


def _answers(frame: pd.DataFrame | None) -> list[TokenAnswer]:
    if frame is None:
        return []
    prompts, responses = ([_ids(ids) for ids in frame[name]] for name in ("prompt", "response"))
    scores = [None if score is None or score != score else float(score) for score in _given(frame, "score")]
    labels = map(bool, frame["label"])
    return [TokenAnswer(*row) for row in zip(frame["id"], prompts, responses, labels, scores, strict=True)]


def _ids(ids: Any) -> tuple[int, ...]:
    return tuple(np.asarray(ids).tolist())


def _given(frame: pd.DataFrame, name: str) -> Sequence[Any]:
    return frame[name].tolist() if name in frame else [None] * len(frame)
