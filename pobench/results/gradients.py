"""The gradient of each held-out pair: a loss differentiated at the stored sums of log-probabilities.

Most losses see a pair through two sums, so that their gradient by the model's weights is

    chosen_weight * ∇ log π(chosen) + rejected_weight * ∇ log π(rejected)

The two weights follow from the stored sums alone. The length of the whole vector needs the model once: where a run has
stored `norms` (the lengths of both gradients and their product, the same for every loss), it follows for every loss.
This is the comparison of the SimPO paper's analysis of gradients, measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from pobench.columns import FRAMES
from pobench.errors import PobenchError
from pobench.registry import Loss, losses
from pobench.results import stats
from pobench.results.arms import settings_of
from pobench.results.cross_loss import as_one_batch, inputs_of, settings_among
from pobench.types import Inputs, Pair, SequenceLogps

NORMS = FRAMES["norms"].names[1:]  # of one run


def weights(loss: Loss, settings: Mapping[str, Any], inputs: Inputs) -> stats.Floats:
    """(pairs, 2) `∂loss/∂ Σ log π`, per nat, of the chosen and the rejected answer; nan if the loss needs an input that is
    not stored. Errors of the loss pass through."""
    chosen, rejected = inputs.policy
    inputs = as_one_batch(loss, settings, inputs)
    if loss.lacks(*inputs):
        return np.full((len(chosen.total), 2), np.nan)
    totals = [side.total.clone().requires_grad_() for side in (chosen, rejected)]
    policy = Pair(SequenceLogps(totals[0], chosen.length), SequenceLogps(totals[1], rejected.length))
    output = loss.evaluate(*inputs._replace(policy=policy), **settings)
    slopes = torch.autograd.grad(output.loss.sum(), totals, allow_unused=True, materialize_grads=True)
    return torch.stack(slopes, dim=1).double().numpy()


def gradients(runs: pd.DataFrame, heldout: pd.DataFrame, norms: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row for every held-out pair of every run, as `pobench.columns` describes it. A trained run is evaluated under its own
    loss, a start model under every loss that was trained from it.

    norm: `‖∂loss/∂θ‖` of the pair; nan if the run has no `norms`. A loss that fails gives nan.
    """
    parts = []
    for _, members in runs.groupby("setting", sort=True):
        trained = _registered(set(members["loss"]) - {"start"})
        measured_runs = members[members["run"].isin(heldout["run"].unique())]
        of_start = (measured_runs["loss"] == "start").any()
        at_home = settings_among(members, trained.values()) if of_start else {}
        for run in measured_runs.sort_values("run").to_dict("records"):
            held = heldout[heldout["run"] == run["run"]]
            if held.empty:
                continue
            lengths = pd.DataFrame() if norms is None else norms[norms["run"] == run["run"]]
            measured = held[["pair"]].merge(lengths.reindex(columns=NORMS), on="pair", how="left")
            inputs = inputs_of(held)
            own = {str(run["loss"]): settings_of(run)} if run["loss"] != "start" else at_home
            for name, settings in own.items():
                if loss := trained.get(name):
                    pull = _weights_or_nan(loss, settings, inputs)
                    parts.append(_rows(str(run["run"]), loss, pull, held, measured))
    filled = [part for part in parts if len(part)]
    return FRAMES["gradients"].of(pd.concat(filled, ignore_index=True) if filled else ())


def _registered(names: Iterable[Any]) -> dict[str, Loss]:
    """The losses by name, without those of a plug-in that is not loaded now."""
    by_name = {}
    for name in sorted(map(str, names)):
        try:
            by_name[name] = losses.get(name)
        except PobenchError:
            continue
    return by_name


def _weights_or_nan(loss: Loss, settings: Mapping[str, Any], inputs: Inputs) -> stats.Floats:
    try:
        slopes = weights(loss, settings, inputs)
    except Exception:  # a user's loss, or settings stored before it was changed: the other losses still count
        slopes = np.full((len(inputs.policy.chosen.total), 2), np.nan)
    return np.where(np.isfinite(slopes), slopes, np.nan)


def _rows(run: str, loss: Loss, pull: stats.Floats, held: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    a, b = pull.T
    chosen, rejected, product = (pd.to_numeric(measured[c]).to_numpy(float) for c in NORMS[1:])
    squared = (a * chosen) ** 2 + (b * rejected) ** 2 + 2 * a * b * product
    return pd.DataFrame(
        {
            "run": run,
            "evaluated": loss.name,
            "pair": held["pair"].to_numpy(),
            "chosen_length": held["chosen_length"].to_numpy(),
            "rejected_length": held["rejected_length"].to_numpy(),
            "chosen_weight": a,
            "rejected_weight": b,
            "norm": np.sqrt(np.maximum(squared, 0.0)) if len(squared) else math.nan,
        }
    )
