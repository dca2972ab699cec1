"""Evaluate every registered loss on every run's held-out pairs, from the stored sums of log-probabilities.

Most losses are functions of a few sums a pair, so one forward pass of a model over the pairs is enough for all of
them, also for those of users. One that asks for more, such as single tokens, has none here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from pobench.columns import FRAMES
from pobench.registry import Loss, losses
from pobench.results import stats
from pobench.results.arms import homes_of, of_arm, settings_of
from pobench.results.groups import prompts_of
from pobench.types import Inputs, LossOutput, Pair, SequenceLogps

METRICS: dict[str, stats.Bounds | None] = {"loss": None, "reward_accuracy": stats.UNIT, "margin": None}


def inputs_of(heldout: pd.DataFrame) -> Inputs:
    """The `heldout` frame of one run as fp32 tensors, (pairs,) each, in its order. kl: None if the sums of mismatched pairs are
    not stored; scores: None if no pair has any there."""

    def side(prefix: str, answer: str) -> SequenceLogps:
        total = torch.tensor(heldout[f"{prefix}{answer}_logp"].to_numpy(float), dtype=torch.float32)
        return SequenceLogps(total, torch.tensor(heldout[f"{answer}_length"].to_numpy()))

    drift = math.nan
    if {"mismatched_logp", "reference_mismatched_logp"} <= set(heldout.columns):
        drift = float((heldout["mismatched_logp"] - heldout["reference_mismatched_logp"]).mean(skipna=False))
    ratings = heldout.reindex(columns=["chosen_score", "rejected_score"]).to_numpy(float)
    return Inputs(
        Pair(side("", "chosen"), side("", "rejected")),
        Pair(side("reference_", "chosen"), side("reference_", "rejected")),
        None if math.isnan(drift) else torch.tensor(drift, dtype=torch.float32),
        scores=None if np.isnan(ratings).all() else torch.tensor(ratings, dtype=torch.float32),
    )


def evaluate(loss: Loss, settings: Mapping[str, Any], inputs: Inputs) -> LossOutput:
    """The loss's output, (pairs,) each, without gradient; nan if the loss needs an input that is not stored. A loss of a whole
    batch gets all these pairs as one, in its first step. Errors of the loss pass through."""
    inputs = as_one_batch(loss, settings, inputs)
    if loss.lacks(*inputs):
        missing = torch.full_like(inputs.policy.chosen.total, math.nan)
        return LossOutput(missing, missing, missing)
    with torch.no_grad():
        return loss.evaluate(*inputs, **settings)


def as_one_batch(loss: Loss, settings: Mapping[str, Any], inputs: Inputs) -> Inputs:
    """With all pairs as one optimiser batch, if the loss asks for it."""
    return inputs._replace(batch=loss.batch_of(inputs.policy, inputs.reference, settings))


def cross_loss(runs: pd.DataFrame, heldout: pd.DataFrame) -> pd.DataFrame:
    """One row for every run with held-out sums × registered loss × metric, as `pobench.columns` describes it.

    The mean over pairs of the evaluated loss, of its reward accuracy (ties half) and of its margin, with interval and n.
    settings (JSON): the run's own if it was trained with that loss; else those of the loss's home arm among the runs of the
    same setting (`home_of`); else the defaults. A number that is not finite is missing. A loss that fails has n = 0.
    """
    rows: list[dict[str, Any]] = []
    for _, members in runs.groupby("setting", sort=True):
        known = settings_among(members, [losses.get(name) for name in losses.names()])
        measured = members[members["run"].isin(heldout["run"].unique())]
        for run in measured.sort_values("run").to_dict("records"):
            # in the order of the pairs' names, so that resampling draws what it draws for `scores`
            held = heldout[heldout["run"] == run["run"]].sort_values("pair", key=lambda p: p.astype(str), kind="stable")
            if len(held):
                own = {str(run["loss"]): settings_of(run)}
                settings = {k: own.get(k, v) for k, v in known.items()}
                rows += _of_run(run, inputs_of(held), prompts_of(held["pair"]), settings)
    return FRAMES["cross_loss"].of(rows)


def settings_among(runs: pd.DataFrame, evaluated: Iterable[Loss]) -> dict[str, dict[str, Any]]:
    """name → the loss's settings in its home arm among these runs (`home_of`), or its defaults if it was not trained."""
    homes = homes_of(runs)
    return {
        loss.name: settings_of(of_arm(runs, homes[loss.name]).iloc[0])
        if loss.name in homes
        else loss.canonical(loss.settings)
        for loss in evaluated
    }


def _of_run(
    run: Mapping[Any, Any], inputs: Inputs, prompts: pd.Series | None, known: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    columns = [column for name, settings in known.items() for column in _numbers(losses.get(name), settings, inputs)]
    estimates = iter(stats.means(np.stack(columns, axis=1), [*METRICS.values()] * len(known), prompts))
    return [
        {
            **{"run": run["run"], "trained": run["loss"], "evaluated": name, "title": losses.get(name).title},
            **{"settings": json.dumps(settings), "metric": metric},
            **{"value": e.value, "low": e.low, "high": e.high, "n": e.n},
        }
        for name, settings in known.items()
        for metric, e in zip(METRICS, estimates, strict=False)
    ]


def _numbers(loss: Loss, settings: Mapping[str, Any], inputs: Inputs) -> list[stats.Floats]:
    """The values of each of METRICS, (pairs,) each."""
    try:
        output = [t.double().numpy() for t in evaluate(loss, settings, inputs)]
    except Exception:  # a user's loss, or settings stored before it was changed: the other losses still count
        output = [np.full(len(inputs.policy.chosen.total), np.nan)] * 3
    value, chosen, rejected = (np.where(np.isfinite(x), x, np.nan) for x in output)
    return [value, stats.outcomes(chosen, rejected), chosen - rejected]
