"""Token rows in Arrow are the rows that were written, by index, slice and loop, from a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pobench.data import token_rows
from pobench.data.order import data_order, items_digest, subset
from pobench.data.token_rows import TokenRows
from pobench.types import TokenAnswer, TokenList, TokenPair

IDS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5).map(tuple)
SCORE = st.floats(-10, 10)
TEXT = st.text(max_size=4)
PAIR = st.builds(TokenPair, TEXT, IDS, IDS, IDS, st.none() | st.tuples(SCORE, SCORE), TEXT)
ANSWER = st.builds(TokenAnswer, TEXT, IDS, IDS, st.booleans(), st.none() | SCORE)


@st.composite
def a_list(draw: st.DrawFn) -> TokenList:
    size = draw(st.integers(2, 4))
    several = [draw(st.lists(kind, min_size=size, max_size=size)) for kind in (IDS, st.integers(1, 4), SCORE)]
    scores = tuple(several[2]) if draw(st.booleans()) else None
    return TokenList(draw(TEXT), draw(IDS), tuple(several[0]), tuple(several[1]), scores)


ROWS = st.one_of(st.lists(PAIR, max_size=7), st.lists(ANSWER, max_size=7), st.lists(a_list(), max_size=7))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_rows, "BATCH", 3)
    monkeypatch.setattr(token_rows, "AT_HAND", 2)


@given(rows=ROWS, data=st.data())
@settings(max_examples=80)
def test_stored_rows_are_the_rows_that_were_written(rows: list[Any], data: st.DataObject) -> None:
    kind = type(rows[0]) if rows else TokenPair
    stored = TokenRows.of(kind, rows)
    assert stored == rows and [stored[i] for i in range(-len(rows), len(rows))] == rows + rows
    places = data.draw(st.lists(st.integers(0, max(0, len(rows) - 1)), max_size=9)) if rows else []
    view = stored.take(places)
    assert view == [rows[i] for i in places] and list(view.ids) == [rows[i].id for i in places]
    assert view[1::2] == [rows[i] for i in places][1::2]
    assert view.lengths("prompt").tolist() == [len(rows[i].prompt) for i in places]
    assert TokenRows.joined([view, stored]) == [*[rows[i] for i in places], *rows]
    assert items_digest(stored) == items_digest(rows)
    assert subset(stored, 2, 5) == subset(rows, 2, 5)


def test_a_file_stays_readable_when_it_is_gone(tmp_path: Path) -> None:
    rows = [TokenPair(f"p{i}", (1, i), (2,), (3, 4), None, "web") for i in range(8)]
    TokenRows.of(TokenPair, rows).write(tmp_path / "rows.arrow")
    read = TokenRows.read(TokenPair, tmp_path / "rows.arrow")
    (tmp_path / "rows.arrow").unlink()
    assert read == rows and list(read.column("source")) == ["web"] * 8


def test_the_order_of_stored_pairs_is_that_of_pairs_in_memory() -> None:
    rows = [TokenPair(f"p{i}", (1, 2, i), (i + 3, 9), (i + 4, 8, 9)) for i in range(40)]
    orders = [data_order(some, seed=3, epochs=2) for some in (rows, TokenRows.of(TokenPair, rows))]
    assert orders[0].digest == orders[1].digest
    assert all(np.array_equal(a, b) for a, b in zip(*(order.epochs for order in orders), strict=True))
