"""Every frame has the columns and types that `pobench.columns` describes, and nothing else describes them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from pobench.columns import FRAMES, SATURATED, STORED
from pobench.errors import PobenchError
from pobench.results.comparable import ordered
from pobench.results.derived import DERIVED
from pobench.results.vectors import NEEDS
from pobench.training.objectives import STEP_METRICS

ROOT = Path(__file__).parents[2]
KINDS = {"text": "OSU", "JSON": "OSU", "int": "i", "float": "f", "bool": "b"}


def kinds(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): "O" if dtype == "str" else dtype.kind for name, dtype in frame.dtypes.items()}


@pytest.mark.parametrize("name", FRAMES)
def test_an_empty_frame_has_every_column_with_its_type(name) -> None:
    empty = FRAMES[name].of()
    assert list(empty.columns) == FRAMES[name].names and empty.empty
    for column in FRAMES[name].columns:
        assert kinds(empty)[column.name] in KINDS[column.type], column


@pytest.mark.parametrize("name", FRAMES)
def test_a_description_is_complete(name) -> None:
    frame = FRAMES[name]
    assert len(set(frame.names)) == len(frame.names) and set(frame.sort) <= set(frame.names)
    assert frame.meaning.startswith("One row ") and frame.meaning.endswith(".")
    assert all(column.meaning and not column.meaning.endswith(".") for column in frame.columns)
    assert not frame.absent.endswith(".")


def test_types_are_put_right_and_missing_stays_missing() -> None:
    rows = [{"run": "t/a", "metric": "win_rate", "value": None, "n": 3}, {"run": "t/b", "metric": "margin", "value": 1}]
    made = FRAMES["scores"].of(rows)
    assert list(made.columns) == FRAMES["scores"].names
    assert kinds(made)["value"] == "f" and math.isnan(made["value"][0]) and made["value"][1] == 1.0
    assert kinds(made)["n"] == "f" and math.isnan(made["n"][1])  # a whole number is missing
    assert kinds(made.iloc[:1].pipe(FRAMES["scores"].of))["n"] == "i"
    assert made["better"].isna().all() and made["low"].isna().all()


def test_further_columns_stand_behind_and_a_file_of_a_run_keeps_its_own() -> None:
    rows = pd.DataFrame({"extra": [1], "sample": [0], "prompt": [7], "text": ["hello"]})
    assert list(FRAMES["answers"].of(rows).columns) == [*FRAMES["answers"].names, "extra"]
    typed = FRAMES["answers"].typed(rows)
    assert list(typed.columns) == ["extra", "sample", "prompt", "text"]
    assert typed["prompt"].tolist() == ["7"]  # an id is text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"step": ["first"]}, "frame 'steps', column 'step': int is needed, got str"),
        ({"step": [1.5]}, "frame 'steps', column 'step': int is needed, got float64: not all are whole numbers"),
        (
            {"step": [10**400]},
            "frame 'steps', column 'step': int is needed, got object: int too large to convert to float",
        ),
        ({"step": [2**70]}, "frame 'steps', column 'step': int is needed, got object"),
        ({"loss": ["low"]}, "frame 'steps', column 'loss': float is needed"),
    ],
)
def test_a_value_of_another_type_is_named(rows, words) -> None:
    with pytest.raises(PobenchError, match=re.escape(words)):
        FRAMES["steps"].of(pd.DataFrame(rows))


def test_broken_unicode_stays_text() -> None:
    made = FRAMES["answers"].of(pd.DataFrame({"text": pd.Series(["\udcff"], dtype=object)}))
    assert made["text"].tolist() == ["\udcff"]


def test_absent_frames_are_ordered_as_empty_ones() -> None:
    found = ordered({"runs": pd.DataFrame({"run": ["t/b", "t/a"]})})
    assert found["runs"]["run"].tolist() == ["t/a", "t/b"]
    for frame in STORED:
        assert list(found[frame.name].columns) == frame.names


def test_what_computes_a_column_is_described() -> None:
    assert set(STEP_METRICS) <= set(FRAMES["steps"].names)
    assert {frame.name for frame in FRAMES.values() if frame.made} == set(DERIVED)
    for name, columns in NEEDS.items():
        assert set(columns) <= set(FRAMES[name].names)


def test_saturation_has_one_threshold() -> None:
    (saturated,) = (c for c in FRAMES["steps"].columns if c.name == "saturated")
    assert SATURATED == 1e-6 and "below 1e-06" in saturated.meaning


def test_what_differs_between_two_runs_of_the_same_thing_is_marked() -> None:
    measured = {(frame.name, c.name) for frame in FRAMES.values() for c in frame.columns if c.measured}
    assert measured == {
        ("runs", "seconds"),
        ("runs", "waited"),
        ("runs", "reference_seconds"),
        ("runs", "peak_memory"),
        ("runs", "environment"),
        ("steps", "seconds"),
    }


def test_no_other_file_lists_a_frames_columns() -> None:
    """Every column of a frame, named one after the other, stands in one file."""
    runs = re.compile(
        r"\W+".join(map(re.escape, ("setting", "kind", "loss", "title", "seed", "settings", "lr", "epochs")))
    )
    found = [p for p in (ROOT / "pobench").rglob("*.py") if runs.search(p.read_text(encoding="utf-8"))]
    assert found == []
