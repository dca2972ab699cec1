"""Functions that several losses share, computed so that they stay exact and finite in fp32."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.types import SequenceLogps

LARGEST_LOGP = -1e-6  # keeps the log-odds of a certain answer finite in fp32


def absolute_gamma(beta: float, gamma: float | None, gamma_beta_ratio: float | None, *, default_ratio: float) -> float:
    """The target margin γ in reward units, from `gamma` or from the ratio γ/β.

    The SimPO paper, TRL and LLaMA-Factory use γ; the SimPO repository and HALOs use γ/β, the margin in nats. With neither,
    γ is `default_ratio * beta`. Raises PobenchError if both are given.
    """
    if gamma is not None and gamma_beta_ratio is not None:
        raise PobenchError(
            f"gamma: {gamma} and gamma_beta_ratio: {gamma_beta_ratio} are two names of one margin; give one of them"
            f" (this ratio at beta {beta} is gamma {gamma_beta_ratio * beta:g})"
        )
    if gamma is not None:
        return gamma
    return beta * (default_ratio if gamma_beta_ratio is None else gamma_beta_ratio)


GAMMA_NAMES = (("gamma", "gamma_beta_ratio"),)  # two names of one margin


def spell_out_gamma(default_ratio: float) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """A function that replaces γ/β by γ in a loss's settings, so that runs and reports always show γ."""

    def canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
        gamma = absolute_gamma(
            settings["beta"], settings["gamma"], settings["gamma_beta_ratio"], default_ratio=default_ratio
        )
        return {**settings, "gamma": gamma, "gamma_beta_ratio": None}

    return canonical


def response_nll(response: SequenceLogps, reduction: str) -> Tensor:
    """(pairs,) nats, at least 0: `-Σ_t log π` of each response ("sum") or its token mean ("mean").

    Each response has its own mean: a mean over all tokens of a micro-batch would depend on how the batch is split.
    Raises PobenchError for another `reduction`.
    """
    if reduction not in ("sum", "mean"):
        raise PobenchError(f"sft_reduction: got {reduction!r}; allowed: 'sum', 'mean'")
    return -(response.total if reduction == "sum" else response.mean)


def log_odds(logp: Tensor) -> Tensor:
    """`log(p / (1 - p))` of log-probabilities, same shape and dtype; value and gradient are finite.

    `logp` is clamped to `LARGEST_LOGP`. `log(1 - p)` uses expm1 above `-ln 2` and log1p below (Mächler 2012, "Accurately
    computing log(1 - exp(-|a|))"); the naive form gives -inf at -1e-8 in fp32.
    """
    logp = logp.clamp(max=LARGEST_LOGP)
    log1mexp = torch.where(logp > -math.log(2), (-torch.expm1(logp)).log(), torch.log1p(-logp.exp()))
    return logp - log1mexp


def exp_difference(a: Tensor, b: Tensor) -> Tensor:
    """`exp(a) - exp(b)`, same shape and dtype; value and gradient are accurate however close a and b are.

    The plain difference loses digits if a and b are close, and the gradient of the expm1 form loses digits if they are far
    apart, so each form is used where it is accurate. Both exponentials must be finite.
    """
    gap = a - b
    near = b.exp() * torch.expm1(gap.clamp(-1, 1))  # clamped, so that the branch not taken stays finite
    return torch.where(gap.abs() < math.log(2), near, a.exp() - b.exp())
