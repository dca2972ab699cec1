"""Split, subset and order of the items, label bias, and mismatched partners. All by hash, so the same on every machine.

An item is a pair, a list or a single answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from pobench.data.rows import Message, Preference
from pobench.errors import PobenchError
from pobench.types import Item, TokenAnswer, TokenList, TokenPair, Unit

# ---------------------------------------------------------------- split, subset, order
TwoAnswers = TypeVar("TwoAnswers", TokenPair, Preference)


class WithId(Protocol):
    @property
    def id(self) -> str: ...


Sampled = TypeVar("Sampled", bound=WithId)


def split_by_prompt(
    items: Sequence[Any], fraction: float, seed: int, key: Callable[[Any], str]
) -> tuple[list[Any], list[Any]]:
    """(training, held-out): all pairs of a prompt go to one side, decided by a hash of its text and the seed.

    So adding, removing or reordering rows moves no other row, and the tokenizer does not matter. On average `fraction` of
    the prompts is held out, and each side has at least one prompt. key: item -> its prompt's `text_key`.
    Raises PobenchError if the fraction is outside (0, 1) or all items share one prompt.
    """
    keys = [key(item) for item in items]
    held = held_out_by(keys, fraction, seed)
    training = [item for item, of_item in zip(items, keys, strict=True) if not held(of_item)]
    return training, [item for item, of_item in zip(items, keys, strict=True) if held(of_item)]


def held_out_by(keys: Sequence[str], fraction: float, seed: int) -> Callable[[str], bool]:
    """Whether the prompt with a key is held out, see `split_by_prompt`. keys: of the items, among whose prompts each side has
    at least one."""
    if not 0 < fraction < 1:
        raise PobenchError(f"the held-out share is {fraction}; a share between 0 and 1 is needed")
    places = {_uniform("split", seed, key) for key in keys}
    if len(places) < 2:
        raise PobenchError(f"{len(keys)} pairs with {len(places)} prompt cannot be split by prompt")
    border = min(max(fraction, math.nextafter(min(places), 1)), max(places))
    return lambda key: _uniform("split", seed, key) < border


def subset(items: Sequence[Sampled], most: int | None, seed: int = 0) -> list[Sampled]:
    """`most` items chosen by a hash of id and seed, in their old order. A smaller subset is part of a larger one."""
    if most is None or most >= len(items):
        return list(items)
    ranks = sorted(range(len(items)), key=lambda i: _hash("subset", seed, items[i].id))
    return [items[i] for i in sorted(ranks[:most])]


def bias_labels(items: Sequence[TwoAnswers], share: float, seed: int) -> list[TwoAnswers]:
    """Make the longer answer the chosen one in a seeded random `share` of the items, whatever the label.

    Length in characters for preferences, in tokens for token pairs. Raises PobenchError if share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise PobenchError(f"data.length_bias is {share}; a share in [0, 1] is needed")

    def biased(item: TwoAnswers) -> TwoAnswers:
        if not decided_by_length(item, share, seed) or len(item.chosen) >= len(item.rejected):
            return item
        scores = None if item.scores is None else item.scores[::-1]
        return item._replace(chosen=item.rejected, rejected=item.chosen, scores=scores)  # type: ignore[return-value]

    return [biased(item) for item in items]


def decided_by_length(item: Preference | TokenPair, share: float, seed: int) -> bool:
    """Whether the item is in the seeded random `share` whose labels follow length. A larger share contains a smaller one."""
    return _uniform("length bias", seed, item.id) < share


@dataclass(frozen=True)
class Order:
    """The order of the items in training. epochs: one (items,) array of indices per epoch. digest: hex sha256 of the items'
    ids in that order over all epochs, so runs with equal digests saw the same items in the same order."""

    epochs: list[np.ndarray]
    digest: str


def data_order(items: Sequence[Item], seed: int, epochs: int) -> Order:
    """One order per (data, seed), the same for every loss; more epochs begin with the same ones.

    By hash, not by a random generator: the same on every machine and version of numpy.
    """
    digest, orders = hashlib.sha256(), []
    for epoch in range(epochs):
        ranks = sorted(range(len(items)), key=lambda i: (_hash("order", seed, epoch, items[i].id), i))
        orders.append(np.array(ranks, dtype=np.int64))
        digest.update("\n".join([f"epoch {epoch}", *(items[i].id for i in ranks), ""]).encode())
    return Order(orders, digest.hexdigest())


def data_digest(items: Iterable[Item]) -> str:
    """Hex sha256 of the items' token ids, with the ranks of a list and the label of an answer, in order. Row ids and ratings do
    not count."""
    digest = hashlib.sha256()
    for item in items:
        for ids in (item.prompt, *item.responses):
            digest.update(len(ids).to_bytes(4, "little") + np.asarray(ids, dtype="<i4").tobytes())
        if isinstance(item, TokenList):
            digest.update(b"ranks" + np.asarray(item.ranks, dtype="<i4").tobytes())
        elif isinstance(item, TokenAnswer):
            digest.update(b"label" + bytes([item.label]))
    return digest.hexdigest()


def items_digest(items: Sequence[Item]) -> str:
    """Hex sha256 of what `data_digest` reads and of the row ids, in order. Row ids count because they decide the training
    order."""
    return _hash(data_digest(items), *(item.id for item in items))


def unit_of(items: Sequence[Item]) -> Unit:
    """What these items are; pairs where there are none."""
    kinds: dict[type, Unit] = {TokenList: "lists", TokenAnswer: "answers"}
    return kinds.get(type(items[0]), "pairs") if items else "pairs"


class Ratings(NamedTuple):
    """What is known of the ratings of some items. digest: hex sha256 of all, in order. missing: how many items have none.
    first_missing: ids of up to eight of those."""

    digest: str
    missing: int
    first_missing: tuple[str, ...]

    @classmethod
    def of(cls, items: Sequence[Item]) -> Ratings:
        scores = [item.score if isinstance(item, TokenAnswer) else item.scores for item in items]
        missing = [item.id for item, given in zip(items, scores, strict=True) if given is None]
        return cls(_hash(*scores), len(missing), tuple(missing[:8]))


def mismatch(items: Sequence[Item]) -> list[int]:
    """For each item the index of a partner with another prompt. KTO combines this prompt with the partner's answers.

    The data alone decides the partners, so one reference pass serves all seeds. Every item is a partner exactly once, unless
    more than half of the items share one prompt. Raises PobenchError if all items share one prompt.
    """
    keys = [(_hash("mismatch", _ids_digest(item.prompt)), _hash(data_digest([item]), item.id)) for item in items]
    order = sorted(range(len(items)), key=keys.__getitem__)  # items with one prompt are adjacent
    sizes = Counter(prompt for prompt, _ in keys)
    if len(sizes) < 2:
        raise PobenchError(
            f"{len(items)} {unit_of(items)} share one prompt; mismatched pairs (KTO) need at least two prompts"
        )
    (common, largest), *_ = sizes.most_common(1)
    if 2 * largest <= len(items):  # a shift by the size of the largest group always leads to another group
        partner_of = dict(zip(order, order[largest:] + order[:largest], strict=True))
    else:
        crowd, others = ([i for i in order if (keys[i][0] == common) is inside] for inside in (True, False))
        partner_of = dict(zip(crowd, cycle(others), strict=False)) | dict(zip(others, crowd, strict=False))
    return [partner_of[i] for i in range(len(items))]


def text_key(prompt: Iterable[Message]) -> str:
    """A key that is equal for prompts with the same roles and words; case and runs of white space do not matter."""
    return json.dumps([(m.role, " ".join(m.content.casefold().split())) for m in prompt])


def _ids_digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()


def _hash(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def _uniform(*parts: object) -> float:
    """A number in [0, 1) from a hash of the parts."""
    return int(_hash(*parts)[:13], 16) / 16**13
