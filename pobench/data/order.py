"""Split, subset and order of the items, label bias, and mismatched partners. All by hash, so the same on every machine.

An item is a pair, a list or a single answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any, NamedTuple, Protocol, TypeVar, overload

import numpy as np

from pobench.data.rows import Message, Preference
from pobench.data.token_rows import TokenRows
from pobench.errors import PobenchError
from pobench.types import Item, TokenAnswer, TokenList, TokenPair, Unit

# ---------------------------------------------------------------- split, subset, order
TwoAnswers = TypeVar("TwoAnswers", TokenPair, Preference)


class WithId(Protocol):
    @property
    def id(self) -> str: ...


Sampled = TypeVar("Sampled", bound=WithId)
Row = TypeVar("Row", TokenPair, TokenList, TokenAnswer)


def split_by_prompt(
    items: Sequence[Any], fraction: float, seed: int, key: Callable[[Any], str]
) -> tuple[list[Any], list[Any]]:
    """(training, held-out): all pairs of a prompt go to one side, decided by a hash of its text and the seed.

    So adding, removing or reordering rows moves no other row, and the tokenizer does not matter. On average `fraction` of
    the prompts is held out, and each side has at least one prompt. key: item -> its prompt's `text_key`.
    Raises PobenchError if the fraction is outside (0, 1) or all items share one prompt.
    """
    places = np.array([place_of(key(item), seed) for item in items])
    held = places < split_border(places, fraction)
    training = [item for item, out in zip(items, held, strict=True) if not out]
    return training, [item for item, out in zip(items, held, strict=True) if out]


def place_of(prompt: str, seed: int) -> float:
    """The place in [0, 1) that decides on which side of the split a prompt stands. prompt: its `text_key`."""
    return _uniform("split", seed, prompt)


def split_border(places: np.ndarray, fraction: float) -> float:
    """Prompts at places below it are held out, see `split_by_prompt`.

    places: (items,) of their prompts, among which each side has at least one.
    """
    if not 0 < fraction < 1:
        raise PobenchError(f"the held-out share is {fraction}; a share between 0 and 1 is needed")
    if (prompts := len(np.unique(places))) < 2:
        raise PobenchError(f"{len(places)} pairs with {prompts} prompt cannot be split by prompt")
    return min(max(fraction, math.nextafter(float(places.min()), 1)), float(places.max()))


@overload
def subset(items: TokenRows[Row], most: int | None, seed: int = 0) -> TokenRows[Row]: ...
@overload
def subset(items: Sequence[Sampled], most: int | None, seed: int = 0) -> Sequence[Sampled]: ...
def subset(items: Any, most: int | None, seed: int = 0) -> Any:
    """`most` items chosen by a hash of id and seed, in their old order. A smaller subset is part of a larger one."""
    if most is None or most >= len(items):
        return items
    places = np.sort(ranks("subset", seed, ids=ids_of(items))[:most])
    return items.take(places) if isinstance(items, TokenRows) else [items[i] for i in places.tolist()]


def biased(item: TwoAnswers, share: float, seed: int) -> TwoAnswers:
    """The item with the longer answer as the chosen one, whatever the label, if it is in a seeded random `share` of the items.

    Length in characters for preferences, in tokens for token pairs.
    """
    if not decided_by_length(item.id, share, seed) or len(item.chosen) >= len(item.rejected):
        return item
    scores = None if item.scores is None else item.scores[::-1]
    return item._replace(chosen=item.rejected, rejected=item.chosen, scores=scores)  # type: ignore[return-value]


def decided_by_length(id: str, share: float, seed: int) -> bool:
    """Whether an item is in the seeded random `share` whose labels follow length. A larger share contains a smaller one.

    id: the item's. Raises PobenchError if share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise PobenchError(f"data.length_bias is {share}; a share in [0, 1] is needed")
    return _uniform("length bias", seed, id) < share


def ids_of(items: Sequence[WithId]) -> Iterator[str]:
    """The items' ids; of stored ones without their tokens."""
    return items.ids if isinstance(items, TokenRows) else (item.id for item in items)


def ranks(*parts: object, ids: Iterable[str]) -> np.ndarray:
    """(items,) places of the items, sorted by the hash of the parts and of each item's id; equal ids stay in order."""
    return np.argsort(_digests(_hashed(*parts, id) for id in ids), kind="stable")


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
    digest, orders, ids = hashlib.sha256(), [], list(ids_of(items))
    for epoch in range(epochs):
        orders.append(ranks("order", seed, epoch, ids=ids))
        digest.update(f"epoch {epoch}\n".encode())
        for i in orders[-1].tolist():
            digest.update(f"{ids[i]}\n".encode())
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
    return _joined(chain([data_digest(items)], ids_of(items)))


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
        missing, first = 0, list[str]()

        def scores() -> Iterator[str]:
            nonlocal missing
            for item in items:
                given = item.score if isinstance(item, TokenAnswer) else item.scores
                if given is None:
                    missing += 1
                    first.extend([item.id] if missing <= 8 else [])
                yield str(given)

        return cls(_joined(scores()), missing, tuple(first))


def mismatch(items: Sequence[Item]) -> list[int]:
    """For each item the index of a partner with another prompt. KTO combines this prompt with the partner's answers.

    The data alone decides the partners, so one reference pass serves all seeds. Every item is a partner exactly once, unless
    more than half of the items share one prompt. Raises PobenchError if all items share one prompt.
    """
    prompts = _digests(_hashed("mismatch", ids_digest(item.prompt)) for item in items)
    contents = _digests(_hashed(data_digest([item]), item.id) for item in items)
    order = np.lexsort((contents, prompts))  # items with one prompt are adjacent
    distinct, prompt_of, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise PobenchError(
            f"{len(items)} {unit_of(items)} share one prompt; mismatched pairs (KTO) need at least two prompts"
        )
    common, largest = int(sizes.argmax()), int(sizes.max())
    partner_of = np.empty(len(items), dtype=np.int64)
    if 2 * largest <= len(items):  # a shift by the size of the largest group always leads to another group
        partner_of[order] = np.roll(order, -largest)
    else:
        crowd, others = (order[(prompt_of[order] == common) == inside] for inside in (True, False))
        partner_of[crowd] = list(islice(cycle(others.tolist()), len(crowd)))
        partner_of[others] = crowd[: len(others)]
    return partner_of.tolist()  # type: ignore[no-any-return]


def text_key(prompt: Iterable[Message]) -> str:
    """A key that is equal for prompts with the same roles and words; case and runs of white space do not matter."""
    return json.dumps([(m.role, " ".join(m.content.casefold().split())) for m in prompt])


def ids_digest(ids: Sequence[int]) -> str:
    """Hex sha256 of token ids."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()


def _hashed(*parts: object) -> bytes:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).digest()


def _joined(parts: Iterable[str]) -> str:
    """Hex sha256 of texts with a separator between them."""
    digest = hashlib.sha256()
    for i, part in enumerate(parts):
        digest.update((("\x1f" if i else "") + part).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _digests(digests: Iterable[bytes]) -> np.ndarray:
    """(n,) digests of 32 bytes, which sort as their hex digits do."""
    return np.frombuffer(b"".join(digests), dtype="S32")


def _uniform(*parts: object) -> float:
    """A number in [0, 1) from a hash of the parts."""
    return int(_hashed(*parts).hex()[:13], 16) / 16**13
