"""Trials that were made before: read from a file, so that a search of the same content does not make them again."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from pobench.columns import FRAMES
from pobench.results.load import read_trials
from pobench.settings.job import Job
from pobench.sources import fetch_rows
from pobench.workflows.grid import Point, Space


def made_before(source: str | None) -> pd.DataFrame:
    """The finished trials of `tune.trials`, rows of the frame `tuning`. Raises PobenchError where there is no such file."""
    if source is None:
        return FRAMES["tuning"].of()
    paths = fetch_rows(source, option="--set tune.trials=PATH").paths
    trials = FRAMES["tuning"].of(pd.concat([read_trials(path) for path in paths], ignore_index=True))
    return trials[trials["status"] == "finished"]


def trial_of(point: Point, job: Job, space: Space, before: pd.DataFrame) -> Any:
    """The finished Optuna trial of a cell of a grid; None where none of the rows has its values.

    job: of the cell. before: trials of the same study, whose name is a digest of all that decides their results.
    """
    from optuna.trial import create_trial

    settings = {k: v for k, v in job.loss_settings.items() if v is not None}
    for row in before.to_dict("records"):
        if row["lr"] == job.train.lr and json.loads(row["settings"]) == settings:
            measured = {k: None if pd.isna(row[k]) else row[k] for k in ("value", "low", "high", "n", "start")}
            attrs = {"point": point, "runs": str(row["runs"]).split(), "settings": settings, "lr": row["lr"]}
            return create_trial(
                params=dict(point),
                distributions=distributions(space, "grid"),
                value=row["value"],
                user_attrs={**attrs, "measured": measured},
            )
    return None


def distributions(space: Space, sampler: str) -> dict[str, Any]:
    """The values of each setting for a sampler: the grid's own, or a range between the smallest and the largest, logarithmic
    where all are positive."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    chosen: dict[str, BaseDistribution] = {}
    for key, values in space.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if sampler == "grid" or len(numbers) < len(values) or len(set(numbers)) < 2:
            chosen[key] = CategoricalDistribution(values)
        else:
            chosen[key] = FloatDistribution(float(min(numbers)), float(max(numbers)), log=min(numbers) > 0)
    return chosen
