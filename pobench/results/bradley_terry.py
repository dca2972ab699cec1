"""Bradley-Terry: one strength for every model from battles of two, with or without control of length.

    P(a beats b) = σ(s_a − s_b + w · z)        z = (t_a − t_b) / (t_a + t_b), divided by its root mean square

t is an answer's length in tokens, so the strengths of a fit with control are those of answers of one length. (The feature is
Arena-Hard's. It changes its sign with the two sides, so it is not centred, and no side has an intercept.) A battle's score may
be any number in [0, 1]; one half is a draw.
Bradley and Terry 1952, Biometrika 39; style control: lmsys.org, 2024-08-28.

Intervals: a fitted number is a smooth function of the battles, so what each cell (prompt × seed) contributes to it is known to
first order (the infinitesimal jackknife; Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", ch. 6). The
cells' pseudo-values have the fitted number as their mean, and `stats.mean` makes its interval as everywhere: over prompts,
and over seeds where there are several.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from pobench.results import stats
from pobench.results.groups import labels
from pobench.types import Estimate

Floats = NDArray[np.float64]

RIDGE = 1e-6  # keeps a model that wins every battle finite, and the strengths' sum at zero
ELO = 400 / math.log(10)  # points of the usual scale: 400 more are odds of ten to one


class Battles(NamedTuple):
    """Arrays of one entry a battle. first, second: numbers of the models. score: of the first, in [0, 1]. length: z before it
    is scaled. prompt, seed: labels of the cell. Battles without a score are left out."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    score: Floats
    length: Floats
    prompt: NDArray[np.object_]
    seed: NDArray[np.int64]

    @classmethod
    def of(cls, rows: pd.DataFrame) -> Battles:
        """rows: columns `first`, `second`, `score`, `prompt`, `seed`, and `length` where it is known."""
        kept = rows[rows["score"].notna()]
        length = kept["length"] if "length" in kept else pd.Series(0.0, index=kept.index)
        return cls(
            kept["first"].to_numpy(dtype=np.int64),
            kept["second"].to_numpy(dtype=np.int64),
            kept["score"].to_numpy(dtype=float),
            length.to_numpy(dtype=float),
            kept["prompt"].to_numpy(dtype=object),
            kept["seed"].to_numpy(dtype=np.int64),
        )

    def met(self, models: int) -> list[int]:
        """The largest group of models that battles connect, directly or through others; [] without battles."""
        if not len(self.score):
            return []
        graph = coo_array((np.ones(len(self.first)), (self.first, self.second)), shape=(models, models))
        group = connected_components(graph, directed=False)[1]
        return np.flatnonzero(group == np.bincount(group).argmax()).tolist()


class Fit(NamedTuple):
    """strengths: (models,), their mean is zero. length: w, the log odds of one root mean square of length; 0 without control.
    influence: (cells, models): to first order, what a cell adds to each strength, times the number of cells. prompts, seeds:
    (cells,) labels. groups: (cells,) what prompts share, None where they are independent."""

    strengths: Floats
    length: float
    influence: Floats
    prompts: NDArray[np.object_]
    seeds: NDArray[np.int64]
    groups: NDArray[np.object_] | None = None

    def estimate(self, value: float, slope: Floats, bounds: stats.Bounds | None = None) -> Estimate:
        """A function of the strengths with its interval. value: at the fit. slope: (models,) its gradient there."""
        return stats.mean(value + self.influence @ slope, self.prompts, self.seeds, self.groups, bounds=bounds)

    def wins(self, a: int, b: int) -> Estimate:
        """P(a beats b)."""
        p = float(expit(self.strengths[a] - self.strengths[b]))
        slope = np.zeros(len(self.strengths))
        slope[a], slope[b] = p * (1 - p), -p * (1 - p)
        return self.estimate(p, slope, stats.UNIT)

    def against_the_others(self, a: int) -> Estimate:
        """The mean of P(a beats b) over all other models b: how often it would beat one of them drawn at random."""
        others = np.delete(np.arange(len(self.strengths)), a)
        p = expit(self.strengths[a] - self.strengths[others])
        slope = np.zeros(len(self.strengths))
        slope[others] = -p * (1 - p) / len(others)
        slope[a] = -slope[others].sum()
        return self.estimate(float(p.mean()), slope, stats.UNIT)

    def elo(self, a: int) -> Estimate:
        """Points above the mean of all models, on the usual scale."""
        slope = np.full(len(self.strengths), -1 / len(self.strengths))
        slope[a] += 1.0
        return self.estimate(ELO * float(self.strengths[a]), ELO * slope)


def fit(battles: Battles, models: int, *, control_length: bool = False, groups: pd.Series | None = None) -> Fit:
    """The strengths by maximum likelihood. models: how many; each must be connected with the others (`Battles.met`). groups:
    prompt → what it shares with other prompts, see `pobench.results.groups`.

    The likelihood is concave; scipy's `trust-exact` climbs it with its exact curvature.
    """
    design = np.zeros((len(battles.score), models + control_length))
    rows = np.arange(len(battles.score))
    design[rows, battles.first] += 1.0
    design[rows, battles.second] -= 1.0
    if control_length:
        design[:, models] = _scaled(battles.length)
    cell, cells = pd.MultiIndex.from_arrays([battles.prompt, battles.seed]).factorize(sort=True)

    def loss(values: Floats) -> float:
        logit = design @ values
        return float(np.sum(np.logaddexp(0, logit) - battles.score * logit) + RIDGE / 2 * values @ values)

    def slope(values: Floats) -> Floats:
        return design.T @ (expit(design @ values) - battles.score) + RIDGE * values

    def curvature(values: Floats) -> Floats:
        p = expit(design @ values)
        return (design * (p * (1 - p))[:, None]).T @ design + RIDGE * np.eye(design.shape[1])

    values = minimize(
        loss, np.zeros(design.shape[1]), jac=slope, hess=curvature, method="trust-exact", options={"gtol": 1e-8}
    ).x
    in_cell = csr_array((battles.score - expit(design @ values), (cell, rows)), shape=(len(cells), len(rows)))
    pulls = in_cell @ design  # (cells, values): the likelihood's gradient, cell by cell
    influence = len(cells) * np.linalg.solve(curvature(values), pulls.T).T
    centred = values[:models] - values[:models].mean()
    prompts = cells.get_level_values(0).to_numpy(dtype=object)
    of_prompts = labels(pd.Series(prompts), groups)
    return Fit(
        centred,
        float(values[models]) if control_length else 0.0,
        influence[:, :models] - influence.mean(axis=0)[:models],  # zero but for the ridge
        prompts,
        cells.get_level_values(1).to_numpy(dtype=np.int64),
        None if of_prompts is None else of_prompts.to_numpy(dtype=object),
    )


def _scaled(length: Floats) -> Floats:
    """Divided by its root mean square; zero where it never differs."""
    scale = math.sqrt(float(np.mean(length**2))) if len(length) else 0.0
    return length / scale if scale else np.zeros_like(length)
