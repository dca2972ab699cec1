"""The SimPO paper's published results as a frame."""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


# ---------------------------------------------------------------- the SimPO paper's results
def paper_results() -> pd.DataFrame:
    """The numbers of Tables 1, 4, 5, 6 and 9 to 17 of arXiv 2405.14734v3, as printed, one a row.

    `pobench.columns` describes the columns.
    """
    import pandas as pd

    from pobench.columns import FRAMES

    path = importlib.resources.files("pobench.experiments") / "data/paper/tables.csv"
    with path.open(encoding="utf-8") as file:
        return FRAMES["paper"].of(pd.read_csv(file, keep_default_na=False, dtype={"table": int, "value": float}))
