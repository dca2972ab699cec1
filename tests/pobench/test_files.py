"""Files appear whole, and what JSON cannot hold is null in them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pobench.errors import CorruptError
from pobench.files import corrupt_files, nan_as_null, sha256_of, whole, write_json


def test_nan_is_null_wherever_it_stands_and_nothing_else_is_changed() -> None:
    value = {"a": math.nan, "b": [1.5, math.nan, ("x", None)], "c": {"d": math.nan, "e": 0, "f": False}}
    assert nan_as_null(value) == {"a": None, "b": [1.5, None, ["x", None]], "c": {"d": None, "e": 0, "f": False}}
    assert math.isinf(nan_as_null(math.inf))


def test_json_is_written_for_people_and_reads_back(tmp_path) -> None:
    write_json(tmp_path / "below" / "a.json", {"β": [1, None]})
    text = (tmp_path / "below" / "a.json").read_text("utf-8")
    assert "β" in text and text.endswith("}\n") and json.loads(text) == {"β": [1, None]}


def test_a_file_that_fails_on_the_way_leaves_the_old_one_and_no_rest(tmp_path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), whole(tmp_path / "a") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_file_that_is_removed_while_it_is_checked_is_gone(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"1")

    def removed(path: Path) -> str:
        path.unlink()
        return sha256_of(path)

    assert [str(fault) for fault in corrupt_files(tmp_path, {"there": "0" * 64}, removed)] == [
        str(CorruptError(tmp_path / "there", "the file is gone"))
    ]
