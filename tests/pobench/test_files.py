"""Files appear whole, and what JSON cannot hold is null in them."""

from __future__ import annotations

import json
import math

import pytest

from pobench.files import nan_as_null, whole, write_json


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
