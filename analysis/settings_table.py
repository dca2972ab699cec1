"""Table `settings-table`: the hyperparameters of every loss."""

from __future__ import annotations

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import GREEK, arms_of, settings_of, show_setting
from pobench.results.equal_tuning import values_of
from pobench.results.run_folder import short_digests

MOST_ROWS = 200  # on the page; of more, the CSV has them


@register_table(
    "settings-table",
    title="Settings of every loss",
    paper="Tables 7 and 8",
    chapter="methods",
    order=410,
    every_arm=True,
)
def settings_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Hyperparameters as used, and where they come from: a search, with its number of trials, the paper, the defaults or a
    hand. The same data order means that the losses saw the same pairs in the same order; do not
    compare losses whose orders differ within one seed. The CSV has the orders' whole digests."""
    rows, orders = [], []
    seeds, place = runs["seed"].to_numpy(), {run: k for k, run in enumerate(runs["run"])}
    for arm in arms_of(runs, every_round=True):
        if arm.is_start:
            continue
        members = runs.iloc[sorted(sorted(place[run] for run in arm.runs), key=lambda k: seeds[k])]
        first = members.iloc[0]
        settings = settings_of(first)
        orders.append(list(dict.fromkeys(str(o) for o in members["order"].dropna() if str(o))))
        rows.append(
            {
                "Loss": arm.label,
                "Settings": ", ".join(
                    f"{GREEK.get(k, k)} = {show_setting(v)}" for k, v in settings.items() if v is not None
                ),
                "Values": values_of(members, arm),
                "Learning rate": _number(first.get("lr")),
                "Epochs": _number(first.get("epochs")),
                "Batch": _number(first.get("batch_size")),
                "Pairs": _items(first),
                "Seeds": ", ".join(_number(s) for s in members["seed"]),
                "Data order": ", ".join(orders[-1]),
            }
        )
    if not rows:
        raise NothingToDraw("No loss was trained.")
    short = short_digests(order for own in orders for order in own)
    table = pd.DataFrame(rows[:MOST_ROWS])
    table["Data order"] = [", ".join(map(short.__getitem__, own)) for own in orders[:MOST_ROWS]]
    table.attrs["data"] = pd.DataFrame(rows)
    notes = [f"The CSV has each of the {len(rows)} variants of settings."] if len(rows) > MOST_ROWS else []
    others = int(runs.get("others", pd.Series(dtype=float)).fillna(0).sum())
    if others:
        results = "1 result of other settings is" if others == 1 else f"{others} results of other settings are"
        notes.append(f"{results} stored beside those shown.")
    if notes:
        table.attrs["notes"] = " ".join(notes)
    return table


def _items(run: pd.Series) -> str:
    """How many pairs it was trained on, or lists or answers, by their name."""
    read = run.get("trained_on")
    name = read.removeprefix("pairs").strip() if isinstance(read, str) else ""
    return f"{_number(run.get('pairs'))} {name}".strip()


def _number(value: object) -> str:
    return "–" if value is None or pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
