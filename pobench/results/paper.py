"""The SimPO paper's published results as a frame."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


# ---------------------------------------------------------------- the SimPO paper's results
def paper_results() -> pd.DataFrame:
    """The numbers of Tables 1, 4, 5, 6 and 9 to 17 of arXiv 2405.14734v3, as printed, one a row.

    Columns: table (int), setting (ours; "" for a model that no setting trains), loss (registered name, or "start"), label
    (the paper's row), where (what sets the row apart from the setting's own values: "gamma=0", "lr=5e-07"), benchmark,
    metric, value (per cent; characters or tokens for lengths; 1 to 10 for MT-Bench).
    """
    import pandas as pd

    path = importlib.resources.files("pobench.experiments") / "data/paper/tables.csv"
    with path.open(encoding="utf-8") as file:
        return pd.read_csv(file, keep_default_na=False, dtype={"table": int, "value": float})
