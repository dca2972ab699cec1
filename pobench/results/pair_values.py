"""Numbers of a pair, from the sums of log-probabilities and the rewards that are stored for it.

Each function takes rows of the frame `heldout` or `trainpairs` and returns one number a row, in the rows' order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pandas as pd

from pobench.results import stats

OfRows: TypeAlias = Callable[[pd.DataFrame], pd.Series]
SIMPO_BETA = 2.0  # Mistral-Base, SimPO paper, Table 8


def longer(pairs: pd.DataFrame) -> pd.Series:
    """Chosen minus rejected length, tokens."""
    return (pairs["chosen_length"] - pairs["rejected_length"]).astype(float)


def per_token(pairs: pd.DataFrame, side: str, model: str = "") -> pd.Series:
    """The log-probability of the `chosen` or the `rejected` answer, nats per token. model: `reference_` for the start model."""
    return pairs[f"{model}{side}_logp"] / pairs[f"{side}_length"]


def change_per_token(pairs: pd.DataFrame, side: str) -> pd.Series:
    """The same, policy minus start model: what training changed."""
    return (pairs[f"{side}_logp"] - pairs[f"reference_{side}_logp"]) / pairs[f"{side}_length"]


def winner(pairs: pd.DataFrame) -> pd.Series:
    """The winner's log-probability, nats per token."""
    return per_token(pairs, "chosen")


def kl(pairs: pd.DataFrame) -> pd.Series:
    """The winner's log-probability under the start model minus the policy's, nats per token."""
    return (pairs["reference_chosen_logp"] - pairs["chosen_logp"]) / pairs["chosen_length"]


def likelihood_margin(pairs: pd.DataFrame, model: str = "") -> pd.Series:
    """Chosen minus rejected log-probability, nats per token: how much likelier the model finds the better answer."""
    return per_token(pairs, "chosen", model) - per_token(pairs, "rejected", model)


def simpo_margin(pairs: pd.DataFrame) -> pd.Series:
    """The margin of SimPO's reward (SimPO paper, equation 3) at the β of Mistral-Base, whatever loss has trained the model."""
    return SIMPO_BETA * likelihood_margin(pairs)


def margin(pairs: pd.DataFrame) -> pd.Series:
    """Chosen minus rejected reward, in the loss's own unit."""
    return pairs["chosen_reward"] - pairs["rejected_reward"]


def accuracy(pairs: pd.DataFrame) -> pd.Series:
    """100 where the chosen answer has the higher reward, 50 for a tie, else 0."""
    return pd.Series(100 * stats.outcomes(pairs["chosen_reward"], pairs["rejected_reward"]), pairs.index)


def disagreement(pairs: pd.DataFrame) -> pd.Series:
    """100 where the loss's reward and the log-probability per token rank the pair differently, else 0; nan without either."""
    reward = pairs["chosen_reward"] > pairs["rejected_reward"]
    likely = per_token(pairs, "chosen") > per_token(pairs, "rejected")
    known = pairs[["chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp"]].notna().all(axis=1)
    return (100.0 * (reward != likely)).where(known)


def from_mean(value: OfRows) -> OfRows:
    """How far a number of a pair lies from its mean over the run's pairs: the mean absolute deviation, pair by pair."""

    def deviation(pairs: pd.DataFrame) -> pd.Series:
        numbers = value(pairs)
        return (numbers - numbers.groupby(pairs["run"]).transform("mean")).abs()

    return deviation
