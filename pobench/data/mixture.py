"""A mixture of data sets: which rows of each source are trained on, in proportion to the sources' weights.

The stopping strategies are those of `datasets.interleave_datasets`. That function draws the source of every row from a random
generator and takes a source's rows in file order, so that the shares are near the weights and one more row changes all that
follow. Here the shares are the weights, to one pair; which rows of a source are taken is decided by hashes of their ids; and a
smaller mixture is part of a larger one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pobench.data.order import ranks
from pobench.data.token_rows import T, TokenRows

Stopping = Literal["first_exhausted", "all_exhausted"]


def interleaved(sizes: Sequence[int], weights: Sequence[float], stopping: Stopping) -> tuple[np.ndarray, np.ndarray]:
    """The order in which entries of several sources are taken: (entries,) the source of each, and its number in that source.

    Number j of a source of weight w stands at (j + ½) / w (Sainte-Laguë's rule), so after any number of entries each source's
    share is its weight's, to one entry. first_exhausted: until a source would be asked for an entry that it has not.
    all_exhausted: until every entry was taken; numbers beyond a source's size stand for its entries once more.
    """
    sizes_, weights_ = np.asarray(sizes), np.asarray(weights, dtype=np.float64)
    if stopping == "first_exhausted":
        end = ((sizes_ + 0.5) / weights_).min()
    else:
        end = np.nextafter(((sizes_ - 0.5) / weights_).max(), np.inf)
    times, sources, numbers = [], [], []
    for source, (size, weight) in enumerate(zip(sizes_.tolist(), weights_.tolist(), strict=True)):
        at = (np.arange(int(end * weight) + 1) + 0.5) / weight
        at = at[at < end] if size else at[:0]
        times.append(at)
        sources.append(np.full(len(at), source))
        numbers.append(np.arange(len(at)))
    order = np.argsort(np.concatenate(times), kind="stable")
    return np.concatenate(sources)[order], np.concatenate(numbers)[order]


def source_of(id: str) -> str:
    """The source of a row, whose name stands before its id."""
    return id.partition("/")[0]


def mixture(
    rows: TokenRows[T], weights: Mapping[str, float], stopping: Stopping, most: int | None, seed: int
) -> TokenRows[T]:
    """At most `most` rows of several sources, in their old order. weights: source → its share, relative to the others'.

    A row that is taken a second time has `~2` behind its id.
    """
    names = list(map(source_of, rows.ids))
    of_source = {name: np.array([i for i, own in enumerate(names) if own == name], dtype=np.int64) for name in weights}
    sizes = [len(places) for places in of_source.values()]
    sources, numbers = interleaved(sizes, list(weights.values()), stopping)
    places = np.empty(len(sources), dtype=np.int64)
    for source, own in enumerate(of_source.values()):
        taken = sources == source
        drawn = own[ranks("subset", seed, ids=rows.take(own).ids)]
        places[taken] = drawn[numbers[taken] % max(1, len(drawn))]
    times = numbers // np.maximum(1, np.asarray(sizes))[sources] + 1
    places, times = places[:most], times[:most]
    in_order = np.lexsort((times, places))
    places, times = places[in_order], times[in_order]
    mixed = rows.take(places)
    if (times == 1).all():
        return mixed
    return TokenRows.of(rows.kind, map(_once_more, mixed, times.tolist()))


def _once_more(row: Any, time: int) -> Any:
    return row if time == 1 else row._replace(id=f"{row.id}~{time}")
