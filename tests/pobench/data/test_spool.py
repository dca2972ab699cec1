"""What does not fit in memory is read back as it was written, and a file that is streamed gives what a file in memory gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pobench.data import spool
from pobench.data.rows import RowNumber, read_rows
from pobench.data.shapes import load_preferences, recognise
from pobench.data.spool import Mapped, Spool


@contextmanager
def small_memory() -> Iterator[None]:
    """Spools that keep three entries in memory and write two at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "IN_MEMORY", 3)
        patch.setattr(spool, "CHUNK", 2)
        yield


@given(entries=st.lists(st.text(max_size=3), max_size=12))
@settings(max_examples=60)
def test_a_spool_is_the_list_of_its_entries(entries: list[str]) -> None:
    with small_memory():
        written = Spool.of(entries)
        assert written.in_memory == (len(entries) < 3)
        assert list(written) == entries and len(written) == len(entries)
        assert [written[i] for i in range(-len(entries), len(entries))] == entries + entries
        assert written[1:9:2] == entries[1:9:2] and list(Mapped(len, written)[1:]) == [len(e) for e in entries[1:]]
        with pytest.raises(IndexError):
            written[len(entries)]


WORD = st.sampled_from(["a", "b", "a b", "c ", ""])
ROW = st.fixed_dictionaries(
    {"prompt": WORD, "chosen": WORD, "rejected": WORD},
    optional={"id": st.sampled_from(["x", "y", "x#1"]), "more": WORD},
)
LISTED = st.fixed_dictionaries(
    {"prompt": WORD, "responses": st.just(["a", "b", "c"]), "scores": st.permutations([1, 2, 2])}
)
UNPAIRED = st.fixed_dictionaries({"prompt": WORD, "completion": WORD, "label": st.booleans()})


@given(rows=st.one_of(*(st.lists(row, min_size=1, max_size=12) for row in (ROW, LISTED, UNPAIRED))), keep=st.booleans())
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_rows_that_are_streamed_give_what_rows_in_memory_give(rows: list[dict[str, Any]], keep: bool) -> None:
    numbered = list(enumerate(rows, start=1))
    duplicates: Any = "keep" if keep else "drop"
    whole = recognise(numbered, duplicates=duplicates)
    with small_memory():
        streamed = recognise(iter(numbered), duplicates=duplicates)
        for name in ("preferences", "lists", "answers"):
            assert list(getattr(streamed, name)) == list(getattr(whole, name))
    assert streamed.faults == whole.faults and streamed.notes == whole.notes and streamed.unread == whole.unread
    ids = [preference.id for preference in whole.preferences]
    assert len(set(ids)) == len(ids)


def test_rows_of_several_files_keep_their_numbers_on_disk(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for name in ("one", "two"):
        text = "".join(json.dumps({**row, "prompt": f"{name} {i}"}) + "\n" for i in range(4))
        (tmp_path / f"{name}.jsonl").write_text(text)
    from pobench.row_files import local_rows

    files = local_rows(str(tmp_path / "*.jsonl"))
    assert files is not None
    with small_memory():
        found = load_preferences(files)
        numbers = [preference.row for preference in found.preferences]
    assert all(isinstance(number, RowNumber) for number in numbers)
    assert [str(number) for number in numbers] == [f"{name}.jsonl:{i}" for name in ("one", "two") for i in range(1, 5)]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "stream.arrow"])
def test_tables_are_read_in_parts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    monkeypatch.setattr("pobench.data.rows._AT_ONCE", 3)
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": [{"role": "user"}]} for i in range(10)]
    table = pa.Table.from_pylist(rows)
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(table, tmp_path / name, row_group_size=4)
    else:
        new = pa.ipc.new_file if name == "rows.arrow" else pa.ipc.new_stream
        with pa.OSFile(str(tmp_path / name), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    assert read_rows(tmp_path / name) == list(enumerate(rows, start=1))
