"""The one way from a frame to CSV. Text that a spreadsheet would compute as a formula stands behind an apostrophe there, and
`original` takes it away again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one


def csv_bytes(frame: pd.DataFrame, *, digits: int | None = None) -> bytes:
    """The frame as CSV in UTF-8, missing as an empty field; broken Unicode becomes `?`. digits: of numbers; None: all."""
    plain = frame.rename(columns=harmless)
    for place, kind in enumerate(plain.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            column = plain.iloc[:, place]
            of_text = isinstance(kind, pd.StringDtype)
            plain.isetitem(place, _harmless_texts(column) if of_text else column.map(harmless, na_action="ignore"))
    number = None if digits is None else f"%.{digits}g"
    text: str = plain.to_csv(index=False, float_format=number, lineterminator="\n", errors="replace")
    return text.encode("utf-8", "replace")


def _harmless_texts(column: pd.Series) -> pd.Series:
    """A column of text, of which each distinct value is looked at once."""
    places, distinct = pd.factorize(column)  # the place of a missing value is -1, the last
    shown = np.array([*map(harmless, distinct), None], dtype=object)
    return pd.Series(shown[places], index=column.index, dtype=object)


def harmless(value: Any) -> Any:
    """The value of a cell, or the name of a column, as a spreadsheet shows it and does not compute it; a number stays."""
    return f"'{value}" if isinstance(value, str) and _computed(value.lstrip("'")) and not _is_number(value) else value


def original(value: Any) -> Any:
    """The value that `harmless` was given."""
    marked = isinstance(value, str) and value.startswith("'") and _computed(value.lstrip("'"))
    return value[1:] if marked and not _is_number(value) else value


def _computed(text: str) -> bool:
    return text.lstrip(" \n").startswith(FORMULA)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
