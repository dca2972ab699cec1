"""Split, subset and order of the pairs, label bias, and mismatched partners. All by hash, so the same on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np

from pobench.data.rows import Message, Preference
from pobench.data.token_rows import TokenRows
from pobench.errors import PobenchError
from pobench.types import TokenPair

# ---------------------------------------------------------------- split, subset, order
Item = TypeVar("Item", TokenPair, Preference)


def split_by_prompt(
    items: Sequence[Any], fraction: float, seed: int, key: Callable[[Any], str]
) -> tuple[list[Any], list[Any]]:
    """(training, held-out): all pairs of a prompt go to one side, decided by a hash of its text and the seed.

    So adding, removing or reordering rows moves no other row, and the tokenizer does not matter. On average `fraction` of
    the prompts is held out, and each side has at least one prompt. key: item -> its prompt's `text_key`.
    Raises PobenchError if the fraction is outside (0, 1) or all items share one prompt.
    """
    held = held_out([place_of(key(item), seed) for item in items], fraction)
    training = [item for item, out in zip(items, held, strict=True) if not out]
    return training, [item for item, out in zip(items, held, strict=True) if out]


def place_of(prompt: str, seed: int) -> float:
    """The place in [0, 1) that decides on which side of the split a prompt stands. prompt: its `text_key`."""
    return _uniform("split", seed, prompt)


def held_out(places: Sequence[float] | np.ndarray, fraction: float) -> np.ndarray:
    """(items,) bool, whether each is held out. places: of their prompts. Raises PobenchError as `split_by_prompt` does."""
    if not 0 < fraction < 1:
        raise PobenchError(f"the held-out share is {fraction}; a share between 0 and 1 is needed")
    places = np.asarray(places, dtype=np.float64)
    if (prompts := len(np.unique(places))) < 2:
        raise PobenchError(f"{len(places)} pairs with {prompts} prompt cannot be split by prompt")
    border = min(max(fraction, math.nextafter(places.min(), 1)), places.max())
    return np.asarray(places < border)


@overload
def subset(items: TokenRows[TokenPair], max_pairs: int | None, seed: int = 0) -> TokenRows[TokenPair]: ...
@overload
def subset(items: Sequence[Item], max_pairs: int | None, seed: int = 0) -> Sequence[Item]: ...
def subset(items: Any, max_pairs: int | None, seed: int = 0) -> Any:
    """`max_pairs` items chosen by a hash of id and seed, in their old order. A smaller subset is part of a larger one."""
    if max_pairs is None or max_pairs >= len(items):
        return items
    places = np.sort(ranks("subset", seed, ids=ids_of(items))[:max_pairs])
    return items.take(places) if isinstance(items, TokenRows) else [items[i] for i in places.tolist()]


def biased(item: Item, share: float, seed: int) -> Item:
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


def ids_of(items: Sequence[Item]) -> Iterator[str]:
    """The items' ids; of stored ones without their tokens."""
    return items.ids if isinstance(items, TokenRows) else (item.id for item in items)


def ranks(*parts: object, ids: Iterable[str]) -> np.ndarray:
    """(items,) places of the items, sorted by the hash of the parts and of each item's id; equal ids stay in order."""
    return np.argsort(_digests(_hashed(*parts, id) for id in ids), kind="stable")


@dataclass(frozen=True)
class Order:
    """The order of the pairs in training. epochs: one (pairs,) array of indices per epoch. digest: hex sha256 of the pairs'
    ids in that order over all epochs, so runs with equal digests saw the same pairs in the same order."""

    epochs: list[np.ndarray]
    digest: str


def data_order(pairs: Sequence[TokenPair], seed: int, epochs: int) -> Order:
    """One order per (data, seed), the same for every loss; more epochs begin with the same ones.

    By hash, not by a random generator: the same on every machine and version of numpy.
    """
    digest, orders, ids = hashlib.sha256(), [], list(ids_of(pairs))
    for epoch in range(epochs):
        orders.append(ranks("order", seed, epoch, ids=ids))
        digest.update(f"epoch {epoch}\n".encode())
        for i in orders[-1].tolist():
            digest.update(f"{ids[i]}\n".encode())
    return Order(orders, digest.hexdigest())


def data_digest(pairs: Iterable[TokenPair]) -> str:
    """Hex sha256 of the pairs' token ids, in order. Row ids and ratings do not count."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in pair.sequences:
            digest.update(len(ids).to_bytes(4, "little") + np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def pairs_digest(pairs: Sequence[TokenPair]) -> str:
    """Hex sha256 of the pairs' token ids and row ids, in order. Row ids count because they decide the training order."""
    return _joined(chain([data_digest(pairs)], ids_of(pairs)))


class Ratings(NamedTuple):
    """What is known of the ratings of some pairs. digest: hex sha256 of all, in order. missing: how many pairs have none.
    first_missing: ids of up to eight of those."""

    digest: str
    missing: int
    first_missing: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Sequence[TokenPair]) -> Ratings:
        missing, first = 0, list[str]()
        digest = _joined(str(pair.scores) for pair in pairs)
        for pair in pairs:
            if pair.scores is None:
                missing += 1
                first += [pair.id] if len(first) < 8 else []
        return cls(digest, missing, tuple(first))


def mismatch(pairs: Sequence[TokenPair]) -> list[int]:
    """For each pair the index of a partner pair with another prompt. KTO combines this prompt with the partner's answers.

    The data alone decides the partners, so one reference pass serves all seeds. Every pair is a partner exactly once, unless
    more than half of the pairs share one prompt. Raises PobenchError if all pairs share one prompt.
    """
    prompts = _digests(_hashed("mismatch", _ids_digest(pair.prompt)) for pair in pairs)
    order = np.lexsort(
        (_digests(_hashed(data_digest([p]), p.id) for p in pairs), prompts)
    )  # equal prompts are adjacent
    distinct, prompt_of, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    if len(distinct) < 2:
        raise PobenchError(f"{len(pairs)} pairs share one prompt; mismatched pairs (KTO) need at least two prompts")
    common, largest = int(sizes.argmax()), int(sizes.max())
    partner_of = np.empty(len(pairs), dtype=np.int64)
    if 2 * largest <= len(pairs):  # a shift by the size of the largest group always leads to another group
        partner_of[order] = np.roll(order, -largest)
    else:
        crowd, others = (order[(prompt_of[order] == common) == inside] for inside in (True, False))
        partner_of[crowd] = list(islice(cycle(others.tolist()), len(crowd)))
        partner_of[others] = crowd[: len(others)]
    return partner_of.tolist()  # type: ignore[no-any-return]


def text_key(prompt: Iterable[Message]) -> str:
    """A key that is equal for prompts with the same roles and words; case and runs of white space do not matter."""
    return json.dumps([(m.role, " ".join(m.content.casefold().split())) for m in prompt])


def _ids_digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()


def _hash(*parts: object) -> str:
    return _joined(map(str, parts))


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
    return int(_hash(*parts)[:13], 16) / 16**13
