"""Table `data-audit`: faults in the preference data."""

from __future__ import annotations

import json

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw

MOST_ROWS = 12  # row numbers shown per fault


@register_table("data-audit", title="Audit of the preference data", chapter="methods", order=420)
def data_audit(audit: pd.DataFrame) -> pd.DataFrame:
    """Faults found in the rows before training, with the first row numbers."""
    faults = audit[pd.to_numeric(audit["count"], errors="coerce").fillna(0) > 0]
    if faults.empty:
        raise NothingToDraw("The audit found no fault in the data.")
    several = "data" in faults and faults["data"].nunique() > 1
    rows = [
        {
            **({"Data": str(r["data"])} if several else {}),
            "Fault": str(r["fault"]),
            "Rows": int(r["count"]),
            "Row numbers": _numbers(r["rows"]),
        }
        for r in faults.to_dict("records")
    ]
    return pd.DataFrame(rows).sort_values(["Rows", "Fault"], ascending=[False, True], kind="stable", ignore_index=True)


def _numbers(text: object) -> str:
    try:
        rows = json.loads(text) if isinstance(text, str) else list(text or [])  # type: ignore[call-overload]
    except (json.JSONDecodeError, TypeError):
        return str(text)
    more = len(rows) - MOST_ROWS
    return ", ".join(map(str, rows[:MOST_ROWS])) + (f" and {more} more" if more > 0 else "")
